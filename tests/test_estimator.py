"""`SteeringEstimator` is an estimator: it clones, pickles, searches and validates like any other."""

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone, is_classifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from steerkit.activations import ActivationExtractor, pooled_activations, token_activations
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import (
    ContrastSetError,
    InvalidInputError,
    LayerError,
    NotFittedError,
    PromptError,
    SteeringActiveError,
)
from steerkit.language_model import LanguageModel
from steerkit.layerwise import LayerwiseDirections
from steerkit.reading import EffectReader
from steerkit.steered import SteeredModel
from steerkit.sweeps import sweep
from steerkit.trunk import _shares
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
        "n_bootstrap": 2, "batch_size": 4, "memory": None,
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


def test_parameters_of_a_learner_known_by_name_can_be_searched() -> None:
    estimator = SteeringEstimator(tiny("llama"), learner="sparse-probe", cv=2)
    search = GridSearchCV(estimator, {"learner__k": [3, 7]}, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert estimator.learner == "sparse-probe"
    found = search.best_estimator_.learners_[0].support_
    assert len(found) == search.best_params_["learner__k"]
    with pytest.raises(ValueError, match="Invalid parameter 'D' for estimator LogisticProbe"):
        estimator.set_params(learner="probe", learner__D=1)
    assert estimator.learner == "sparse-probe"


def test_every_learner_predicts_in_another_process_and_in_workers(saved: Saved, tmp_path: Path) -> None:
    path, names = str(saved("llama")), ["probe", "mean-diff", "mass-mean", "pca", "sparse-probe", "sae"]
    fitted = [SteeringEstimator(path, learner=name, layers=[1, 2], cv=2).fit(TEXTS, LABELS) for name in names]
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    code = (
        "import joblib, sys; from tests.models import TEXTS;"
        "print(*[''.join(map(str, one.predict(TEXTS))) for one in joblib.load(sys.argv[1])])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "fitted.joblib"], capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["".join(map(str, one.predict(TEXTS))) for one in fitted], result.stderr
    one, two = (
        cross_val_score(
            SteeringEstimator(path, learner="sparse-probe", layers=[1], cv=2), TEXTS, LABELS, cv=2, n_jobs=n
        )
        for n in (None, 2)
    )
    np.testing.assert_array_equal(one, two)


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
        model.load().activations.clear()
        estimator = SteeringEstimator(model, cv=2, memory=str(tmp_path)).fit(TEXTS, LABELS)
    assert len(passes) == 1
    plain = SteeringEstimator(model, cv=2).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(estimator.directions_, plain.directions_)


def tokens_through(model: LanguageModel) -> list[int]:
    """Numbers of tokens that went through the first block in each pass, from now on."""
    assert _shares(model, 30)  # tried out once, so not to be counted
    rows: list[int] = []
    block = model.blocks[0]
    forward = block.forward

    def counting(hidden: torch.Tensor, *args: Any, **options: Any) -> Any:
        rows.append(hidden.shape[0] * hidden.shape[1])
        return forward(hidden, *args, **options)

    block.forward = counting  # no hook: under hooks of a caller's own nothing is remembered
    return rows


def test_a_grid_search_sends_each_prompt_through_the_model_once() -> None:
    model = tiny("llama")
    tokens, sequences = tokens_through(model), model.encode([*TEXTS, "is it a new star ?"])
    grid = {"learner": ["mean-diff", LogisticRegression(C=0.1), LogisticRegression()], "layer": [0, 2]}
    search = GridSearchCV(SteeringEstimator(model, cv=2), grid, cv=3).fit(TEXTS, LABELS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    once = len({tuple(sequence[: end + 1]) for sequence in sequences[:-1] for end in range(len(sequence))})
    assert once <= sum(tokens) <= sum(map(len, sequences[:-1]))
    before = sum(tokens)
    search.predict(["is it a new star ?", *TEXTS])
    assert sum(tokens) == before + len(sequences[-1])


def test_a_hook_of_the_callers_own_is_seen() -> None:
    model = tiny("llama")
    before = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    hook = model.blocks[0].register_forward_hook(lambda _module, _args, output: output * 2)
    under = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    hook.remove()
    after = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    assert under.norms_[0] == pytest.approx(2 * before.norms_[0])
    np.testing.assert_array_equal(after.norms_, before.norms_)


def test_training_the_model_forgets_what_it_put_out() -> None:
    model = tiny("llama")
    before = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1.3)
    after = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    assert np.abs(after.norms_ - before.norms_).min() > 1e-3


@pytest.mark.parametrize("change", ["data", "cast", "template"])
def test_whatever_changes_what_the_model_puts_out_is_noticed(change: str, saved: Saved, tmp_path: Path) -> None:
    model = tiny("llama")
    before = SteeringEstimator(model, cv=2).fit(TEXTS, LABELS).norms_
    if change == "data":
        for parameter in model.model.parameters():
            parameter.data.mul_(1.5)
    elif change == "cast":
        model.model.to(torch.bfloat16)
    else:
        model.tokenizer.chat_template = "{{ messages[0]['content'] }}!?"
    after = SteeringEstimator(model, cv=2).fit(TEXTS, LABELS).norms_
    np.testing.assert_allclose(
        after, np.linalg.norm(ActivationExtractor(model).transform(TEXTS), axis=2).mean(axis=0), rtol=1e-6
    )
    assert np.abs(after - before).max() > 1e-5


def test_activations_on_disk_are_those_of_the_weights(tmp_path: Path) -> None:
    model = tiny("llama")
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    loaded = LanguageModel(str(tmp_path / "model"))
    before = SteeringEstimator(loaded, cv=2, memory=str(tmp_path / "memory")).fit(TEXTS, LABELS).norms_
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter *= 1.5
    after = SteeringEstimator(loaded, cv=2, memory=str(tmp_path / "memory")).fit(TEXTS, LABELS).norms_
    assert np.abs(after - before).max() > 1e-3


def test_remembering_is_no_way_round_the_steering_check(fitted: SteeringEstimator) -> None:
    with fitted.export().steering(1.0), pytest.raises(SteeringActiveError, match="the model is being steered by"):
        fitted.predict(TEXTS)


MOODS = ["calm", "glad", "sad"]


def test_three_classes_steer_each_and_together() -> None:
    model = tiny("llama")
    y = [MOODS[index % 3] for index in range(12)]
    estimator = SteeringEstimator(model, learner="mean-diff", cv=2, layer=2).fit(TEXTS, y)
    assert estimator.directions_.shape == (3, 4, 32)
    assert estimator.transform(TEXTS).shape == (12, 12)
    assert list(estimator.get_feature_names_out())[:5] == [
        "calm_layer0", "calm_layer1", "calm_layer2", "calm_layer3", "glad_layer0",
    ]  # fmt: skip
    assert estimator.decision_function(TEXTS).shape == (12, 3)
    assert estimator.score(TEXTS, y) == estimator.layer_scores(TEXTS, y)[2] > 0.5
    steered = estimator.export(alpha={"glad": 1.0})
    assert [vector.classes for vector in steered.vectors] == [(f"not {mood}", mood) for mood in MOODS]
    alone = estimator.export(alpha=1.0, target="glad")
    assert steered.generate(TEXTS[:3], max_new_tokens=8) == alone.generate(TEXTS[:3], max_new_tokens=8)
    per_row = steered.generate(TEXTS[:2], alpha={"sad": [0.0, 2.0], "calm": 0.5}, max_new_tokens=8)
    rows = [
        steered.generate(text, alpha={"sad": sad, "calm": 0.5}, max_new_tokens=8)
        for text, sad in zip(TEXTS[:2], [0.0, 2.0], strict=True)
    ]
    assert per_row == rows
    with pytest.raises(
        InvalidInputError, match=re.escape("target='angry' is none of the classes ['calm', 'glad', 'sad'];")
    ):
        estimator.vector(target="angry")
    assert estimator.export().generate(TEXTS[0]) == alone.generate(TEXTS[0], alpha=0.0)
    with pytest.raises(
        InvalidInputError, match=r"^alpha=0\.2 is one number for 3 classes; pass target=, or a dict of one"
    ):
        estimator.export(alpha=0.2)
    with pytest.raises(InvalidInputError, match="the estimator has 3 classes, a sweep goes from one to another;"):
        sweep(estimator, TEXTS, reader=EffectReader(model))
    with pytest.raises(InvalidInputError, match="alpha names 'angry'; the vectors lead to 'calm', 'glad', 'sad', pass"):
        steered.generate(TEXTS[0], alpha={"angry": 1.0})


def test_several_vectors_are_saved_with_an_alpha_each(saved: Saved, tmp_path: Path) -> None:
    y = [MOODS[index % 3] for index in range(12)]
    estimator = SteeringEstimator(str(saved("llama")), learner="mean-diff", cv=2, layer=2).fit(TEXTS, y)
    steered = estimator.export(alpha={"glad": 1.0, "sad": -0.5})
    steered.save_pretrained(tmp_path / "moods")
    loaded = SteeredModel.from_pretrained(tmp_path / "moods")
    assert loaded.alpha == {"glad": 1.0, "sad": -0.5}
    assert loaded.generate(TEXTS[0], max_new_tokens=8) == steered.generate(TEXTS[0], max_new_tokens=8)


def test_completions_are_read_over_their_own_tokens() -> None:
    model = tiny("llama")
    pairs = [(text, "it is new" if side else "always complex please") for text, side in zip(TEXTS, LABELS, strict=True)]
    for pooling in ("mean", "last", "last-2", 0, -1):
        estimator = SteeringEstimator(model, learner="mean-diff", cv=2, pooling=pooling).fit(pairs, LABELS)
        assert estimator.score(pairs, LABELS) > 0.9
    heads, whole = model.encode(TEXTS), model.encode(TEXTS, [completion for _, completion in pairs])
    starts = [len(head) for head in heads]
    alone = pooled_activations(model, whole[:1], layers=[2], pooling="mean", starts=starts[:1])
    hidden = token_activations(model, pairs[0], 2)[1]
    np.testing.assert_allclose(alone[0, 0], hidden[starts[0] :].mean(axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(
        PromptError, match=r"^prompt 1 is no \(prompt, completion\) pair with text in both; pass two str\.$"
    ):
        estimator.predict([pairs[0], TEXTS[0]])


def test_tokens_are_scored_where_they_stand(fitted: SteeringEstimator) -> None:
    scores = fitted.token_scores(TEXTS[0])
    assert [piece for piece, _ in scores][1:] == TEXTS[0].split()
    assert scores[-1][1] == pytest.approx(fitted.decision_function(TEXTS[:1])[0], rel=1e-4)
    with pytest.raises(InvalidInputError, match="target=0 is not 1, to which the direction of two classes points;"):
        fitted.token_scores(TEXTS[0], target=0)


def test_cosines_between_layers_and_learners(fitted: SteeringEstimator) -> None:
    np.testing.assert_allclose(np.diag(fitted.cosines()), 1, atol=1e-6)
    other = clone(fitted).set_params(learner="mean-diff").fit(TEXTS, LABELS)
    np.testing.assert_allclose(fitted.cosines(other), other.cosines(fitted).T, atol=1e-6)


def test_the_report_can_be_read(fitted: SteeringEstimator) -> None:
    lines = fitted.report().splitlines()
    assert lines[0] == f"0 / 1, 'mean-diff', read at layer {fitted.layer_}"
    assert lines[1].split() == ["accuracy", "s.e.", "auc", "norm", "stability"]
    assert len(lines) == 3 + fitted.n_layers_


def test_one_pair_of_texts_is_enough_for_contrast() -> None:
    estimator = SteeringEstimator(tiny("llama"), learner="contrast", layer=2).fit(["love star", "price rock"], [1, 0])
    assert np.isnan(estimator.accuracies_).all()
    activations = estimator._activations(["love star", "price rock"], [2])[:, 0]
    difference = activations[0] - activations[1]
    np.testing.assert_allclose(estimator.vector().direction, difference / np.linalg.norm(difference), atol=1e-5)


def test_bf16_models_give_float32_statistics(saved: Saved) -> None:
    estimator = SteeringEstimator(LanguageModel(str(saved("llama")), dtype="bfloat16"), cv=2).fit(TEXTS, LABELS)
    assert estimator.directions_.dtype == np.float32
    assert estimator.norms_.dtype == estimator.transform(TEXTS).dtype == np.float64


@pytest.mark.parametrize(
    ("X", "y", "error", "expected"),
    [
        ([], [], ContrastSetError, "y has 0 classes (none), at least two were expected;"),
        (TEXTS, [0] * 12, ContrastSetError, "y has 1 classes (0), at least two were expected;"),
        (
            TEXTS,
            list(range(12)),
            ContrastSetError,
            "y has 12 classes for 12 samples, at least two samples of each were",
        ),
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


def test_scores_and_texts_of_the_wrong_shape_are_refused(fitted: SteeringEstimator) -> None:
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fitted.layer_scores(TEXTS, [1])
    with pytest.raises(ValueError, match="Mix of label input types"):
        fitted.layer_scores(TEXTS, ["0"] * len(TEXTS))
    frame = pd.DataFrame({"text": TEXTS})
    with pytest.raises(InvalidInputError, match=r"^X is a DataFrame, texts were expected; pass one of its columns\.$"):
        fitted.predict(frame)
    np.testing.assert_array_equal(fitted.predict(frame["text"]), fitted.predict(TEXTS))
    with pytest.raises(InvalidInputError, match=r"^n=2\.5 is no whole number; pass how many tokens to name\.$"):
        fitted.nearest_tokens(2.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"^other is a list, a fitted SteeringEstimator was expected; pass one"):
        fitted.cosines([])  # type: ignore[arg-type]
