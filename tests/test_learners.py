"""2-D learners keep scikit-learn's contract, and directions are read out of any affine classifier."""

import re
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from steerkit.exceptions import ContrastSetError, InvalidInputError, NotAffineError
from steerkit.layerwise import LayerwiseDirections
from steerkit.learners import LEARNERS, MassMean, MeanDifference, PrincipalDifference, make_learner, readout
from steerkit.logistic_probe import LogisticProbe
from steerkit.sparse_autoencoder import SparseAutoencoder
from steerkit.sparse_features import SparseFeatures
from steerkit.sparse_probe import SparseProbe

# Two have tests of their own: one needs the model, one finds a direction only as well as its dictionary holds it, and a
# dictionary of noise holds anything.
TWO_DIMENSIONAL = [name for name in LEARNERS if name not in ("optimised", "sae")]
AFFINE = [
    LogisticRegression(),
    RidgeClassifier(),
    LinearSVC(),
    LinearDiscriminantAnalysis(),
    MeanDifference(),
    make_pipeline(StandardScaler(), LogisticRegression()),
    make_pipeline(StandardScaler(), PCA(5), LogisticRegression()),
]


@parametrize_with_checks(
    [
        MeanDifference(),
        MassMean(),
        PrincipalDifference(),
        LogisticProbe(),
        SparseProbe(),
        SparseProbe(k=1),
        SparseFeatures(SparseAutoencoder(16, k=4, max_epochs=2)),
        SparseAutoencoder(16, k=4, max_epochs=2),
    ]
)
def test_scikit_learn_contract(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


def two_classes(*, shift: float = 3.0, seed: int = 0) -> tuple[Any, Any, Any]:
    """Gaussian noise of uneven scales, the second class shifted along a planted direction."""
    generator = np.random.default_rng(seed)
    planted = generator.normal(size=20)
    planted /= np.linalg.norm(planted)
    y = np.arange(4000) % 2
    return generator.normal(size=(4000, 20)) + shift * y[:, None] * planted, y, planted


@pytest.mark.parametrize("learner", AFFINE, ids=lambda learner: str(learner)[:60])
def test_the_readout_is_the_decision_function(learner: Any) -> None:
    X, y, _ = two_classes()
    weights, bias = readout(learner.fit(X, y), 20)
    np.testing.assert_allclose(X @ weights + bias, learner.decision_function(X), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_a_planted_direction_is_found(name: str) -> None:
    X, y, planted = two_classes(shift=6.0)
    weights, _ = readout(make_learner(name).fit(X, y), 20)
    assert weights @ planted / np.linalg.norm(weights) >= 0.97


def test_the_mean_difference_is_the_difference_of_the_means() -> None:
    X, y, planted = two_classes()
    weights, _ = readout(MeanDifference().fit(X, y), 20)
    np.testing.assert_allclose(weights, X[y == 1].mean(axis=0) - X[y == 0].mean(axis=0))
    assert weights @ planted / np.linalg.norm(weights) >= 0.99


@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (
            RandomForestClassifier(5),
            "RandomForestClassifier has no decision_function, from which the direction is read;",
        ),
        (SVC(), "SVC has a decision function that is not affine, so it has no single direction;"),
        (make_pipeline(Normalizer(), LogisticRegression()), "Pipeline has a decision function that is not affine,"),
    ],
)
def test_what_is_not_affine_is_refused(learner: Any, expected: str) -> None:
    X, y, _ = two_classes()
    with pytest.raises(NotAffineError, match=re.escape(expected)):
        readout(learner.fit(X, y), 20)


def test_three_classes_have_no_single_direction() -> None:
    X, _, _ = two_classes()
    with pytest.raises(NotAffineError, match="decides between more than two classes; fit it on two"):
        readout(LogisticRegression().fit(X, np.arange(4000) % 3), 20)


def direction(name: str, X: Any, y: Any) -> Any:
    weights, _ = readout(make_learner(name).fit(X, y), X.shape[1])
    return weights / np.linalg.norm(weights)


