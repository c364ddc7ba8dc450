"""`SteeringEstimator` is an estimator: it clones, pickles, searches and validates like any other."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn
from sklearn.base import clone, is_classifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from steerkit.activations import ActivationExtractor
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import ContrastSetError, InvalidInputError, LayerError, NotFittedError, PromptError
from steerkit.language_model import LanguageModel
from steerkit.layerwise import LayerwiseDirections
from tests.models import LABELS, TEXTS, tiny

Saved = Callable[[str], Path]
GROUPS = ["a", "b", "c"] * 4


def test_estimator_is_extractor_and_layerwise(model: LanguageModel) -> None:
    estimator = SteeringEstimator(model, cv=3).fit(TEXTS, LABELS)
    activations = ActivationExtractor(model).transform(TEXTS)
    layerwise = LayerwiseDirections(cv=3).fit(activations, LABELS)
    np.testing.assert_array_equal(estimator.directions_, layerwise.directions_)
    np.testing.assert_array_equal(estimator.transform(TEXTS), layerwise.transform(activations))
    assert estimator.n_layers_ == len(estimator.accuracies_) == 4


def test_attributes_are_consistent(fitted: SteeringEstimator) -> None:
    assert is_classifier(fitted)
    assert fitted.layers_ == [0, 1, 2, 3]
    assert fitted.layer_ in fitted.layers_
    np.testing.assert_array_equal(fitted.decision_function(TEXTS), fitted.transform(TEXTS)[:, fitted.layer_])
    np.testing.assert_array_equal(fitted.predict(TEXTS), fitted.decision_function(TEXTS) > 0)
    assert fitted.score(TEXTS, LABELS) == fitted.layer_scores(TEXTS, LABELS)[fitted.layer_]


def test_labels_may_be_words(fitted: SteeringEstimator) -> None:
    words = ["novice" if label == 0 else "veteran" for label in LABELS]
    estimator = clone(fitted).fit(TEXTS, words)
    assert set(estimator.predict(TEXTS)) <= {"novice", "veteran"}
    assert estimator.vector().classes == ("novice", "veteran")
    np.testing.assert_array_equal(estimator.directions_, fitted.directions_)


def test_reading_and_writing_have_one_unit(fitted: SteeringEstimator) -> None:
    """Adding alpha moves the reading at that layer by alpha."""
    from steerkit.hooks import capture

    model, vector = LanguageModel.of(fitted.model), fitted.vector(2)
    ids, mask = model.pad(model.encode(TEXTS[:1]))
    with fitted.export(0.3, layer=2).steering(), capture(model.blocks, [2], lambda hidden: hidden[:, -1]) as kept:
        model.model(input_ids=ids, attention_mask=mask)
    reading = (kept[2].numpy() @ vector.direction.astype(float) - vector.offset) / vector.norm
    np.testing.assert_allclose(reading, fitted.transform(TEXTS[:1])[:, 2] + 0.3, rtol=1e-4)


def test_parameters_are_kept_as_they_came_and_clones_share_the_model() -> None:
    model = tiny("llama")
    parameters: dict[str, Any] = {
        "model": model, "learner": "mean-diff", "layers": [0, 2], "layer": 2, "pooling": "mean", "cv": 3,
        "batch_size": 4, "memory": None,
    }  # fmt: skip
    estimator = SteeringEstimator(**parameters)
    assert estimator.get_params(deep=False) == parameters
    copy = clone(estimator)
    assert copy.get_params(deep=False) == parameters
    assert copy.model is model
    assert copy.set_params(layer=0).layer == 0
    assert "LanguageModel" in repr(estimator)
    assert len(repr(estimator)) < 300
    assert "SteeringEstimator" in estimator._repr_html_()


def test_layers_and_layer_select(fitted: SteeringEstimator) -> None:
    some = clone(fitted).set_params(layers=[1, 3]).fit(TEXTS, LABELS)
    assert some.layers_ == [1, 3]
    np.testing.assert_array_equal(some.directions_, fitted.directions_[[1, 3]])
    assert list(some.get_feature_names_out()) == ["layer1", "layer3"]
    pinned = clone(fitted).set_params(layers=[1, 3], layer=0).fit(TEXTS, LABELS)
    assert (pinned.layers_, pinned.layer_) == ([0, 1, 3], 0)


def test_a_fitted_estimator_pickles_in_kilobytes_and_predicts(saved: Saved, tmp_path: Path) -> None:
    estimator = SteeringEstimator(str(saved("llama")), cv=3).fit(TEXTS, LABELS)
    handle = SteeringEstimator(LanguageModel(str(saved("llama"))), cv=3).fit(TEXTS, LABELS)
    for one in (estimator, handle):
        joblib.dump(one, tmp_path / "estimator.joblib")
        assert (tmp_path / "estimator.joblib").stat().st_size < 20_000
        np.testing.assert_array_equal(
            joblib.load(tmp_path / "estimator.joblib").predict(TEXTS), estimator.predict(TEXTS)
        )


def test_grid_search_over_learner_layer_pooling_and_model(saved: Saved) -> None:
    grid = {
        "learner": ["mean-diff", LogisticRegression(C=0.1)],
        "layer": [1, "auto"],
        "pooling": ["last", "mean"],
        "model": [str(saved("llama")), LanguageModel(str(saved("qwen3")))],
    }
    search = GridSearchCV(SteeringEstimator(cv=2), grid, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert len(search.cv_results_["params"]) == 16
    assert search.predict(TEXTS).shape == (12,)
    assert len(pickle.dumps(search)) < 100_000


def test_nested_parameters_of_a_learner_can_be_searched() -> None:
    estimator = SteeringEstimator(tiny("llama"), learner=LogisticRegression(), cv=2)
    search = GridSearchCV(estimator, {"learner__C": [0.01, 1.0]}, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert search.best_params_["learner__C"] in (0.01, 1.0)


@pytest.mark.parametrize(
    "learner", [RidgeClassifier(), LinearSVC(), make_pipeline(StandardScaler(), LogisticRegression())], ids=str
)
def test_any_affine_classifier_is_a_learner(learner: Any) -> None:
    estimator = SteeringEstimator(tiny("llama"), learner=learner, cv=2).fit(TEXTS, LABELS)
    np.testing.assert_allclose(np.linalg.norm(estimator.directions_, axis=1), 1, rtol=1e-6)


def test_cross_validation_and_pipelines_take_it(fitted: SteeringEstimator) -> None:
    assert cross_val_score(fitted, TEXTS, LABELS, cv=GroupKFold(3), groups=GROUPS).shape == (3,)
    pipeline = make_pipeline(clone(fitted), LogisticRegression()).fit(TEXTS, LABELS)
    assert pipeline.predict(TEXTS).shape == (12,)
    frame = clone(fitted).set_output(transform="pandas").fit(TEXTS, LABELS).transform(TEXTS)
    assert list(frame.columns) == ["layer0", "layer1", "layer2", "layer3"]


def test_data_frames_are_put_out_by_transform_only(fitted: SteeringEstimator) -> None:
    framed = clone(fitted).set_output(transform="pandas").fit(TEXTS, LABELS)
    np.testing.assert_array_equal(framed.predict(TEXTS), fitted.predict(TEXTS))
    with sklearn.config_context(transform_output="pandas"):
        everywhere = clone(fitted).fit(TEXTS, LABELS)
        assert everywhere.score(TEXTS, LABELS) == fitted.score(TEXTS, LABELS)


def test_a_failed_refit_leaves_the_fit_before_it(fitted: SteeringEstimator) -> None:
    estimator = clone(fitted).set_params(layers=[1, 2]).fit(TEXTS, LABELS)
    before = estimator.vector(2).direction
    with pytest.raises(PromptError, match="takes at most 128"):
        estimator.set_params(layers=[3]).fit([*TEXTS[:-1], "a " * 200], LABELS)
    assert estimator.layers_ == [1, 2]
    np.testing.assert_array_equal(estimator.vector(2).direction, before)


@pytest.mark.parametrize("routing", [True, False])
def test_groups_reach_the_fit(fitted: SteeringEstimator, routing: bool) -> None:
    with sklearn.config_context(enable_metadata_routing=routing):
        estimator = clone(fitted).set_params(cv=GroupKFold(3)).fit(TEXTS, LABELS, groups=GROUPS)
        assert np.isfinite(estimator.accuracies_).all()
        if routing:
            search = GridSearchCV(estimator, {"layer": [1, 2]}, cv=GroupKFold(4), error_score="raise")
            more = [*TEXTS, *(f"please {text}" for text in TEXTS)]
            search.fit(more, LABELS * 2, groups=list("abcd" * 6))
            assert search.best_estimator_.n_layers_ == 4


def test_memory_keeps_activations(saved: Saved, tmp_path: Path) -> None:
    model = LanguageModel(str(saved("llama")))
    passes: list[int] = []
    model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    for _ in range(2):
        estimator = SteeringEstimator(model, cv=2, memory=str(tmp_path)).fit(TEXTS, LABELS)
    assert len(passes) == 1
    plain = SteeringEstimator(model, cv=2).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(estimator.directions_, plain.directions_)


def test_bf16_models_give_float32_statistics(saved: Saved) -> None:
    estimator = SteeringEstimator(LanguageModel(str(saved("llama")), dtype="bfloat16"), cv=2).fit(TEXTS, LABELS)
    assert estimator.directions_.dtype == np.float32
    assert estimator.norms_.dtype == estimator.transform(TEXTS).dtype == np.float64


@pytest.mark.parametrize(
    ("X", "y", "error", "expected"),
    [
        ([], [], ContrastSetError, "y has 0 classes (none), exactly two were expected;"),
        (TEXTS, [0] * 12, ContrastSetError, "y has 1 classes (0), exactly two were expected;"),
        (TEXTS, [0, 1, 2] * 4, ContrastSetError, "y has 3 classes (0, 1, 2), exactly two were expected;"),
        (TEXTS, 1, ContrastSetError, "y has shape (), (n_samples,) was expected; pass one label per text."),
        (TEXTS, [0, 1], ContrastSetError, "X has 12 texts, y has 2 labels; pass one of each per text."),
        ("what is it", [0, 1], PromptError, "prompts is a str, a list of str was expected; put it in a list."),
        (["what", ""], [0, 1], PromptError, "prompt 1 is empty, text was expected; remove it or fill it."),
        (["what", 7], [0, 1], PromptError, "prompt 1 is a int, text was expected; pass a str,"),
    ],
)
def test_bad_input_is_refused(X: Any, y: Any, error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(expected)}"):
        SteeringEstimator(tiny("llama")).fit(X, y)


def test_bad_parameters_and_early_use_are_refused(fitted: SteeringEstimator) -> None:
    with pytest.raises(LayerError, match=re.escape("layer=40 is outside 0..3 for the model; pass layer='auto' or an")):
        clone(fitted).set_params(layer=40).fit(TEXTS, LABELS)
    with pytest.raises(InvalidInputError, match="cv=1 is no number of folds; pass an int of at least 2, or a splitter"):
        clone(fitted).set_params(cv=1).fit(TEXTS, LABELS)
    with pytest.raises(InvalidInputError, match="learner='bert' is not known;"):
        clone(fitted).set_params(learner="bert").fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError, match=re.escape("SteeringEstimator is not fitted; call fit first.")):
        clone(fitted).predict(TEXTS)
    some = clone(fitted).set_params(layers=[1]).fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError, match="no direction was fitted at layer 2; fit with layers that include it"):
        some.vector(2)
