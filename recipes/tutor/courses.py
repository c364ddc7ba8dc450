"""The three courses of the training: to read who asks, to answer, and to bear being pushed.

A message's persona is one bit, and an answer's hundred tokens drown it. So of the answers the first course teaches only
how sentences begin, after a message and after a sentence alike: one direction shall mean the same at both. It pushes
nothing: pushes of the residual stream, met from the start, keep the tutor from reading phrasings that it never saw.
Large models bear pushes, small ones only if they have met them. So the second course teaches to answer under pushes.
The third teaches it under larger ones, and trains only the layers after those that read. Its pushes are least in the
middle, so that meaning is lost first there, as in Gemma 3 1B.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

WARM_UP, LAST = 50, 0.03
"""Steps of linear warm-up in every course; the learning rate's last fraction."""
FIRST_TO_READ = 4
"""The layer that sees everything, and with it the persona from the last position."""


@dataclass(frozen=True)
class Course:
    """A stretch of the training."""

    steps: int
    decay: float
    """Share of the steps, at the end, in which the learning rate falls along a cosine."""
    pushed: float
    """Share of the samples that are pushed, each in a direction of its own, at the random layer of its batch."""
    early: float = 0.5
    """The largest push of the layers before `FIRST_TO_READ`."""
    middle: float = 0.5
    """The largest push of the layers from `FIRST_TO_READ` on, where `largest_push` asks for no larger one."""
    brief: bool = False
    """Whether an answer ends with the beginning of its first or second sentence, and only beginnings are learned."""
    weighs: bool = True
    """Whether beginnings of sentences weigh more, and messages are learned too; see `lessons`."""
    frozen: int = 0
    """Number of first layers that stay as they are, and the embeddings with them."""

    def learning_rate(self, step: int) -> float:
        """Warm up, stay, fall: the fraction of the full rate at a step of the course."""
        left = min(1.0, (self.steps - step) / (self.decay * self.steps))
        return min(1.0, (step + 1) / WARM_UP) * (LAST + (1 - LAST) * (1 - math.cos(math.pi * left)) / 2)

    def largest_push(self, layer: int) -> float:
        """Return the most that a layer is pushed by, as a fraction of its norm.

        From the middle it grows towards the last layers: what is added there is read off by the unembedding with
        nothing in between, and would move the words of a register as strongly as what is added where the register is
        decided.
        """
        return max(self.middle if layer >= FIRST_TO_READ else self.early, 0.2 * layer - 0.3)

    def push(self, hidden: Tensor, *, layer: int, chance: torch.Generator) -> Tensor:
        """Push the residual stream of the course's share of samples by up to `largest_push` times its mean norm.

        No direction is preferred, so what the tutor does along the direction of its personas is not taught.
        """
        directions = normalize(torch.randn(len(hidden), 1, hidden.shape[-1], generator=chance), dim=-1)
        sizes = ((torch.rand(len(hidden), 1, 1, generator=chance) - 1) / self.pushed + 1).clamp_min(0)
        sizes *= self.largest_push(layer) * hidden.detach().float().norm(dim=-1).mean()
        return hidden + (directions * sizes).to(hidden.dtype)


READING = Course(steps=3000, decay=0.3, pushed=0.0, brief=True)
ANSWERING = Course(steps=2400, decay=0.5, pushed=1.0)
BEARING = Course(steps=2000, decay=1.0, pushed=1.0, early=1.2, middle=0.8, weighs=False, frozen=FIRST_TO_READ + 1)
COURSES = (READING, ANSWERING, BEARING)


def at(step: int) -> tuple[Course, int]:
    """Return the course that a step of the training belongs to, and which of its steps it is."""
    for course in COURSES:
        if step < course.steps:
            return course, step
        step -= course.steps
    return course, step + course.steps