def few(n: int = 120, *, d: int = 20, shift: float = 6.0, seed: int = 0) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    planted = np.zeros(d)
    planted[:4] = 0.5
    y = np.arange(n) % 2
    return generator.normal(size=(n, d)) + shift * y[:, None] * planted, y, planted


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_swapped_labels_negate(name: str) -> None:
    X, y, _ = few()
    np.testing.assert_allclose(direction(name, X, y), -direction(name, X, 1 - y), atol=1e-4)


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_duplicate_samples_hardly_matter(name: str) -> None:
    X, y, _ = few()
    assert direction(name, X, y) @ direction(name, np.repeat(X, 2, axis=0), np.repeat(y, 2)) > 0.95


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_single_precision_gives_the_same_direction(name: str, dtype: Any) -> None:
    X, y, planted = few()
    assert direction(name, X.astype(dtype), y) @ direction(name, X, y) > 0.9999
    assert direction(name, X.astype(dtype), y) @ planted > 0.85


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_a_massive_dimension_does_not_hide_the_signal(name: str) -> None:
    """Language models have dimensions a thousand times as large as the others, and nearly constant."""
    X, y, planted = few()
    X[:, 10] += 1000
    assert direction(name, X, y) @ planted > 0.8


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_constant_features_get_no_weight(name: str) -> None:
    X, y, planted = few()
    X[:, [7, 11]] = 3.0
    found = direction(name, X, y)
    assert found @ planted > 0.8
    assert np.abs(found[[7, 11]]).max() < 1e-4


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_fewer_samples_than_features(name: str) -> None:
    X, y, planted = few(60, d=300, shift=8.0)
    assert direction(name, X, y) @ planted > 0.6


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_five_and_five_samples(name: str) -> None:
    X, y, planted = few(10, shift=8.0)
    assert direction(name, X, y) @ planted > 0.6


@pytest.mark.parametrize("name", TWO_DIMENSIONAL)
def test_an_imbalance_of_twenty_to_one(name: str) -> None:
    X, y, planted = few(420)
    kept = np.flatnonzero((y == 0) | (np.arange(420) < 20))
    X, y = X[kept], y[kept]
    fitted = make_learner(name).fit(X, y)
    weights, _ = readout(fitted, 20)
    assert weights @ planted / np.linalg.norm(weights) > 0.8
    assert fitted.predict(X)[y == 1].mean() > 0.9


def test_the_mass_mean_is_the_mean_difference_under_the_inverse_covariance() -> None:
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(6, 6))
    y = np.arange(20_000) % 2
    difference = generator.normal(size=6)
    X = generator.normal(size=(20_000, 6)) @ mixing.T + y[:, None] * difference
    expected = np.linalg.solve(mixing @ mixing.T, difference)
    assert direction("mass-mean", X, y) @ expected / np.linalg.norm(expected) > 0.99


def test_the_first_principal_difference_keeps_a_constant_shift() -> None:
    """Centred differences would have lost it: it is in all of them."""
    generator = np.random.default_rng(0)
    base, shift = generator.normal(size=(100, 12)) * 5, np.eye(12)[3]
    X = np.concatenate([base, base + shift + 0.1 * generator.normal(size=(100, 12))])
    y, pairs = np.repeat([0, 1], 100), np.tile(np.arange(100), 2)
    paired = PrincipalDifference().fit(X, y, pairs=pairs).coef_[0]
    assert paired @ shift > 0.99
    assert abs(PrincipalDifference().fit(X, y).coef_[0] @ shift) < 0.9  # the pairs are what cancels the rest


def test_pairs_that_join_nothing_are_refused() -> None:
    X, y, _ = few(10)
    with pytest.raises(ContrastSetError, match=r"^pairs has 3 entries for 10 samples; pass one per sample\.$"):
        PrincipalDifference().fit(X, y, pairs=[1, 2, 3])
    with pytest.raises(ContrastSetError, match="pairs joins no sample of one class to one of the other;"):
        PrincipalDifference().fit(X, y, pairs=np.arange(10))


def test_unknown_learners_are_refused() -> None:
    names = ", ".join(map(repr, LEARNERS))
    expected = f"learner='probes' is not known; pass one of {names} or a scikit-learn classifier."
    with pytest.raises(InvalidInputError, match=f"^{re.escape(expected)}$"):
        make_learner("probes")
    with pytest.raises(
        NotAffineError, match=re.escape("learner=3 is no scikit-learn classifier; pass one of 'probe',")
    ):
        make_learner(3)


