"""Many small quadratic problems under an L1 penalty, solved together: what a Newton step of a sparse probe asks for."""

import torch
from torch import Tensor

ROUNDS, GUESSES = 4, 6
"""Most rounds, and guesses at the signs in each."""


class Lasso:
    """Minimise ``gradient @ (w - start) + (w - start) @ hessian @ (w - start) / 2 + penalty * |w|_1``, many at once.

    All are ``(n_problems, n_features)``, the Hessian has one more axis; only ``permitted`` weights are other than zero.
    """

    def __init__(self, hessian: Tensor, gradient: Tensor, start: Tensor, penalty: Tensor, permitted: Tensor) -> None:
        self.hessian, self.start, self.penalty, self.permitted = hessian, start, penalty, permitted
        self.target = (hessian @ start[..., None])[..., 0] - gradient
        self.diagonal = hessian.diagonal(dim1=1, dim2=2).clamp(min=1e-12)

    def solve(self) -> Tensor:
        """Return the weights: exact where a guess at the signs confirms itself, elsewhere nearer than ``start``."""
        weights, left = self.start.clone(), torch.arange(len(self.start), device=self.start.device)
        for number in range(ROUNDS):
            if number:
                weights[left] = self._sweep(weights[left], left)
            exact, confirmed = self._guess(weights[left], left)
            weights[left[confirmed]], left = exact[confirmed], left[~confirmed]
            if not len(left):
                break
        return weights

    def _guess(self, weights: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        """Guess which weights are other than zero and their signs, solve for them, guess again.

        Where a guess confirms itself, its solution is exact; the second result says where (a primal-dual active set,
        Hintermüller, Ito & Kunisch 2002).
        """
        exact, confirmed = weights.clone(), torch.zeros(len(problems), dtype=torch.bool, device=weights.device)
        places, guess = torch.arange(len(problems), device=weights.device), torch.full_like(weights, torch.nan)
        whole = (self.hessian, self.diagonal, self.target, self.penalty, self.permitted)
        hessian, diagonal, target, penalty, permitted = (part[problems] for part in whole)
        for _ in range(GUESSES):
            slope = (hessian @ weights[..., None])[..., 0] - target
            aim = weights - slope / diagonal
            fresh = torch.where((aim.abs() > penalty / diagonal) & permitted, aim.sign(), 0.0)
            if (same := (fresh == guess).all(dim=1)).any():
                exact[places[same]], confirmed[places[same]] = weights[same], True
                if same.all():
                    break
                parts = (hessian, diagonal, target, penalty, permitted, fresh, places)
                hessian, diagonal, target, penalty, permitted, fresh, places = (part[~same] for part in parts)
            guess, active = fresh, fresh != 0
            system = hessian * (active[:, :, None] & active[:, None])
            system.diagonal(dim1=1, dim2=2).add_(torch.where(active, 1e-12 * diagonal, 1.0))
            factors, failed = torch.linalg.cholesky_ex(system)
            factors[failed > 0] = torch.eye(system.shape[1], dtype=system.dtype, device=system.device)
            wanted = torch.where(active, target - penalty * guess, 0.0)
            weights = torch.cholesky_solve(wanted[..., None], factors)[..., 0]
            guess[failed > 0] = torch.nan
        return exact, confirmed

    def _sweep(self, weights: Tensor, problems: Tensor) -> Tensor:
        """Descend along one coordinate after the other, which always comes nearer."""
        weights, hessian, diagonal = weights.clone(), self.hessian[problems], self.diagonal[problems]
        gradient = (hessian @ weights[..., None])[..., 0] - self.target[problems]
        thresholds, permitted = self.penalty[problems] / diagonal, self.permitted[problems]
        for j in range(weights.shape[1]):
            proposal = weights[:, j] - gradient[:, j] / diagonal[:, j]
            new = proposal.sign() * (proposal.abs() - thresholds[:, j]).clamp(min=0) * permitted[:, j]
            gradient += hessian[:, :, j] * (new - weights[:, j])[:, None]
            weights[:, j] = new
        return weights
