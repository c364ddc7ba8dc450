"""Learners of one direction: two-class scikit-learn classifiers on ``(n_samples, hidden size)``, and their read-out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.covariance import ledoit_wolf_shrinkage

from steerkit.binary_classifier import BinaryClassifier, Floats, Integers
from steerkit.exceptions import ContrastSetError, InvalidInputError, NotAffineError
from steerkit.logistic_probe import LogisticProbe

TINY = 1e-12


class DirectionClassifier(BinaryClassifier, ABC):
    """A direction from the samples alone; the boundary lies halfway between the class means."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to X ``(n_samples, n_features)`` and y, which has two distinct values."""
        data, sides = self._validate(X, y)
        return self._set(self._weights(data, sides), data, sides)

    @abstractmethod
    def _weights(self, X: Floats, sides: Integers) -> Floats:
        """Return ``(n_features,)``, of any length; ``sides`` is 0 or 1."""

    def _set(self, weights: Floats, X: Floats, sides: Integers) -> Self:
        negative, positive = _means(X, sides)
        self.coef_ = weights[None]
        self.intercept_ = -self.coef_ @ ((positive + negative) / 2)
        return self


class MeanDifference(DirectionClassifier):
    """The difference of the two class means.

    With one text of either class it is activation addition (Turner et al. 2023), with many it is contrastive
    activation addition (Panickssery et al. 2023).

    References
    ----------
    Turner et al. (2023), "Steering Language Models With Activation Engineering".
    Panickssery et al. (2023), "Steering Llama 2 via Contrastive Activation Addition".
    """

    def _weights(self, X: Floats, sides: Integers) -> Floats:
        return _difference(X, sides)


class MassMean(DirectionClassifier):
    """The mean difference under the inverse of the covariance within the classes.

    The covariance of standardised features is shrunk towards the identity by as much as Ledoit and Wolf (2004)
    estimate, since there are fewer samples than features; it is never formed.

    References
    ----------
    Marks & Tegmark (2023), "The Geometry of Truth".
    """

    def _weights(self, X: Floats, sides: Integers) -> Floats:
        within = X - np.stack(_means(X, sides))[sides]
        scale = within.std(axis=0)
        scale[scale <= TINY * np.abs(X).max(axis=0)] = 1.0  # constant, up to rounding
        within, difference = within / scale, _difference(X, sides) / scale
        if not within.any():
            return difference
        shrinkage = ledoit_wolf_shrinkage(within, assume_centered=True)
        spread = float((within**2).mean())
        _, lengths, axes = np.linalg.svd(within, full_matrices=False)
        variances = (1 - shrinkage) * lengths**2 / len(X)
        floor = max(shrinkage, TINY) * spread
        inside = axes @ difference
        solved = (difference - axes.T @ inside) / floor + axes.T @ (inside / (variances + floor))
        return np.asarray(solved / scale)


class PrincipalDifference(DirectionClassifier):
    """The first principal axis of the differences between the classes, signed by the labels.

    The differences are not centred, so that what all of them share, the signal, is not centred away. Where no pairs
    are given, all samples are taken relative to the point halfway between the class means.

    References
    ----------
    Zou et al. (2023), "Representation Engineering: A Top-Down Approach to AI Transparency".
    """

    def fit(self, X: ArrayLike, y: ArrayLike, pairs: ArrayLike | None = None) -> Self:
        """Fit to X ``(n_samples, n_features)`` and y; equal values in ``pairs`` join samples of both classes.

        Where a value joins several of one class, their mean counts.
        """
        data, sides = self._validate(X, y)
        if pairs is None:
            return self._set(self._weights(data, sides), data, sides)
        names = np.asarray(pairs)
        if len(names) != len(data):
            raise ContrastSetError(f"pairs has {len(names)} entries for {len(data)} samples; pass one per sample.")
        both = [(data[(names == n) & (sides == 0)], data[(names == n) & (sides == 1)]) for n in np.unique(names)]
        both = [(negative, positive) for negative, positive in both if len(negative) and len(positive)]
        if not both:
            raise ContrastSetError("pairs joins no sample of one class to one of the other; give both the same number.")
        differences = np.stack([positive.mean(axis=0) - negative.mean(axis=0) for negative, positive in both])
        return self._set(_first_axis(differences, differences.mean(axis=0)), data, sides)

    def _weights(self, X: Floats, sides: Integers) -> Floats:
        negative, positive = _means(X, sides)
        towards = _difference(X, sides)
        return _first_axis(X - (negative + positive) / 2, towards) if towards.any() else towards


