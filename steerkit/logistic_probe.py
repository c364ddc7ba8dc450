"""`LogisticProbe`: logistic regression for all layers and folds, from one Gram matrix per layer."""

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import assert_all_finite
from torch import Tensor
from torch.nn.functional import softplus

from steerkit.binary_classifier import BinaryClassifier, Floats, Integers
from steerkit.checks import check_count, check_positive

INEXACT, ROUNDS = 0.1, 200
"""What a step leaves of the gradient of its quadratic model, and most rounds in which it gets there."""
ROUNDING = 1e-13
"""The share of the objective by which a step must lower it to be more than rounding."""
FAR = 1e-6
"""The share of its first length that a gradient must fall below, if rounding ends the steps, to be at the optimum."""
TINY = 1e-300
AT_ONCE = 2**20
"""Most numbers, of all samples, layers and subsets, that are solved for at once."""


class LogisticProbe(BinaryClassifier):
    """Logistic regression under an L2 penalty, the classes balanced: scikit-learn's optimum, by Newton steps.

    The objective is that of ``LogisticRegression(C, class_weight="balanced")``. A probe has fewer samples than
    features, so its weights are a combination of the samples, ``X.T @ beta``, and a Newton step looks for as many
    unknowns as there are samples. Layers, folds and bootstrap draws are solved together, by products with the Gram
    matrix of all samples.

    The classes are balanced because so strong a penalty, on activations of unit norm, leaves the intercept to outweigh
    the direction where one class is larger.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty.
    max_iter : int
        Most Newton steps.
    tol : float
        Stop where the gradient is shorter than this, for weights and intercept, or where only rounding is left of it.

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
    coef_ : ndarray of shape (1, n_features), float64
    intercept_ : ndarray of shape (1,), float64
    n_iter_ : int
        The most Newton steps of all that were fitted together.

    References
    ----------
    Alain & Bengio (2017), "Understanding Intermediate Layers Using Linear Classifier Probes".
    """

    def __init__(self, C: float = 1.0, *, max_iter: int = 100, tol: float = 1e-8) -> None:
        self.C = C
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to X ``(n_samples, n_features)`` and y, which has two distinct values."""
        data, sides = self._validate(X, y)
        ((weights,),), ((intercept,),) = self._solve(data[:, None], [(np.arange(len(data)), sides)])
        return self._take(weights, intercept)

    def fit_subsets(self, X: NDArray[Any], subsets: Sequence[tuple[Integers, Integers]]) -> list[list[Self]]:
        """Fit to each of several subsets of X ``(n_samples, n_layers, n_features)``.

        Parameters
        ----------
        subsets : sequence of (rows, y)
            Indices of samples, and their classes, 0 or 1; a sample that is drawn twice has one class.

        Returns
        -------
        list of lists
            For each subset, one fitted probe per layer.
        """
        X = np.asarray(X, dtype=np.float64)
        assert_all_finite(X, input_name="X")
        weights, intercepts = self._solve(X, subsets)
        fitted = []
        for (_, y), directions, cuts in zip(subsets, weights, intercepts, strict=True):
            probes = [clone(self) for _ in directions]
            for probe, direction, cut in zip(probes, directions, cuts, strict=True):
                probe.classes_, probe.n_features_in_, probe.n_iter_ = np.unique(y), X.shape[2], self.n_iter_
                probe._take(direction, cut)
            fitted.append(probes)
        return fitted

    def _solve(self, X: Floats, subsets: Sequence[tuple[Integers, Integers]]) -> tuple[Floats, Floats]:
        """Return weights ``(n_subsets, n_layers, n_features)`` and intercepts ``(n_subsets, n_layers)``."""
        check_positive("C", self.C)
        check_positive("tol", self.tol)
        check_count("max_iter", self.max_iter)
        layers, few = X.swapaxes(0, 1), X.shape[0] <= X.shape[2]
        # NumPy computes but half of such a product.
        kernel = _Kernel(torch.from_numpy(np.stack([x @ x.T if few else x for x in layers])), formed=few)
        costs, sides = np.zeros((2, len(subsets), len(X)))
        for number, (rows, y) in enumerate(subsets):
            share = np.mean(y)
            each = self.C * np.where(y > 0, 0.5 / share, 0.5 / (1 - share))
            np.add.at(costs[number], rows, each)  # a bootstrap draws some twice
            sides[number, rows] = y
        self.n_iter_, at_once = 0, max(1, AT_ONCE // (len(layers) * len(X)))
        parts = zip(torch.from_numpy(costs).split(at_once), torch.from_numpy(sides).split(at_once), strict=True)
        duals, intercepts, arrived = zip(*(self._newton(kernel, *part) for part in parts), strict=True)
        if not all(arrived):
            warnings.warn(
                f"the probe did not converge in {self.n_iter_} steps; raise max_iter or lower C.",
                ConvergenceWarning,
                stacklevel=3,
            )
        weights = [dual @ x for dual, x in zip(torch.cat(duals, dim=1).numpy(), layers, strict=True)]
        return np.stack(weights, axis=1), torch.cat(intercepts, dim=1).numpy().swapaxes(0, 1)

    def _newton(self, kernel: "_Kernel", costs: Tensor, sides: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Minimise, for all layers and the subsets of these costs and sides, both ``(n_subsets, n_samples)``.

        Returns beta ``(n_layers, n_subsets, n_samples)``, intercepts ``(n_layers, n_subsets)`` and whether all are
        there. At the optimum beta is minus the gradient of the losses by the margins, and sums to zero; where a sample
        costs nothing, it is zero.
        """
        live = torch.arange(len(kernel))  # the layers that are not there yet
        duals, intercepts = torch.zeros(len(live), *costs.shape).double(), torch.zeros(len(live), len(costs)).double()
        dual, intercept, ahead = duals.clone(), intercepts.clone(), duals.clone()  # ahead: the kernel times beta
        value = self._objective(dual, ahead, intercept, costs, sides)
        before, stalled = torch.full_like(intercept, torch.inf), torch.zeros_like(intercept, dtype=torch.bool)
        arrived, first = True, before
        for step in range(1, self.max_iter + 1):
            chances = torch.sigmoid(ahead + intercept[..., None])
            slopes, curvatures = costs * (chances - sides), costs * chances * (1 - chances)
            residual = dual + slopes
            lengths = (residual * kernel(residual)).sum(dim=2).clamp(min=0).sqrt()
            misses = torch.maximum(lengths, slopes.sum(dim=2).abs())
            first = misses if step == 1 else first
            # Where steps gain nothing and the gradient stays as it is, only rounding is left of it.
            done = ((misses <= self.tol) | (stalled & (misses > before / 2))).all(dim=1)
            if done.any():
                arrived &= bool((misses[done] <= (FAR * first[done]).clamp(min=self.tol)).all())
                duals[live[done]], intercepts[live[done]] = dual[done], intercept[done]
                if done.all():
                    return duals, intercepts, arrived
                state = (live, first, dual, intercept, ahead, value, residual, misses, slopes, curvatures)
                live, first, dual, intercept, ahead, value, residual, misses, slopes, curvatures = (
                    part[~done] for part in state
                )
                kernel = kernel[~done]
            before = misses
            change, ahead_change, shift = _step(kernel, residual, slopes, curvatures)
            size = torch.ones_like(intercept)
            for _ in range(30):  # halve the step of the problems where it goes too far
                scale = size[..., None]
                tried = dual + scale * change, ahead + scale * ahead_change, intercept + size * shift
                fresh = self._objective(*tried, costs, sides)
                good = fresh <= value + 1e-12 * value.abs()
                if good.all():
                    break
                size = torch.where(good, size, size / 2)
            stalled = ~(value - fresh > ROUNDING * value.abs())
            start = (dual, ahead, intercept, value)
            dual, ahead, intercept, value = (
                torch.where(good if new.ndim == 2 else good[..., None], new, old)
                for new, old in zip((*tried, fresh), start, strict=True)
            )
            self.n_iter_ = max(self.n_iter_, step)
        duals[live], intercepts[live] = dual, intercept
        return duals, intercepts, False

    @staticmethod
    def _objective(dual: Tensor, ahead: Tensor, intercept: Tensor, costs: Tensor, sides: Tensor) -> Tensor:
        margins = ahead + intercept[..., None]
        return (dual * ahead).sum(dim=2) / 2 + (costs * (softplus(margins, threshold=500) - sides * margins)).sum(dim=2)

    def _take(self, weights: Floats, intercept: float) -> Self:
        self.coef_ = weights[None].copy()  # a view would keep the weights of all folds
        self.intercept_ = np.array([intercept])
        return self


