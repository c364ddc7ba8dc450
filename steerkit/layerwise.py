"""One learner per layer: directions, norms and cross-validated accuracies from activations."""

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, check_cv, cross_val_score

from steerkit.exceptions import ContrastSetError, InvalidInputError, NotFittedError
from steerkit.learners import make_learner, readout

Floats = NDArray[np.float64]


def check_labels(y: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the two classes and the side (0 or 1) of each sample, or raise `ContrastSetError`."""
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise ContrastSetError(f"y has shape {labels.shape}, (n_samples,) was expected; pass one label per text.")
    if any(label is None or label != label for label in labels.tolist()):
        raise ContrastSetError("y holds NaN or None, two classes were expected; drop or label those samples.")
    try:
        classes, sides = np.unique(labels, return_inverse=True)
    except TypeError:
        raise ContrastSetError("y mixes labels of several types, two classes were expected; use one type.") from None
    if len(classes) != 2:
        names = ", ".join(map(repr, classes[:5].tolist())) or "none"
        raise ContrastSetError(
            f"y has {len(classes)} classes ({names}), exactly two were expected; pass texts of both "
            "classes and no third."
        )
    return classes, sides.astype(np.int64)


class LayerwiseDirections(TransformerMixin, BaseEstimator):
    """Fit one direction per layer to activations ``(n_samples, n_layers, hidden size)``.

    Before the learner sees them, the activations of a layer are divided by their root mean square, so that
    regularisation means the same at each layer and scaling a model's activations leaves its directions.

    Parameters
    ----------
    learner : str or scikit-learn classifier
        ``"probe"`` (logistic regression), ``"mean-diff"``, or any classifier with an affine decision function.
    cv : int or scikit-learn splitter
        Folds for ``accuracies_``. An int means stratified folds that keep groups together where groups are given.

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
    directions_ : ndarray of shape (n_layers, hidden size), float32
        Unit vectors from ``classes_[0]`` to ``classes_[1]``; zero at a layer where the learner finds no difference.
    offsets_ : ndarray of shape (n_layers,)
        The projection at which the learner's decision changes.
    norms_ : ndarray of shape (n_layers,)
        Mean L2 norm of the activations: the unit of alpha.
    accuracies_ : ndarray of shape (n_layers,)
        Cross-validated; NaN with fewer than two samples in a class.
    accuracy_errors_ : ndarray of shape (n_layers,)
        Standard error of ``accuracies_`` over the folds.
    learners_ : list of the fitted learners, each on activations divided by ``scales_``.
    """

    def __init__(self, learner: Any = "probe", *, cv: Any = 5) -> None:
        self.learner = learner
        self.cv = cv

    def fit(self, X: NDArray[Any], y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit all layers.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_layers, hidden size)
        y : array-like of shape (n_samples,)
            Two distinct labels.
        groups : array-like of shape (n_samples,), optional
            Samples of one group (a domain, say) never stand on both sides of a fold.
        """
        X = self._check(X)
        classes, sides = check_labels(y)
        if len(sides) != len(X) or (groups is not None and len(np.asarray(groups)) != len(X)):
            raise ContrastSetError(
                f"X has {len(X)} samples, y and groups must have as many; check how they were built."
            )
        self.classes_ = classes
        self.norms_ = np.linalg.norm(X, axis=2).mean(axis=0)
        self.scales_ = np.sqrt((X**2).mean(axis=(0, 2)))
        if not self.scales_.all():
            raise ContrastSetError(
                f"all activations at layer {int(self.scales_.argmin())} are zero, so they have no direction; "
                "check the model's weights."
            )
        splits = self._splits(X, sides, groups)
        self.learners_, directions, offsets, scores = [], [], [], []
        for layer in range(X.shape[1]):
            scaled = X[:, layer] / self.scales_[layer]
            learner = make_learner(self.learner)
            scores.append(cross_val_score(clone(learner), scaled, sides, cv=splits) if splits else [np.nan])
            self.learners_.append(learner.fit(scaled, sides))
            weights, bias = readout(learner, X.shape[2])
            length = np.linalg.norm(weights)
            directions.append(weights / length if length else np.zeros_like(weights))
            offsets.append(-bias * self.scales_[layer] / length if length else 0.0)
        if not np.any(directions):
            raise ContrastSetError("the learner finds no difference between the classes; pass texts that differ.")
        self.directions_ = np.asarray(directions, dtype=np.float32)
        self.offsets_ = np.asarray(offsets)
        self.accuracies_ = np.mean(scores, axis=1)
        self.accuracy_errors_ = np.std(scores, axis=1) / np.sqrt(len(scores[0]))
        return self

    def transform(self, X: NDArray[Any]) -> Floats:
        """Return the signed distance from each layer's boundary, ``(n_samples, n_layers)``, in units of alpha."""
        return self.readings(X)

    def readings(self, X: NDArray[Any]) -> Floats:
        """Return what `transform` does, as an array even where scikit-learn is set to put out data frames."""
        if not hasattr(self, "directions_"):
            raise NotFittedError("LayerwiseDirections is not fitted; call fit first.")
        projections = np.einsum("nlh,lh->nl", self._check(X), self.directions_.astype(np.float64))
        return np.asarray((projections - self.offsets_) / self.norms_)

    def _check(self, X: NDArray[Any]) -> Floats:
        X = np.asarray(X, dtype=np.float64)
        expected = getattr(self, "directions_", X[0] if len(X) else X).shape
        if X.ndim != 3 or X.shape[1:] != expected or not len(X):
            raise InvalidInputError(
                f"X has shape {X.shape}, (n_samples, n_layers, hidden size) was expected; pass the activations of an "
                "ActivationExtractor."
            )
        return X

    def _splits(self, X: Floats, sides: NDArray[np.int64], groups: ArrayLike | None) -> list[Any]:
        """Cut the folds once for all layers; fewer than asked for where a class or the groups are too few."""
        asked = 5 if self.cv is None else self.cv
        if not isinstance(asked, Integral):
            return list(check_cv(self.cv, sides, classifier=True).split(X, sides, groups))
        if isinstance(asked, bool) or asked < 2:
            raise InvalidInputError(f"cv={asked!r} is no number of folds; pass an int of at least 2, or a splitter.")
        folds = min(int(asked), np.bincount(sides).min())
        if groups is None:
            splitter: Any = StratifiedKFold(max(folds, 2), shuffle=True, random_state=0)
        else:
            groups = np.asarray(groups)
            folds = min(folds, *(len(np.unique(groups[sides == side])) for side in (0, 1)))
            splitter = StratifiedGroupKFold(max(folds, 2), shuffle=True, random_state=0)
        if folds < 2:
            return []
        return list(splitter.split(X, sides, groups))
