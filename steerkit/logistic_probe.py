"""`LogisticProbe`: logistic regression for all layers and folds, from one Gram matrix per layer."""

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn.functional import softplus

from steerkit.binary_classifier import BinaryClassifier, Floats, Integers
from steerkit.checks import check_count, check_positive

STALE = 0.3
"""What a step must leave of the gradient at most, if the next is to do with the same factors."""
TAME = 1e3
"""The largest curvature, beside the one that the penalty adds to all, at which single precision finds a step."""
ROUNDING = 1e-13
"""The share of the objective by which a step must lower it to be more than rounding."""


class LogisticProbe(BinaryClassifier):
    """Logistic regression under an L2 penalty, the classes balanced: scikit-learn's optimum, by Newton steps.

    The objective is that of ``LogisticRegression(C, class_weight="balanced")``. A probe has fewer samples than
    features, so its weights are a combination of the samples, ``X.T @ beta``, and a Newton step solves for as many
    unknowns as there are samples. Layers are solved together, and folds share the Gram matrix of all samples.

    The classes are balanced because so strong a penalty, on activations of unit norm, leaves the intercept to outweigh
    the direction where one class is larger.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty.
    max_iter : int
        Most Newton steps.
    tol : float
        Stop where the gradient is shorter than this, for weights and intercept.

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
    coef_ : ndarray of shape (1, n_features), float64
    intercept_ : ndarray of shape (1,), float64
    n_iter_ : int

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
            Indices of samples, and their classes, 0 or 1.

        Returns
        -------
        list of lists
            For each subset, one fitted probe per layer.
        """
        weights, intercepts = self._solve(np.asarray(X, dtype=np.float64), subsets)
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
        layers, wide = X.swapaxes(0, 1), X.shape[0] <= X.shape[2]
        # NumPy computes but half of such a product, and needs no copy of the layer.
        gram = torch.from_numpy(np.stack([one @ one.T if wide else one for one in layers]))
        shares = torch.zeros(len(layers), len(X), len(subsets), dtype=torch.float64)
        intercepts, self.n_iter_ = [], 0
        for number, (rows, sides) in enumerate(subsets):
            at = torch.from_numpy(rows)
            kernel = _Gram(gram[:, at[:, None], at]) if wide else _Products(gram[:, at])
            dual, intercept = self._newton(kernel, torch.from_numpy(sides).double())
            shares[..., number].index_add_(1, at, dual)  # a bootstrap draws some samples twice
            intercepts.append(intercept.numpy())
        weights = [one.T @ share for one, share in zip(layers, shares.numpy(), strict=True)]
        return np.moveaxis(np.stack(weights), 2, 0), np.stack(intercepts)

    def _newton(self, kernel: "_Gram | _Products", sides: Tensor) -> tuple[Tensor, Tensor]:
        """Minimise, for all layers at once; return ``beta`` ``(n_layers, n_samples)`` and intercepts ``(n_layers,)``.

        At the optimum beta is minus the gradient of the losses by the margins, and sums to zero.
        """
        share = sides.mean()
        costs = self.C * torch.where(sides > 0, 0.5 / share, 0.5 / (1 - share))
        live = torch.arange(len(kernel))  # the layers that are not there yet
        duals, intercepts = torch.zeros(len(live), len(sides)).double(), torch.zeros(len(live)).double()
        dual, intercept, ahead = duals.clone(), intercepts.clone(), duals.clone()  # ahead: the kernel times beta
        value = self._objective(dual, ahead, intercept, costs, sides)
        stalled, before = torch.zeros(len(live), dtype=torch.bool), torch.full((len(live),), torch.inf).double()
        factors: tuple[Tensor, ...] | None = None
        for step in range(1, self.max_iter + 1):
            slopes = costs * (torch.sigmoid(ahead + intercept[:, None]) - sides)
            residual = dual + slopes
            product = kernel(residual)
            lengths = (residual * product).sum(dim=1).clamp(min=0).sqrt()
            misses = torch.maximum(lengths, slopes.sum(dim=1).abs())
            # Where steps gain nothing and the gradient stays as it is, only rounding is left of it.
            if (done := (misses <= self.tol) | (stalled & (misses > before / 2))).any():
                duals[live[done]], intercepts[live[done]] = dual[done], intercept[done]
                if done.all():
                    return duals, intercepts
                state = (live, dual, intercept, ahead, value, residual, product, misses, before)
                live, dual, intercept, ahead, value, residual, product, misses, before = (p[~done] for p in state)
                kernel, factors = kernel[~done], None if factors is None else tuple(part[~done] for part in factors)
            if factors is None or (misses > STALE * before).any():  # those of an earlier step serve while they help
                chances = torch.sigmoid(ahead + intercept[:, None])
                curvatures = costs * chances * (1 - chances)
                factor = kernel.factor(curvatures)
                factors = (curvatures, factor, kernel.solve(curvatures, kernel(curvatures), curvatures, factor))
            curvatures, factor, level = factors
            before = misses
            change = -kernel.solve(residual, product, curvatures, factor)
            shift = (dual + change).sum(dim=1) / level.sum(dim=1)
            change = change - shift[:, None] * level
            ahead_change, size = kernel(change), torch.ones_like(intercept)
            for _ in range(30):  # halve the step of the layers where it goes too far
                tried = (dual + size[:, None] * change, ahead + size[:, None] * ahead_change, intercept + size * shift)
                fresh = self._objective(*tried, costs, sides)
                worse = fresh > value + 1e-12 * value.abs()
                if not worse.any():
                    break
                size = torch.where(worse, size / 2, size)
            stalled = value - fresh <= ROUNDING * value.abs()
            (dual, ahead, intercept), value = tried, fresh
            self.n_iter_ = max(self.n_iter_, step)
        duals[live], intercepts[live] = dual, intercept
        warnings.warn(
            f"the probe did not converge in {self.max_iter} steps; raise max_iter or lower C.",
            ConvergenceWarning,
            stacklevel=4,
        )
        return duals, intercepts

    @staticmethod
    def _objective(dual: Tensor, ahead: Tensor, intercept: Tensor, costs: Tensor, sides: Tensor) -> Tensor:
        margins = ahead + intercept[:, None]
        return (dual * ahead).sum(dim=1) / 2 + (costs * (softplus(margins, threshold=500) - sides * margins)).sum(dim=1)

    def _take(self, weights: Floats, intercept: float) -> Self:
        self.coef_ = weights[None]
        self.intercept_ = np.array([intercept])
        return self