class _Kernel:
    """Inner products of the samples in each layer, ``(n_layers, n_samples, n_samples)``.

    They are formed where samples are few; where they outnumber their features, ``(n_layers, n_samples, n_features)``
    does the same.
    """

    def __init__(self, matrices: Tensor, *, formed: bool) -> None:
        self.matrices, self.formed = matrices, formed

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, layers: Tensor) -> "_Kernel":
        return _Kernel(self.matrices[layers], formed=self.formed)

    def __call__(self, vectors: Tensor) -> Tensor:
        return vectors @ self.matrices if self.formed else vectors @ self.matrices @ self.matrices.mT


def _step(kernel: _Kernel, residual: Tensor, slopes: Tensor, curvatures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the Newton step by conjugate gradients in the space of the weights, from which the intercept is eliminated.

    Returns the step of beta, the kernel times it, and the step of the intercept.
    """
    total = curvatures.sum(dim=2, keepdim=True).clamp(min=TINY)
    rest = curvatures * (slopes.sum(dim=2, keepdim=True) / total) - residual
    rest_ahead = kernel(rest)
    length = (rest * rest_ahead).sum(dim=2, keepdim=True).clamp(min=0)
    goal = INEXACT**2 * length
    direction, direction_ahead = rest, rest_ahead
    change, ahead = torch.zeros_like(rest), torch.zeros_like(rest)
    for _ in range(ROUNDS):
        weighted = curvatures * direction_ahead
        image = direction + weighted - curvatures * (weighted.sum(dim=2, keepdim=True) / total)
        bend = (image * direction_ahead).sum(dim=2, keepdim=True)
        # Those that are there, or whose direction is rounding, wait for the others.
        size = torch.where((length > goal) & (bend > 0), length / bend.clamp(min=TINY), 0.0)
        change, ahead = change + size * direction, ahead + size * direction_ahead
        rest = rest - size * image
        rest_ahead, before = kernel(rest), length
        length = (rest * rest_ahead).sum(dim=2, keepdim=True).clamp(min=0)
        if ((length <= goal) | (size == 0)).all():
            break
        turn = length / before.clamp(min=TINY)
        direction, direction_ahead = rest + turn * direction, rest_ahead + turn * direction_ahead
    return change, ahead, -(slopes + curvatures * ahead).sum(dim=2) / total[..., 0]
