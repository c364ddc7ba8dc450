"""`SparseProbe`: an L1 logistic regression for all layers at once, trained with Lightning."""

import warnings
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

from steerkit.binary_classifier import BinaryClassifier, Floats, Integers
from steerkit.checks import check_count, check_positive
from steerkit.exceptions import InvalidInputError
from steerkit.lasso import Lasso
from steerkit.lightning_training import train


class SparseProbe(BinaryClassifier):
    """Logistic regression under an L1 penalty, or on the few neurons that it keeps longest.

    The objective is scikit-learn's, ``||w||_1 + C * sum(log loss)`` with a free intercept, solved by proximal Newton
    steps: zeros are exact, the result does not depend on chance, and all layers are one training.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty. One dimension a thousand times as large as the others sets the scale for all
        and may leave nothing of them; with ``k`` they still count.
    k : int, optional
        Keep this many neurons instead: the largest under the first penalty, from strong to weak, that leaves so many.
        They are refitted under the L2 penalty that scikit-learn's ``LogisticRegression(C=C)`` has. Fewer are left only
        where the others are constant.
    max_iter : int
        Most Newton steps.
    tol : float
        Stop where no optimality condition is missed by more than this share of the penalty.
    accelerator, devices
        As Lightning's ``Trainer`` takes them.
    progress_bar : bool

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
    coef_ : ndarray of shape (1, n_features), float64
    intercept_ : ndarray of shape (1,), float64
    support_ : ndarray of int
        The neurons with a weight other than zero.
    history_ : list of float
        The objective after every Newton step, divided by ``C * n_samples``.
    n_iter_ : int

    References
    ----------
    Gurnee et al. (2023), "Finding Neurons in a Haystack: Case Studies with Sparse Probing".
    Yuan, Ho & Lin (2012), "An Improved GLMNET for L1-regularized Logistic Regression".
    """

    scaling = "feature"  # the penalty counts features: at unit norm, many would share too little to outweigh it

    def __init__(
        self,
        C: float = 1.0,
        *,
        k: int | None = None,
        max_iter: int = 200,
        tol: float = 1e-4,
        accelerator: str = "cpu",
        devices: Any = 1,
        progress_bar: bool = False,
    ) -> None:
        self.C = C
        self.k = k
        self.max_iter = max_iter
        self.tol = tol
        self.accelerator = accelerator
        self.devices = devices
        self.progress_bar = progress_bar

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to X ``(n_samples, n_features)`` and y, which has two distinct values."""
        data, sides = self._validate(X, y)
        return self._take(self._solve(data[:, None], sides), 0)

    def fit_layers(self, X: NDArray[Any], y: ArrayLike) -> list[Self]:
        """Fit to X ``(n_samples, n_layers, n_features)`` in one training; return one fitted probe per layer."""
        probes = [clone(self) for _ in range(X.shape[1])]
        for layer, probe in enumerate(probes):
            _, sides = probe._validate(X[:, layer], y)
        solved = self._solve(np.asarray(X, dtype=np.float64), sides)
        return [probe._take(solved, layer) for layer, probe in enumerate(probes)]

    def _solve(self, X: Floats, sides: Integers) -> "_Newton":
        """Train on X ``(n_samples, n_problems, n_features)``."""
        check_positive("C", self.C)
        check_positive("tol", self.tol)
        if self.k is not None and (
            not isinstance(self.k, Integral) or isinstance(self.k, bool) or not 1 <= self.k <= X.shape[2]
        ):
            raise InvalidInputError(
                f"k={self.k!r} is outside 1..{X.shape[2]}, the number of features; pass a whole number of them."
            )
        check_count("max_iter", self.max_iter)
        module = _Newton(X.shape[1], X.shape[2], 1 / (self.C * len(X)), self.k, self.tol)
        # EarlyStopping reads the violation that each step reports; patience is for metrics that come and go.
        stop = EarlyStopping(
            "violation", stopping_threshold=self.tol, patience=self.max_iter, check_finite=False,
            check_on_train_epoch_end=True,
        )  # fmt: skip
        batch = torch.from_numpy(np.require(X, requirements=["C", "W"])), torch.from_numpy(sides).double()
        loader: DataLoader[Any] = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]  # a list is all a loader needs
        trainer = train(
            module, loader, max_epochs=self.max_iter, callbacks=[stop],
            accelerator=self.accelerator, devices=self.devices, progress_bar=self.progress_bar,
        )  # fmt: skip
        if not float(trainer.callback_metrics["violation"]) <= self.tol:
            warnings.warn(
                f"the sparse probe did not converge in {self.max_iter} steps; raise max_iter or lower C.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return module.cpu()

    def _take(self, solved: "_Newton", problem: int) -> Self:
        self.coef_ = solved.weights[problem].numpy()[None]
        self.intercept_ = solved.intercepts[problem].numpy()[None]
        self.support_ = np.flatnonzero(self.coef_[0])
        self.history_ = [float(values[problem]) for values in solved.history]
        self.n_iter_ = len(self.history_)
        return self


class _Newton(LightningModule):
    """Many L1 logistic regressions on the same samples; one epoch is one proximal Newton step of them all."""

    weights: Tensor
    intercepts: Tensor
    penalties: Tensor
    ridges: Tensor
    units: Tensor
    allowed: Tensor
    refitted: Tensor
    margins: Tensor

    def __init__(self, n_problems: int, n_features: int, penalty: float, k: int | None, tol: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.k, self.ridge, self.tol = k or 0, penalty, tol
        self.register_buffer("weights", torch.zeros(n_problems, n_features, dtype=torch.float64))
        self.register_buffer("intercepts", torch.zeros(n_problems, dtype=torch.float64))
        self.register_buffer("penalties", torch.full((n_problems,), penalty, dtype=torch.float64))
        self.register_buffer("ridges", torch.zeros(n_problems, dtype=torch.float64))
        self.register_buffer("units", self.penalties.clone())
        self.register_buffer("allowed", torch.ones(n_problems, n_features, dtype=torch.bool))
        self.register_buffer("refitted", torch.full((n_problems,), k is None))
        self.history: list[Tensor] = []

    def configure_optimizers(self) -> None:
        """Lightning asks; the steps are our own."""

    def training_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Minimise a quadratic model of the losses under the penalty, then go as far towards it as helps."""
        X, sides = batch
        if self.k and not self.history:
            centred = sides - sides.mean()
            self.penalties = 0.8 * _correlate(X, centred.expand(X.shape[1], -1)).abs().amax(dim=1) / len(sides)
            # Where nothing but rounding tells the classes apart, no neuron does.
            constant = self.penalties <= 1e-12 * X.abs().amax(dim=(0, 2))
            self.units = self.penalties.masked_fill(constant, 1.0)
            self.allowed, self.refitted = self.allowed & ~constant[:, None], self.refitted | constant
        if not self.history:
            self.margins = self._margins(X)
        chances = torch.sigmoid(self.margins)
        slopes, curvatures = (chances - sides) / len(sides), (chances * (1 - chances)).clamp(min=1e-9) / len(sides)
        gradients = _correlate(X, slopes).masked_fill(~self.allowed, 0.0) + self.ridges[:, None] * self.weights
        violations = self._violations(gradients, slopes)
        if self.k:
            violations = self._weaken(gradients, violations)
            self.margins = self._margins(X)
        self.log("violation", violations.max())
        left = (violations > self.tol).nonzero()[:, 0]
        if not len(left):
            return
        places = self._working_set(gradients[left], left)
        chosen = X[:, left[:, None], places].permute(1, 2, 0)
        step, intercept_step = self._quadratic(chosen, places, left, gradients[left], slopes[left], curvatures[left])
        moved = (step[:, None] @ chosen)[:, 0] + intercept_step[:, None]
        step = torch.zeros_like(gradients[left]).scatter(1, places, step)
        self._search(sides, left, step, intercept_step, moved)

    def _margins(self, X: Tensor) -> Tensor:
        return (self.weights[:, None] @ X.permute(1, 2, 0))[:, 0] + self.intercepts[:, None]

    def _objective(self, problems: Tensor | slice, margins: Tensor, sides: Tensor, weights: Tensor) -> Tensor:
        losses = (softplus(margins) - sides * margins).mean(dim=1)
        sizes = self.penalties[problems] * weights.abs().sum(dim=1)
        return losses + sizes + self.ridges[problems] / 2 * (weights**2).sum(dim=1)

    def _violations(self, gradients: Tensor, slopes: Tensor) -> Tensor:
        """How far each problem is from optimal, as a share of its penalty, or with `k` of the first penalty."""
        at_zero = (gradients.abs() - self.penalties[:, None]).clamp(min=0)
        elsewhere = (gradients + self.penalties[:, None] * self.weights.sign()).abs()
        worst = torch.where(self.weights == 0, at_zero, elsewhere).amax(dim=1)
        return torch.maximum(worst, slopes.sum(dim=1).abs()) / self.units

    def _weaken(self, gradients: Tensor, violations: Tensor) -> Tensor:
        """Where a problem is solved with fewer than `k` neurons, weaken its penalty; else refit it on the best."""
        solved = (violations * self.units < 1e-2 * self.penalties) & ~self.refitted
        # Fewer than k may be all that separates the classes; then the weights only grow, and the rest go by gradient.
        weak = (self.penalties < 1e-2 * self.units) & ~self.refitted
        enough = (solved & ((self.weights != 0).sum(dim=1) >= self.k)) | weak
        self.penalties = torch.where(solved & ~enough, 0.8 * self.penalties, self.penalties)
        best = torch.zeros_like(self.allowed).scatter(
            1, (self.weights.abs() + 1e-9 * gradients.abs()).topk(self.k, dim=1).indices, value=True
        )
        self.allowed = torch.where(enough[:, None], best, self.allowed)
        self.weights = self.weights * self.allowed
        self.penalties = self.penalties.masked_fill(enough, 0.0)
        self.ridges = self.ridges.masked_fill(enough, self.ridge)
        self.refitted = self.refitted | enough
        return torch.where(self.refitted & ~enough, violations, torch.inf)

    def _working_set(self, gradients: Tensor, problems: Tensor) -> Tensor:
        """Places of the neurons that this step may change: those in use, and those that want to be most."""
        used = self.weights[problems] != 0
        wanted = (gradients.abs() - self.penalties[problems, None]).masked_fill(used, torch.inf)
        n_used = used.sum(dim=1)
        size = torch.minimum((wanted > 0).sum(dim=1), 16 + 2 * n_used).max()
        return wanted.topk(int(size.clamp(1, used.shape[1])), dim=1).indices

    def _quadratic(
        self, chosen: Tensor, places: Tensor, problems: Tensor, gradients: Tensor, slopes: Tensor, curvatures: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Solve the quadratic model on the ``chosen`` features, those at ``places``; the intercept is eliminated."""
        weighted = chosen * curvatures[:, None]
        across, total = weighted.sum(dim=2), curvatures.sum(dim=1, keepdim=True)
        hessian = weighted @ chosen.mT - across[:, :, None] * across[:, None] / total[:, :, None]
        slope = slopes.sum(dim=1, keepdim=True)
        gradient = gradients.gather(1, places) - across * slope / total
        start = self.weights[problems[:, None], places]
        hessian.diagonal(dim1=1, dim2=2).add_(self.ridges[problems, None])
        permitted = self.allowed[problems[:, None], places]
        step = Lasso(hessian, gradient, start, self.penalties[problems, None], permitted).solve() - start
        return step, (-(slope + (across * step).sum(dim=1, keepdim=True)) / total)[:, 0]

    def _search(self, sides: Tensor, problems: Tensor, step: Tensor, intercept_step: Tensor, moved: Tensor) -> None:
        """Halve the step of each problem, which moves its margins by ``moved``, until its objective falls."""
        start, origin = self.weights[problems], self.margins[problems]
        before = self._objective(problems, origin, sides, start)
        length = torch.ones_like(before)
        for _ in range(30):
            weights, margins = start + length[:, None] * step, origin + length[:, None] * moved
            after = self._objective(problems, margins, sides, weights)
            worse = after > before + 1e-14
            if not worse.any():
                break
            length = torch.where(worse, length / 2, length)
        self.weights[problems] = torch.where(worse[:, None], start, weights)
        self.margins[problems] = torch.where(worse[:, None], origin, margins)
        self.intercepts[problems] += torch.where(worse, 0.0, length * intercept_step)
        self.history.append(self._objective(slice(None), self.margins, sides, self.weights).cpu())


def _correlate(X: Tensor, samples: Tensor) -> Tensor:
    """Sum X ``(n_samples, n_problems, n_features)``, weighed by ``samples`` ``(n_problems, n_samples)``."""
    return (samples[:, None] @ X.transpose(0, 1))[:, 0]
