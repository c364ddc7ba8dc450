"""The edits of a residual stream, as pure functions of tensors.

``hidden`` is ``(batch, sequence, hidden size)`` in the model's dtype and comes back in that dtype. ``direction``
is a unit vector ``(hidden size,)`` or one per row ``(rows, hidden size)``. ``amount`` is a number or one per
row ``(rows,)``; when generation widens the batch (beams, several return sequences), each row's edit is repeated.
"""

from typing import Protocol

import torch
from torch import Tensor


class Operation(Protocol):
    """What `add`, `ablate` and `clamp` have in common."""

    def __call__(self, hidden: Tensor, direction: Tensor, amount: Tensor) -> Tensor:
        """Return the edited residual stream."""
        ...


def add(hidden: Tensor, direction: Tensor, amount: Tensor) -> Tensor:
    """Add ``amount`` times the direction (Turner et al. 2023, "Activation Addition")."""
    direction, amount = _broadcast(hidden, direction, amount)
    return hidden + (amount * direction).to(hidden.dtype)


def ablate(hidden: Tensor, direction: Tensor, amount: Tensor) -> Tensor:
    """Remove the share ``amount`` of the projection on the direction (Arditi et al. 2024); 1 removes all of it."""
    direction, amount = _broadcast(hidden, direction, amount)
    return hidden - (amount * _projection(hidden, direction) * direction).to(hidden.dtype)


def clamp(hidden: Tensor, direction: Tensor, amount: Tensor) -> Tensor:
    """Set the projection on the direction to ``amount`` at every position."""
    direction, amount = _broadcast(hidden, direction, amount)
    return hidden + ((amount - _projection(hidden, direction)) * direction).to(hidden.dtype)


OPERATIONS: dict[str, Operation] = {"add": add, "ablate": ablate, "clamp": clamp}


def _projection(hidden: Tensor, direction: Tensor) -> Tensor:
    """``(batch, sequence, 1)``, in float32 or better: bf16 sums would lose the small projections."""
    precise = torch.promote_types(hidden.dtype, torch.float32)
    return (hidden.to(precise) * direction.to(precise)).sum(dim=-1, keepdim=True)


def _broadcast(hidden: Tensor, direction: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """Bring both to the device of ``hidden`` and to shapes that broadcast over its positions."""
    direction, amount = direction.to(hidden.device), amount.to(hidden.device)
    if direction.ndim == 2:
        direction = _repeat(direction, len(hidden))[:, None, :]
    if amount.ndim == 1:
        amount = _repeat(amount, len(hidden))[:, None, None]
    return direction, amount


def _repeat(rows: Tensor, batch: int) -> Tensor:
    return rows if len(rows) == batch else rows.repeat_interleave(batch // len(rows), dim=0)
