"""2-D learners keep scikit-learn's contract, and directions are read out of any affine classifier."""

import re
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from steerkit.exceptions import InvalidInputError, NotAffineError
from steerkit.learners import LEARNERS, MeanDifference, make_learner, readout

AFFINE = [
    LogisticRegression(),
    RidgeClassifier(),
    LinearSVC(),
    LinearDiscriminantAnalysis(),
    MeanDifference(),
    make_pipeline(StandardScaler(), LogisticRegression()),
    make_pipeline(StandardScaler(), PCA(5), LogisticRegression()),
]


@parametrize_with_checks([MeanDifference()])
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


@pytest.mark.parametrize("name", list(LEARNERS))
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


def test_unknown_learners_are_refused() -> None:
    expected = "learner='probes' is not known; pass one of 'probe', 'mean-diff' or a scikit-learn classifier."
    with pytest.raises(InvalidInputError, match=f"^{re.escape(expected)}$"):
        make_learner("probes")
    with pytest.raises(
        NotAffineError, match=re.escape("learner=3 is no scikit-learn classifier; pass one of 'probe',")
    ):
        make_learner(3)
