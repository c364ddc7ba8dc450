"""One learner per layer: directions, norms and cross-validated accuracies from activations."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.utils.validation import has_fit_parameter

from steerkit.binary_classifier import Floats, Integers
from steerkit.checks import check_count
from steerkit.exceptions import ContrastSetError, InvalidInputError, NotFittedError
from steerkit.labels import check_labels
from steerkit.learners import make_learner, readout, trait
from steerkit.resampling import resamples, shuffled


class LayerwiseDirections(TransformerMixin, BaseEstimator):
    """Fit one direction per layer to activations ``(n_samples, n_layers, hidden size)``.

    Before the learner sees them, the activations of a layer are divided by their mean norm, the unit of alpha, so that
    regularisation means the same at each layer and in each model, and scaling a model's activations leaves its
    directions. A learner may ask for another scale with its attribute ``scaling``: "feature" for features of unit size
    (the norm is then the root of their number), "none" for activations as they are.

    With more than two classes there is one direction per class, against all others, and the attributes from
    ``directions_`` to ``offsets_`` and ``stability_`` have a first axis of length n_classes.

    Parameters
    ----------
    learner : str or scikit-learn classifier
        A name in `LEARNERS`, or any classifier with an affine decision function.
    cv : int or scikit-learn splitter
        Folds for ``accuracies_``. An int means stratified folds that keep groups together where groups are given.
    n_bootstrap : int
        Resamples for ``stability_``; 0 takes the folds instead.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    directions_ : ndarray of shape (n_layers, hidden size), float32
        Unit vectors from ``classes_[0]`` to ``classes_[1]``; zero at a layer where the learner finds no difference.
    offsets_ : ndarray of shape (n_layers,)
        The projection at which the learner's decision changes.
    stability_ : ndarray of shape (n_layers,)
        Mean cosine between the direction and those of bootstrap samples (or of the folds); NaN without either.
    shuffled_directions_ : ndarray of the shape of directions_, float32
        What the learner finds when the labels are shuffled: a control. Zero for directions that were given.
    norms_ : ndarray of shape (n_layers,)
        Mean L2 norm of the activations: the unit of alpha.
    accuracies_, aucs_ : ndarray of shape (n_layers,)
        Cross-validated; NaN with fewer than two samples in a class. With more than two classes, the class whose
        reading is highest counts, and the area under the curve is the mean over the classes.
    accuracy_errors_ : ndarray of shape (n_layers,)
        Standard error of ``accuracies_`` over the folds.
    scales_ : ndarray of shape (n_layers,)
        What the activations were divided by for the learners.
    learners_ : list of the fitted learners, one per layer.
        With more than two classes, a list of such lists.
    """

    def __init__(self, learner: Any = "probe", *, cv: Any = 5, n_bootstrap: int = 0) -> None:
        self.learner = learner
        self.cv = cv
        self.n_bootstrap = n_bootstrap

    def fit(
        self, X: NDArray[Any], y: ArrayLike, groups: ArrayLike | None = None, pairs: ArrayLike | None = None
    ) -> Self:
        """Fit all layers.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_layers, hidden size)
        y : array-like of shape (n_samples,)
            Labels, at least two distinct ones.
        groups : array-like of shape (n_samples,), optional
            Samples of one group (a domain, say) never stand on both sides of a fold.
        pairs : array-like of shape (n_samples,), optional
            Equal values join two samples of different classes, for learners that use pairs.
        """
        learner = make_learner(self.learner)
        if hasattr(learner, "optimise"):
            raise InvalidInputError(f"{self.learner!r} needs the model, not activations; pass it to SteeringEstimator.")
        check_count("n_bootstrap", self.n_bootstrap, least=0)
        X = self._check(X)
        classes, codes = check_labels(y)
        for name, values in (("y", codes), ("groups", groups), ("pairs", pairs)):
            if values is None:
                continue
            if len(np.asarray(values)) != len(X):
                raise ContrastSetError(
                    f"X has {len(X)} samples, {name} has {len(np.asarray(values))}, as many were expected; check how "
                    "they were built."
                )
            if pd.isna(np.asarray(values)).any():
                raise ContrastSetError(f"{name} holds NaN or None; name one for each sample, or leave it out.")
        self.classes_ = classes
        self.norms_ = np.linalg.norm(X, axis=2).mean(axis=0)
        if not self.norms_.all():
            raise ContrastSetError(
                f"all activations at layer {int(self.norms_.argmin())} are zero, so they have no direction; "
                "check the model's weights."
            )
        units = {"norm": self.norms_, "feature": self.norms_ / np.sqrt(X.shape[2]), "none": np.ones(X.shape[1])}
        self.scales_ = units[trait(learner, "scaling", "norm")]
        scaled = X / self.scales_[:, None]
        joined = None if pairs is None else np.asarray(pairs)
        everything = np.arange(len(X))
        given = trait(learner, "prefit", False)
        splits = [] if given else self._splits(X, codes, pairs if groups is None else groups)
        drawn = list(resamples(codes, joined, self.n_bootstrap)) if self.n_bootstrap and splits else []
        mixes = [(everything, shuffled(codes), None)] if not given and np.bincount(codes).min() > 1 else []
        tasks = [
            (everything, codes, joined),
            *((train, codes[train], None if joined is None else joined[train]) for train, _ in splits),
            *((rows, codes[rows], pairing) for rows, pairing in drawn),
            *mixes,
        ]
        (learners, directions, cuts), *fitted = _fit(learner, scaled, tasks)
        if not directions.any():
            raise ContrastSetError(
                "the learner finds no difference between the classes; pass texts that differ, pool where they do, or "
                "weaken its penalty."
            )
        mixed = fitted.pop()[1] if mixes else 0 * directions
        accuracies, read = [], []
        for (_, test), (_, axes, parts) in zip(splits, fitted, strict=False):
            readings = (scaled[test].swapaxes(0, 1) @ axes.transpose(1, 2, 0)).transpose(1, 2, 0) - parts
            accuracies.append(_accuracies(readings, codes[test]))
            read.append((readings, codes[test]))
        others = [axes for _, axes, _ in fitted[len(splits) if drawn else 0 :]]
        binary = len(classes) == 2
        self.learners_ = learners[0] if binary else learners
        self.directions_ = _of_class(directions.astype(np.float32), binary)
        self.shuffled_directions_ = _of_class(mixed.astype(np.float32), binary)
        self.offsets_ = _of_class(cuts * self.scales_, binary)
        cosines = [(axes * directions).sum(axis=2) for axes in others] or [np.full(cuts.shape, np.nan)]
        self.stability_ = _of_class(np.mean(cosines, axis=0), binary)
        unknown = [np.full(X.shape[1], np.nan)]
        self.accuracies_, self.aucs_ = np.mean(accuracies or unknown, axis=0), _mean_auc(read, X.shape[1])
        enough = accuracies if len(accuracies) > 1 else unknown * 2
        self.accuracy_errors_ = np.std(enough, axis=0, ddof=1) / np.sqrt(len(enough))
        return self

    def transform(self, X: NDArray[Any]) -> Floats:
        """Return the signed distances from the boundaries, in units of alpha.

        ``(n_samples, n_layers)``; with more than two classes ``(n_samples, n_classes * n_layers)``, class by class.
        """
        readings = self.readings(X)
        return readings.reshape(len(readings), -1)

    def readings(self, X: NDArray[Any]) -> Floats:
        """Return ``(n_samples, n_layers)``, or ``(n_samples, n_classes, n_layers)`` with more than two classes.

        An array even where scikit-learn is set to put out data frames.
        """
        if not hasattr(self, "directions_"):
            raise NotFittedError("LayerwiseDirections is not fitted; call fit first.")
        projections = np.einsum("nlh,...lh->n...l", self._check(X), self.directions_.astype(np.float64))
        return np.asarray((projections - self.offsets_) / self.norms_)

    def _check(self, X: NDArray[Any]) -> Floats:
        X = np.asarray(X, dtype=np.float64)
        expected = getattr(self, "directions_", X[0] if len(X) else X).shape[-2:]
        if X.ndim != 3 or X.shape[1:] != expected or not len(X):
            raise InvalidInputError(
                f"X has shape {X.shape}, (n_samples, n_layers, hidden size) was expected; pass the activations of an "
                "ActivationExtractor."
            )
        if not (finite := np.isfinite(X).all(axis=(0, 2))).all():
            raise InvalidInputError(
                f"X has NaN or infinite activations at positions {np.flatnonzero(~finite).tolist()} of its layers, "
                "finite ones were expected; leave these layers out or load the model with dtype='float32'."
            )
        return X

    def _splits(self, X: Floats, codes: Integers, groups: ArrayLike | None) -> list[Any]:
        """Cut the folds once for all layers; fewer than asked for where a class or the groups are too few."""
        asked = 5 if self.cv is None else self.cv
        if not isinstance(asked, Integral):
            cut = list(check_cv(self.cv, codes, classifier=True).split(X, codes, groups))
            for number, (train, _) in enumerate(cut):
                if len(np.unique(codes[train])) <= codes.max():
                    raise ContrastSetError(
                        f"fold {number} of cv={self.cv!r} trains without one of the classes; pass a stratified one."
                    )
            return cut
        if isinstance(asked, bool) or asked < 2:
            raise InvalidInputError(f"cv={asked!r} is no number of folds; pass an int of at least 2, or a splitter.")
        folds = min(int(asked), np.bincount(codes).min())
        if groups is None:
            splitter: Any = StratifiedKFold(max(folds, 2), shuffle=True, random_state=0)
        else:
            groups = np.asarray(groups)
            folds = min(folds, *(len(np.unique(groups[codes == code])) for code in np.unique(codes)))
            splitter = StratifiedGroupKFold(max(folds, 2), shuffle=True, random_state=0)
        if folds < 2:
            return []
        cut = splitter.split(X, codes, groups)
        return [(train, test) for train, test in cut if len(np.unique(codes[train])) > codes.max()]


Task = tuple[Integers, Integers, NDArray[Any] | None]
"""Rows of samples, the place of each one's class, and what joins them to pairs."""


