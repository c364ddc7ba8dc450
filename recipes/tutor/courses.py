"""The two courses of the training: first to read who asks and to answer, then to bear being pushed.

Large models bear pushes of the residual stream, small ones only if they have met them. Met by every sample from the
start, they keep the tutor from reading phrasings that it never saw. So the first course leaves half of the samples
alone, and the second pushes all of them but trains only the layers after those that read.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

WARM_UP, LAST = 50, 0.03
"""Steps of linear warm-up in either course; the learning rate's last fraction."""
FIRST_TO_READ = 3
"""The first layer that sees everything, and with it the persona from the last position."""


@dataclass(frozen=True)
class Course:
    """A stretch of the training."""

    steps: int
    decay: float
    """Share of the steps, at the end, in which the learning rate falls along a cosine."""
    pushed: float
    """Share of the samples that are pushed, each in a direction of its own, at the random layer of its batch."""
    middle: float
    """The largest push of the layers from `FIRST_TO_READ` on, where `largest_push` asks for no larger one."""
    weighs: bool
    """Whether the beginnings of sentences weigh more; see `lessons`."""
    frozen: int = 0
    """Number of first layers that stay as they are, and the embeddings with them."""

    def learning_rate(self, step: int) -> float:
        """Warm up, stay, fall: the fraction of the full rate at a step of the course."""
        left = min(1.0, (self.steps - step) / (self.decay * self.steps))
        return min(1.0, (step + 1) / WARM_UP) * (LAST + (1 - LAST) * (1 - math.cos(math.pi * left)) / 2)

    def largest_push(self, layer: int) -> float:
        """Return the most that a layer is pushed by, as a fraction of its norm.

        It grows towards the last layers: what is added there is read off by the unembedding with nothing in between,
        and would move the words of a register as strongly as what is added where the register is decided.
        """
        return max(self.middle if layer >= FIRST_TO_READ else 0.5, 0.2 * layer - 0.3)

    def push(self, hidden: Tensor, *, layer: int, chance: torch.Generator) -> Tensor:
        """Push the residual stream of the course's share of samples by up to `largest_push` times its mean norm.

        No direction is preferred, so what the tutor does along the direction of its personas is not taught.
        """
        directions = normalize(torch.randn(len(hidden), 1, hidden.shape[-1], generator=chance), dim=-1)
        sizes = ((torch.rand(len(hidden), 1, 1, generator=chance) - 1) / self.pushed + 1).clamp_min(0)
        sizes *= self.largest_push(layer) * hidden.detach().float().norm(dim=-1).mean()
        return hidden + (directions * sizes).to(hidden.dtype)


READING = Course(steps=3300, decay=0.4, pushed=0.5, middle=0.5, weighs=True)
BEARING = Course(steps=1500, decay=1.0, pushed=1.0, middle=0.8, weighs=False, frozen=FIRST_TO_READ + 1)
STEPS = READING.steps + BEARING.steps


def at(step: int) -> tuple[Course, int]:
    """Return the course that a step of the training belongs to, and which of its steps it is."""
    return (READING, step) if step < READING.steps else (BEARING, step - READING.steps)
