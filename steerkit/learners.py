"""Learners of one direction: two-class scikit-learn classifiers on ``(n_samples, hidden size)``, and their read-out."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from steerkit.exceptions import ContrastSetError, InvalidInputError, NotAffineError

Floats = NDArray[np.float64]


class MeanDifference(ClassifierMixin, BaseEstimator):
    """The difference of the two class means; the boundary lies halfway between them.

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
    coef_ : ndarray of shape (1, n_features), float64
        Mean of ``classes_[1]`` minus mean of ``classes_[0]``.
    intercept_ : ndarray of shape (1,), float64

    References
    ----------
    Panickssery et al. (2023), "Steering Llama 2 via Contrastive Activation Addition".
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Take the means of both classes. X is ``(n_samples, n_features)``, y has two distinct values."""
        data, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, sides = np.unique(labels, return_inverse=True)
        if len(self.classes_) != 2:
            found = f"{len(self.classes_)} class{'es' if len(self.classes_) != 1 else ''}"
            # scikit-learn's checks look for its own words, hence "Only binary classification is supported".
            raise ContrastSetError(
                f"Only binary classification is supported: y has {found}, two were expected; "
                "pass texts of both classes and no third."
            )
        negative, positive = data[sides == 0].mean(axis=0), data[sides == 1].mean(axis=0)
        self.coef_ = (positive - negative)[None]
        self.intercept_ = -self.coef_ @ ((positive + negative) / 2)
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return ``(n_samples,)``, positive on the side of ``classes_[1]``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(X @ self.coef_[0] + self.intercept_[0])

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of each row, ``(n_samples,)``."""
        scores = self.decision_function(X)
        return np.asarray(self.classes_[(scores > 0).astype(int)])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


LEARNERS: dict[str, BaseEstimator] = {
    "probe": LogisticRegression(max_iter=1000),
    "mean-diff": MeanDifference(),
}


def make_learner(learner: str | BaseEstimator) -> BaseEstimator:
    """Return a fresh learner for a short name, or a clone of the scikit-learn classifier that was passed."""
    if isinstance(learner, str):
        if learner not in LEARNERS:
            raise InvalidInputError(
                f"learner={learner!r} is not known; pass one of {', '.join(map(repr, LEARNERS))} "
                "or a scikit-learn classifier."
            )
        learner = LEARNERS[learner]
    if isinstance(learner, type) or not hasattr(learner, "fit") or not hasattr(learner, "get_params"):
        raise NotAffineError(
            f"learner={learner!r} is no scikit-learn classifier; pass one of {', '.join(map(repr, LEARNERS))} "
            "or an instance of a linear classifier."
        )
    return clone(learner)


def readout(fitted: BaseEstimator, n_features: int) -> tuple[Floats, float]:
    """Return ``w, b`` with ``decision_function(X) == X @ w + b``, whatever the classifier or pipeline is made of.

    Evaluated, not read from ``coef_``: pipelines have none, and a scaler's part of the direction would be lost.

    Raises
    ------
    NotAffineError
        The classifier has no ``decision_function`` for two classes, or it is not affine.
    """
    name = type(fitted).__name__
    decide = getattr(fitted, "decision_function", None)
    if decide is None:
        raise NotAffineError(
            f"{name} has no decision_function, from which the direction is read; pass a linear classifier such as "
            "LogisticRegression."
        )
    points = np.random.default_rng(0).normal(size=(4, n_features))
    offset = decide(np.zeros((1, n_features)))
    if np.shape(offset) != (1,):
        raise NotAffineError(f"{name} decides between more than two classes; fit it on two.")
    weights = np.asarray(decide(np.eye(n_features)) - offset, dtype=np.float64)
    expected, got = points @ weights + offset, decide(points)
    if not np.allclose(got, expected, rtol=1e-4, atol=1e-6 * (1 + np.abs(expected).max())):
        raise NotAffineError(
            f"{name} has a decision function that is not affine, so it has no single direction; pass a linear "
            "classifier without steps such as Normalizer or a kernel."
        )
    return weights, float(offset[0])