def _fit(learner: Any, X: Floats, tasks: Sequence[Task]) -> list[tuple[list[list[Any]], Floats, Floats]]:
    """Fit to each task; return learners, unit directions ``(n_targets, n_layers, hidden)`` and cuts."""
    targets = [1] if tasks[0][1].max() == 1 else range(tasks[0][1].max() + 1)
    problems = [(rows, (codes == t).astype(np.int64), pairs) for rows, codes, pairs in tasks for t in targets]
    if hasattr(learner, "fit_subsets"):
        fitted = clone(learner).fit_subsets(X, [(rows, sides) for rows, sides, _ in problems])
    else:
        fitted = [_fit_layers(learner, X[rows], sides, pairs) for rows, sides, pairs in problems]
    found = []
    for start in range(0, len(fitted), len(targets)):
        learners = fitted[start : start + len(targets)]
        read = [[_unit(*readout(one, X.shape[2])) for one in layers] for layers in learners]
        directions = np.array([[direction for direction, _ in layers] for layers in read])
        found.append((learners, directions, np.array([[cut for _, cut in layers] for layers in read])))
    return found


def _fit_layers(learner: Any, X: Floats, targets: Integers, pairs: NDArray[Any] | None) -> list[Any]:
    fresh, sides = clone(learner), targets == 1
    if hasattr(fresh, "fit_layers"):
        return list(fresh.fit_layers(X, targets))
    joined = pairs is not None and np.isin(pairs[sides], pairs[~sides]).any()  # a fold may tear all of them apart
    steps = getattr(fresh, "steps", None)
    last, prefix = (steps[-1][1], f"{steps[-1][0]}__") if steps else (fresh, "")
    options = {f"{prefix}pairs": pairs} if joined and has_fit_parameter(last, "pairs") else {}
    # The parameters are named by step, whether or not the caller has scikit-learn route metadata.
    with config_context(enable_metadata_routing=False):
        return [clone(fresh).fit(X[:, layer], targets, **options) for layer in range(X.shape[1])]