@pytest.mark.parametrize("shape", [(60, 200), (200, 30)])
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
def test_the_probe_is_at_scikit_learns_optimum(shape: tuple[int, int], C: float) -> None:
    """Fewer samples than features or more, balanced or not."""
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=shape), np.arange(shape[0]) % 3 == 0
    X[y] += 0.3
    mine = LogisticProbe(C).fit(X, y)
    other = LogisticRegression(C=C, class_weight="balanced", tol=1e-10, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(mine.coef_, other.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mine.intercept_, other.intercept_, rtol=1e-4, atol=1e-5)


def test_probes_of_subsets_are_those_fitted_alone() -> None:
    """Each is within ``tol`` of the optimum, since the penalty curves the objective by 1 at least."""
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(40, 3, 50)), np.arange(40) % 2
    subsets = [np.arange(40), np.arange(0, 40, 3), generator.integers(40, size=40)]
    together = LogisticProbe().fit_subsets(X, [(rows, y[rows]) for rows in subsets])
    for rows, probes in zip(subsets, together, strict=True):
        for layer, probe in enumerate(probes):
            alone = LogisticProbe().fit(X[rows, layer], y[rows])
            np.testing.assert_allclose(probe.coef_, alone.coef_, rtol=0, atol=2e-8)
            np.testing.assert_allclose(probe.intercept_, alone.intercept_, rtol=0, atol=1e-7)


@pytest.mark.parametrize("C", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", ["rank one", "rank three", "six texts", "constant", "many samples"])
def test_probes_of_degenerate_layers_are_finite_and_those_fitted_alone(shape: str, C: float) -> None:
    """Beside each other, those that are there wait and take no step on rounding."""
    generator = np.random.default_rng(0)
    rank = {"rank one": 1, "rank three": 3}.get(shape, 16)
    X = np.einsum("slr,lrf->slf", generator.normal(size=(40, 4, rank)), generator.normal(size=(4, rank, 64)))
    X[:, 1] = generator.normal(size=(40, 64))
    if shape == "six texts":
        X[:, 0] = X[np.arange(40) % 6, 0]
    if shape == "constant":
        X[:, 0] = X[0, 0]
    X = X[..., :16] if shape == "many samples" else X
    y = generator.permutation(np.arange(40) % 2)
    subsets = [np.arange(40), np.arange(0, 40, 3), generator.integers(40, size=40), np.arange(40)]
    sides = [y, y[::3], y[subsets[2]], np.arange(40) // 20]
    fitted = LogisticProbe(C).fit_subsets(X, list(zip(subsets, sides, strict=True)))
    for rows, targets, probes in zip(subsets, sides, fitted, strict=True):
        for layer, probe in enumerate(probes):
            alone = LogisticProbe(C).fit(X[rows, layer], targets)
            one, other = (objective(p, X[rows, layer], targets) for p in (probe, alone))
            assert one == pytest.approx(other, rel=1e-5, abs=1e-9)


def objective(probe: LogisticProbe, X: np.ndarray, y: np.ndarray) -> float:
    costs = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    margins = X @ probe.coef_[0] + probe.intercept_[0]
    return float((probe.coef_**2).sum() / 2 + probe.C * (costs * (np.logaddexp(0, margins) - y * margins)).sum())


def test_infinite_activations_are_refused() -> None:
    X, y = np.ones((6, 3, 2)), np.arange(6) % 2
    X[0, 2, 0] = np.inf
    expected = "X has NaN or infinite activations at positions [2] of its layers, finite ones were expected; "
    with pytest.raises(InvalidInputError, match=re.escape(expected)):
        LayerwiseDirections().fit(X, y)


def test_a_probe_that_did_not_converge_says_so() -> None:
    X, y, _ = few()
    expected = "the probe did not converge in 1 steps; raise max_iter or lower C."
    with pytest.warns(ConvergenceWarning, match=f"^{re.escape(expected)}$"):
        LogisticProbe(max_iter=1).fit(X, y)
