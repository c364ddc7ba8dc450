"""Directions from activations: planted truth is found, and what must not matter does not."""

import re
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedKFold

from steerkit.exceptions import ContrastSetError, InvalidInputError, NotFittedError
from steerkit.layerwise import LayerwiseDirections

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
        ([0, 1], "X has 6 samples, y and groups must have as many; check how they were built."),
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


def test_pairs_reach_the_learner_that_uses_them() -> None:
    generator = np.random.default_rng(0)
    base, shift = generator.normal(size=(60, 1, 24)) * 5, np.eye(24)[3]
    X = np.concatenate([base, base + shift + 0.1 * generator.normal(size=(60, 1, 24))])
    y, pairs = np.repeat([0, 1], 60), np.tile(np.arange(60), 2)
    assert LayerwiseDirections("pca").fit(X, y, pairs=pairs).directions_[0] @ shift > 0.99
    few = LayerwiseDirections("pca", cv=2).fit(X[[0, 1, 60, 61]], y[[0, 1, 60, 61]], pairs=pairs[[0, 1, 60, 61]])
    assert np.isfinite(few.accuracies_).all()
    with pytest.raises(ContrastSetError, match=re.escape("X has 120 samples, y and pairs must have as many;")):
        LayerwiseDirections("pca").fit(X, y, pairs=pairs[:5])