def _unit(weights: Floats, bias: float) -> tuple[Floats, float]:
    length = float(np.linalg.norm(weights))
    return (weights / length, -bias / length) if length else (np.zeros_like(weights), 0.0)


def _accuracies(readings: Floats, codes: Integers) -> Floats:
    """Per layer, from readings ``(n_samples, n_targets, n_layers)``."""
    guesses = readings.argmax(axis=1) if readings.shape[1] > 1 else readings[:, 0] > 0
    return np.asarray((guesses == codes[:, None]).mean(axis=0))


def _aucs(readings: Floats, codes: Integers) -> Floats:
    """Chance that a sample of a class reads higher than one of the others; NaN where a fold lacks either."""
    targets = [1] if readings.shape[1] == 1 else range(readings.shape[1])
    curves = []
    for place, target in enumerate(targets):
        inside = codes == target
        ranks = pd.DataFrame(readings[:, place]).rank().to_numpy()[inside].sum(axis=0)
        n_inside, n_outside = inside.sum(), (~inside).sum()
        with np.errstate(invalid="ignore"):
            curves.append((ranks - n_inside * (n_inside + 1) / 2) / (n_inside * n_outside))
    return np.asarray(np.mean(curves, axis=0))


def _mean_auc(read: list[tuple[Floats, Integers]], n_layers: int) -> Floats:
    """Mean over the folds that have every class; where none has, as when one is left out, all readings are one fold."""
    curves = [curve for readings, codes in read if not np.isnan(curve := _aucs(readings, codes)).any()]
    if curves:
        return np.asarray(np.mean(curves, axis=0))
    if not read:
        return np.full(n_layers, np.nan)
    return _aucs(np.concatenate([readings for readings, _ in read]), np.concatenate([codes for _, codes in read]))


def _of_class(values: NDArray[Any], binary: bool) -> NDArray[Any]:
    return values[0] if binary else values