class _Gram:
    """Inner products of the samples, ``(n_layers, n_samples, n_samples)``, formed: cheap where samples are few."""

    def __init__(self, gram: Tensor) -> None:
        self.gram = gram

    def __len__(self) -> int:
        return len(self.gram)

    def __getitem__(self, layers: Tensor) -> "_Gram":
        return _Gram(self.gram[layers])

    def __call__(self, vectors: Tensor) -> Tensor:
        return (self.gram @ vectors[..., None])[..., 0]

    def factor(self, curvatures: Tensor) -> Tensor:
        """Return factors for `solve`, in single precision where the system is tame: the next step mends the rest."""
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        dtype = torch.float32 if (curvatures * diagonal).max() < TAME else torch.float64
        scales = curvatures.sqrt().to(dtype)
        system = self.gram.to(dtype) * scales[:, :, None] * scales[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(1.0)
        return torch.linalg.cholesky(system)

    def solve(self, vectors: Tensor, products: Tensor, curvatures: Tensor, factor: Tensor) -> Tensor:
        """Return the solution of ``(1 + curvatures * gram) x = vectors``; ``products`` are the matrix times these."""
        roots = curvatures.sqrt()
        inner = torch.cholesky_solve((roots * products).to(factor.dtype)[..., None], factor)
        return vectors - roots * inner[..., 0]


class _Products:
    """The same of samples ``(n_layers, n_samples, n_features)`` that outnumber their features: never formed."""

    def __init__(self, X: Tensor) -> None:
        self.X = X

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, layers: Tensor) -> "_Products":
        return _Products(self.X[layers])

    def __call__(self, vectors: Tensor) -> Tensor:
        return (self.X @ (self.X.mT @ vectors[..., None]))[..., 0]

    def factor(self, curvatures: Tensor) -> Tensor:
        """Return factors for `solve`."""
        system = self.X.mT @ (curvatures[..., None] * self.X)
        system.diagonal(dim1=1, dim2=2).add_(1.0)
        return torch.linalg.cholesky(system)

    def solve(self, vectors: Tensor, products: Tensor, curvatures: Tensor, factor: Tensor) -> Tensor:
        """Return the solution of ``(1 + curvatures * gram) x = vectors``; it needs no ``products``."""
        inner = torch.cholesky_solve(self.X.mT @ vectors[..., None], factor)
        return vectors - curvatures * (self.X @ inner)[..., 0]
