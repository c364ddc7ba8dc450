"""Directions from activations: planted truth is found, and what must not matter does not."""

import re
from typing import Any

import numpy as np
import pytest
from sklearn import config_context
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, LeaveOneOut, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from steerkit.exceptions import ContrastSetError, InvalidInputError, NotFittedError
from steerkit.layerwise import LayerwiseDirections
from steerkit.learners import PrincipalDifference
from steerkit.sparse_probe import SparseProbe

LEARNERS = ["probe", "mean-diff", "mass-mean", "pca", "sparse-probe"]


def planted(*, layer: int = 2, n: int = 240, shift: float = 6.0, seed: int = 0) -> tuple[Any, Any, Any]:
    """Noise at four layers; only one of them tells the classes apart, along a known direction."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, 4, 24)) + 5
    direction = generator.normal(size=24)
    direction /= np.linalg.norm(direction)
    y = np.arange(n) % 2
    X[:, layer] += shift * y[:, None] * direction
    return X, y, direction


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_planted_direction_and_layer_are_found(learner: str) -> None:
    X, y, direction = planted(n=4000, shift=4.0)
    fitted = LayerwiseDirections(learner).fit(X, y)
    assert fitted.directions_[2] @ direction >= (0.95 if learner == "sparse-probe" else 0.99)  # a penalty shrinks
    assert fitted.accuracies_.argmax() == 2
    assert fitted.accuracies_[2] > 0.95
    assert fitted.accuracies_[[0, 1, 3]].max() < 0.6


@pytest.mark.parametrize("learner", LEARNERS)
def test_directions_have_unit_norm_and_norms_are_those_of_the_activations(learner: str) -> None:
    X, y, _ = planted()
    fitted = LayerwiseDirections(learner).fit(X, y)
    assert fitted.directions_.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(fitted.directions_, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(fitted.norms_, np.linalg.norm(X, axis=2).mean(axis=0))


@pytest.mark.parametrize("learner", LEARNERS)
def test_swapping_labels_negates(learner: str) -> None:
    X, y, _ = planted()
    one, other = LayerwiseDirections(learner).fit(X, y), LayerwiseDirections(learner).fit(X, 1 - y)
    np.testing.assert_allclose(one.directions_, -other.directions_, atol=1e-4)
    np.testing.assert_allclose(one.transform(X), -other.transform(X), atol=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
@pytest.mark.parametrize("learner", LEARNERS)
def test_scaling_activations_leaves_directions_and_readings(learner: str, scale: float) -> None:
    X, y, _ = planted()
    one, other = LayerwiseDirections(learner).fit(X, y), LayerwiseDirections(learner).fit(X * scale, y)
    np.testing.assert_allclose(other.directions_, one.directions_, atol=1e-5)
    np.testing.assert_allclose(other.transform(X * scale), one.transform(X), atol=1e-5)


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_larger_hidden_size_alone_does_not_change_how_strongly_a_learner_is_regularised(learner: str) -> None:
    X, y, _ = planted(shift=3.0)
    one, four = (LayerwiseDirections(learner).fit(np.concatenate([X] * copies, axis=2), y) for copies in (1, 4))
    if learner == "sparse-probe":  # it may give the weight of equal features to any of them
        together = four.directions_.reshape(4, 4, 24).sum(axis=1)
        together /= np.linalg.norm(together, axis=1)[:, None]
    else:
        together = four.directions_[:, :24] * 2
    np.testing.assert_allclose(
        (together * one.directions_).sum(axis=1), 1, atol=0.1 if learner == "mass-mean" else 1e-3
    )


def test_the_default_probe_finds_nearly_the_same_direction_from_ten_samples_as_from_all() -> None:
    X, y, _ = planted(n=400, shift=8.0)
    whole = LayerwiseDirections().fit(X, y).directions_[2]
    for start in range(0, 400, 10):
        few = slice(start, start + 10)
        assert LayerwiseDirections("probe").fit(X[few], y[few]).directions_[2] @ whole >= 0.8
    assert LayerwiseDirections("mean-diff").fit(X, y).directions_[2] @ whole >= 0.99


@pytest.mark.parametrize("learner", LEARNERS)
def test_readings_are_signed_distances_in_units_of_the_norm(learner: str) -> None:
    X, y, _ = planted()
    fitted = LayerwiseDirections(learner).fit(X, y)
    moved = X + 0.3 * fitted.norms_[:, None] * fitted.directions_
    np.testing.assert_allclose(fitted.transform(moved) - fitted.transform(X), 0.3, rtol=1e-5)
    sides = np.array([learner.predict(X[:, i] / fitted.scales_[i]) for i, learner in enumerate(fitted.learners_)])
    np.testing.assert_array_equal(fitted.transform(X) > 0, sides.T == 1)


def test_groups_never_stand_on_both_sides_of_a_fold() -> None:
    """Each group has a mark of its own class: seen in training it gives the class away, unseen it says nothing."""
    generator = np.random.default_rng(0)
    groups = np.arange(200) // 10
    y = groups % 2
    X = generator.normal(size=(20, 1, 300))[groups] * 5 + generator.normal(size=(200, 1, 300))
    assert LayerwiseDirections().fit(X, y).accuracies_[0] > 0.95
    assert LayerwiseDirections().fit(X, y, groups).accuracies_[0] < 0.75
    assert LayerwiseDirections(cv=GroupKFold(5)).fit(X, y, groups).accuracies_[0] < 0.75


def test_few_samples_mean_fewer_folds_and_one_pair_means_no_accuracy() -> None:
    X, y, _ = planted(n=240)
    assert np.isfinite(LayerwiseDirections(cv=5).fit(X[:6], y[:6]).accuracies_).all()
    assert np.isnan(LayerwiseDirections("mean-diff", cv=5).fit(X[:2], y[:2]).accuracies_).all()


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_layer_without_a_difference_has_no_direction_and_spoils_no_other(learner: str) -> None:
    X, y, _ = planted()
    whole = LayerwiseDirections(learner).fit(X, y)
    X[:, 1] = 1.0
    fitted = LayerwiseDirections(learner).fit(X, y)
    assert not fitted.directions_[1].any()
    assert fitted.accuracies_[1] == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(fitted.directions_[[0, 2, 3]], whole.directions_[[0, 2, 3]], atol=1e-4)
    assert (fitted.transform(X)[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([0] * 6, "y has 1 classes (0), at least two were expected; pass texts of each class."),
        (
            list("abcdef"),
            "y has 6 classes for 6 samples, at least two samples of each were expected; pass labels, not numbers.",
        ),
        ([0.0, 1.0, np.nan] * 2, "y holds NaN or None, classes were expected; drop or label those samples."),
        (["a", "b", None] * 2, "y holds NaN or None, classes were expected; drop or label those samples."),
        ([["a", "b"]] * 6, "y has shape (6, 2), (n_samples,) was expected; pass one label per text."),
        ([0, 1], "X has 6 samples, y has 2, as many were expected; check how they were built."),
    ],
)
def test_bad_labels_are_refused(y: Any, expected: str) -> None:
    X, _, _ = planted(n=6)
    with pytest.raises(ContrastSetError, match=f"^{re.escape(expected)}$"):
        LayerwiseDirections().fit(X, y)


def test_bad_activations_are_refused() -> None:
    X, y, _ = planted(n=6)
    with pytest.raises(
        InvalidInputError, match=re.escape("X has shape (6, 24), (n_samples, n_layers, hidden size) was")
    ):
        LayerwiseDirections().fit(X[:, 0], y)
    with pytest.raises(ContrastSetError, match="all activations at layer 1 are zero, so they have no direction;"):
        LayerwiseDirections().fit(X * np.array([1, 0, 1, 1])[:, None], y)
    with pytest.raises(ContrastSetError, match="the learner finds no difference between the classes; pass texts that"):
        LayerwiseDirections("mean-diff").fit(np.ones((6, 1, 24)), y)
    with pytest.raises(NotFittedError, match=re.escape("LayerwiseDirections is not fitted; call fit first.")):
        LayerwiseDirections().transform(X)
    with pytest.raises(InvalidInputError, match=re.escape("X has shape (6, 3, 24),")):
        LayerwiseDirections().fit(X, y).transform(X[:, :3])


def three(*, n: int = 300) -> tuple[Any, Any, Any]:
    """Three classes, each shifted along a direction of its own at the third layer."""
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.normal(size=(24, 3)))[0].T
    y = np.array(["calm", "glad", "sad"])[np.arange(n) % 3]
    X = generator.normal(size=(n, 4, 24)) + 5
    X[:, 2] += 6 * axes[np.arange(n) % 3]
    return X, y, axes


@pytest.mark.parametrize("learner", ["probe", "mean-diff", "mass-mean", "pca", "sparse-probe"])
def test_three_classes_have_a_direction_each(learner: str) -> None:
    X, y, axes = three()
    fitted = LayerwiseDirections(learner).fit(X, y)
    assert fitted.directions_.shape == (3, 4, 24)
    assert fitted.offsets_.shape == fitted.stability_.shape == (3, 4)
    expected = axes - (axes.sum(axis=0) - axes) / 2  # one against the mean of the others
    cosines = (fitted.directions_[:, 2] * expected / np.linalg.norm(expected, axis=1, keepdims=True)).sum(axis=1)
    assert cosines.min() > 0.8
    assert fitted.accuracies_[2] > 0.9
    assert fitted.accuracies_[[0, 1, 3]].max() < 0.5
    assert fitted.aucs_[2] > 0.97
    assert fitted.transform(X).shape == (300, 12)
    assert (fitted.classes_[fitted.readings(X)[..., 2].argmax(axis=1)] == y).mean() > 0.9


def test_stability_is_the_cosine_to_directions_of_other_draws() -> None:
    X, y, _ = planted()
    folds, draws = (
        LayerwiseDirections("mean-diff").fit(X, y),
        LayerwiseDirections("mean-diff", n_bootstrap=30).fit(X, y),
    )
    for fitted in (folds, draws):
        assert fitted.stability_[2] > 0.95
        assert fitted.stability_[2] > fitted.stability_[[0, 1, 3]].max()
    assert np.isnan(LayerwiseDirections("mean-diff").fit(X[:2], y[:2]).stability_).all()


def test_the_area_under_the_curve_is_that_of_scikit_learn() -> None:
    X, y, _ = planted(shift=1.0)
    splits = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    fitted = LayerwiseDirections("mean-diff", cv=splits).fit(X, y)
    expected = [
        roc_auc_score(y[test], LayerwiseDirections("mean-diff").fit(X[train], y[train]).transform(X[test])[:, 2])
        for train, test in splits
    ]
    assert fitted.aucs_[2] == pytest.approx(np.mean(expected), abs=5e-3)


def test_leaving_one_out_gives_the_area_over_all_readings() -> None:
    X, y, _ = planted()
    rows = np.r_[0:8, len(X) - 8 : len(X)] if len(set(y[:8])) == 1 else np.arange(16)
    fitted = LayerwiseDirections("mean-diff", cv=LeaveOneOut()).fit(X[rows], y[rows])
    readings = [
        LayerwiseDirections("mean-diff", cv=2).fit(X[rest], y[rest]).readings(X[[row]])[0, 2]
        for row in rows
        for rest in [rows[rows != row]]
    ]
    assert fitted.aucs_[2] == pytest.approx(roc_auc_score(y[rows], readings), abs=0.05)


@pytest.mark.parametrize("routing", [False, True])
def test_pairs_reach_the_learner_inside_a_pipeline(routing: bool) -> None:
    generator = np.random.default_rng(0)
    base, shift = generator.normal(size=(60, 1, 24)) * 5, np.eye(24)[3]
    X = np.concatenate([base, base + shift + 0.1 * generator.normal(size=(60, 1, 24))])
    y, pairs = np.repeat([0, 1], 60), np.tile(np.arange(60), 2)
    pipeline = make_pipeline(FunctionTransformer(), PrincipalDifference())
    with config_context(enable_metadata_routing=routing):
        assert LayerwiseDirections(pipeline).fit(X, y, pairs=pairs).directions_[0] @ shift > 0.99


def test_pairs_reach_the_learner_that_uses_them() -> None:
    generator = np.random.default_rng(0)
    base, shift = generator.normal(size=(60, 1, 24)) * 5, np.eye(24)[3]
    X = np.concatenate([base, base + shift + 0.1 * generator.normal(size=(60, 1, 24))])
    y, pairs = np.repeat([0, 1], 60), np.tile(np.arange(60), 2)
    assert LayerwiseDirections("pca").fit(X, y, pairs=pairs).directions_[0] @ shift > 0.99
    few = LayerwiseDirections("pca", cv=2).fit(X[[0, 1, 60, 61]], y[[0, 1, 60, 61]], pairs=pairs[[0, 1, 60, 61]])
    assert np.isfinite(few.accuracies_).all()
    with pytest.raises(ContrastSetError, match=re.escape("X has 120 samples, pairs has 5, as many were expected;")):
        LayerwiseDirections("pca").fit(X, y, pairs=pairs[:5])


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_rare_class_is_told_from_a_common_one(learner: str) -> None:
    X, y, _ = planted(shift=8.0)
    rows = np.concatenate([np.flatnonzero(y == 0)[:80], np.flatnonzero(y == 1)[:20]])
    assert LayerwiseDirections(learner).fit(X[rows], y[rows]).accuracies_[2] >= 0.95


@pytest.mark.parametrize("learner", LEARNERS)
def test_each_of_three_classes_is_on_its_own_side_of_its_boundary(learner: str) -> None:
    generator = np.random.default_rng(0)
    y = np.arange(180) % 3
    X = generator.normal(size=(180, 1, 24)) + 8 * np.eye(3, 24)[y][:, None]
    readings = LayerwiseDirections(learner, cv=3).fit(X, y).readings(X)[:, :, 0]
    assert ((readings > 0) == np.eye(3, dtype=bool)[y]).mean() > 0.95


def test_a_difference_of_half_a_percent_of_the_norm_is_found() -> None:
    generator = np.random.default_rng(0)
    y = np.arange(40) % 2
    common, apart = generator.normal(size=2304), np.linalg.qr(generator.normal(size=(2304, 1)))[0][:, 0]
    X = 100 * common / np.linalg.norm(common) + 0.5 * y[:, None] * apart + 0.001 * generator.normal(size=(40, 2304))
    fitted = LayerwiseDirections(cv=2).fit(X[:, None], y)
    assert fitted.accuracies_[0] == 1
    assert fitted.directions_[0] @ apart > 0.99


def test_bootstraps_and_several_classes_keep_pairs_whole() -> None:
    X, y, _ = planted(n=40, shift=20.0)
    pairs = np.arange(40) // 2
    assert LayerwiseDirections("pca", n_bootstrap=10).fit(X, y, pairs=pairs).stability_[2] > 0.95
    four = np.arange(40) % 4
    styles = LayerwiseDirections("pca", cv=2).fit(X, four, pairs=np.arange(40) // 4)
    assert styles.directions_.shape == (4, 4, 24)


@pytest.mark.parametrize(("n", "most"), [(2, 0.0), (4, 0.9), (240, 0.6)])
def test_shuffled_labels_say_nothing_of_the_classes(n: int, most: float) -> None:
    X, y, _ = planted(n=n, shift=20.0)
    fitted = LayerwiseDirections("mean-diff", cv=2).fit(X, y)
    assert abs(fitted.shuffled_directions_[2] @ fitted.directions_[2]) <= most


def test_a_fold_without_one_of_the_classes_is_named() -> None:
    X, y, _ = planted(n=40)
    order = np.argsort(y)
    with pytest.raises(ContrastSetError, match=re.escape("fold 0 of cv=KFold(n_splits=2, random_state=None, shuffle=")):
        LayerwiseDirections(cv=KFold(2)).fit(X[order], y[order])
    for seed in range(40):
        generator = np.random.default_rng(seed)
        LayerwiseDirections("mean-diff").fit(X[:14], y[:14], generator.integers(3, size=14))


def test_the_scale_that_a_learner_asks_for_holds_inside_a_pipeline_too() -> None:
    X, y, _ = planted()
    bare = LayerwiseDirections(SparseProbe(C=0.1)).fit(X, y)
    wrapped = LayerwiseDirections(make_pipeline("passthrough", SparseProbe(C=0.1))).fit(X, y)
    np.testing.assert_allclose(wrapped.scales_, bare.scales_)
    searched = LayerwiseDirections(GridSearchCV(SparseProbe(), {"C": [0.1]}, cv=2), cv=2).fit(X, y)
    np.testing.assert_allclose(searched.directions_[2] @ bare.directions_[2], 1, atol=1e-3)


def test_what_does_not_fit_together_is_named() -> None:
    X, y, _ = planted(n=8)
    with pytest.raises(ContrastSetError, match=r"^X has 8 samples, y has 7, as many were expected; check how they"):
        LayerwiseDirections().fit(X, y[:-1])
    with pytest.raises(ContrastSetError, match=r"^groups holds NaN or None; name one for each sample, or leave it out"):
        LayerwiseDirections().fit(X, y, [float("nan")] * 8)
    with pytest.raises(InvalidInputError, match=r"^'optimised' needs the model, not activations; pass it to Steering"):
        LayerwiseDirections("optimised").fit(X, y)
    with pytest.raises(InvalidInputError, match=r"^n_bootstrap=-1 is no whole number from 0 up; pass such a number\.$"):
        LayerwiseDirections(n_bootstrap=-1).fit(X, y)


# A penalty on each weight leaves nothing of features that one massive one dwarfs; a number of neurons does.
@pytest.mark.parametrize("learner", ["probe", "mean-diff", "mass-mean", "pca", SparseProbe(k=12)], ids=str)
def test_one_massive_dimension_hides_no_difference(learner: Any) -> None:
    X, y, direction = planted(shift=8.0)
    massive = np.concatenate([X, 1000 + np.random.default_rng(1).normal(size=(240, 4, 1))], axis=2)
    fitted = LayerwiseDirections(learner).fit(massive, y)
    assert fitted.accuracies_[2] > 0.95
    assert fitted.directions_[2, :24] @ direction > (
        0.9 if isinstance(learner, str) else 0.7
    )  # few neurons are not all