class GivenDirections(BaseEstimator):
    """Directions found elsewhere, ``(n_layers, n_features)``; only where the classes part is learned."""

    prefit = True  # they have seen all samples, so no fold would test them

    def __init__(self, directions: Floats) -> None:
        self.directions = directions

    def fit_layers(self, X: Floats, y: Integers) -> list[DirectionClassifier]:
        """Return one classifier per layer of X ``(n_samples, n_layers, n_features)``."""
        classifiers: list[DirectionClassifier] = []
        for layer, direction in enumerate(self.directions):
            classifier = MeanDifference()
            data, sides = classifier._validate(X[:, layer], y)
            classifiers.append(classifier._set(np.asarray(direction), data, sides))
        return classifiers


def _late(module: str, name: str) -> BaseEstimator:
    """Make a learner whose module imports Lightning, which takes seconds."""
    try:
        learner: BaseEstimator = getattr(import_module(f"steerkit.{module}"), name)()
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"{name} is trained with Lightning, which is not installed; pip install 'steerkit-estimator[train]'."
        ) from error
    return learner


def _means(X: Floats, sides: Integers) -> tuple[Floats, Floats]:
    return X[sides == 0].mean(axis=0), X[sides == 1].mean(axis=0)


def _difference(X: Floats, sides: Integers) -> Floats:
    """Mean of the one side minus that of the other, ``(n_features,)``; zero where it is but rounding."""
    negative, positive = _means(X, sides)
    difference = positive - negative
    difference[np.abs(difference) <= TINY * np.abs(X).max(axis=0)] = 0.0
    return difference


def _first_axis(X: Floats, towards: Floats) -> Floats:
    """Return the first right singular vector, on the side of ``towards``; zero if X is."""
    _, lengths, axes = np.linalg.svd(X, full_matrices=False)
    return np.asarray(axes[0] * (1.0 if axes[0] @ towards >= 0 else -1.0) * (lengths[0] > 0))


LEARNERS: dict[str, Callable[[], BaseEstimator]] = {
    "probe": LogisticProbe,
    "mean-diff": MeanDifference,
    "contrast": MeanDifference,
    "mass-mean": MassMean,
    "pca": PrincipalDifference,
    "sparse-probe": partial(_late, "sparse_probe", "SparseProbe"),
    "sae": partial(_late, "sparse_features", "SparseFeatures"),
    "optimised": partial(_late, "optimised_direction", "OptimisedDirection"),
}
"""Learners by their short names; ``contrast`` is the name for two texts, one of each class."""


def make_learner(learner: str | BaseEstimator) -> BaseEstimator:
    """Return a fresh learner for a short name, or a clone of the scikit-learn classifier that was passed."""
    if isinstance(learner, str):
        if learner not in LEARNERS:
            raise InvalidInputError(
                f"learner={learner!r} is not known; pass one of {', '.join(map(repr, LEARNERS))} "
                "or a scikit-learn classifier."
            )
        return LEARNERS[learner]()
    if isinstance(learner, type) or not hasattr(learner, "get_params"):
        fits = False
    else:
        fits = any(hasattr(learner, method) for method in ("fit", "fit_layers", "optimise"))
    if not fits:
        raise NotAffineError(
            f"learner={learner!r} is no scikit-learn classifier; pass one of {', '.join(map(repr, LEARNERS))} "
            "or an instance of a linear classifier."
        )
    return clone(learner)


def trait(learner: Any, name: str, default: Any) -> Any:
    """Return an attribute of a learner, or of the one inside a pipeline or search."""
    while learner is not None and not hasattr(learner, name):
        steps = getattr(learner, "steps", None)
        learner = steps[-1][1] if steps else getattr(learner, "estimator", None)
    return default if learner is None else getattr(learner, name)


def readout(fitted: BaseEstimator, n_features: int) -> tuple[Floats, float]:
    """Return ``w, b`` with ``decision_function(X) == X @ w + b``, whatever the classifier or pipeline is made of.

    Evaluated, not read from ``coef_``: pipelines have none, and a scaler's part of the direction would be lost.

    Raises
    ------
    NotAffineError
        The classifier has no ``decision_function`` for two classes, or it is not affine.
    """
    if isinstance(fitted, BinaryClassifier):  # our own have no scaler or kernel before the weights
        return fitted.coef_[0], float(fitted.intercept_[0])
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
