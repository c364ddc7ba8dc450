"""`OptimisedDirection`: a direction found by gradient descent through the frozen model, trained with Lightning."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from steerkit.binary_classifier import Floats, Integers
from steerkit.checks import check_count, check_positive
from steerkit.exceptions import PromptError
from steerkit.hooks import edit
from steerkit.language_model import LanguageModel
from steerkit.lightning_training import train
from steerkit.likelihood import summed_log_likelihoods
from steerkit.prompts import split_pairs


class OptimisedDirection(BaseEstimator):
    """The direction that makes some completions likelier and others less likely when it is added, and vice versa.

    A learner for `SteeringEstimator`, whose texts must then be ``(prompt, completion)`` pairs: the completions of
    ``classes_[1]`` become likelier with a positive alpha, those of ``classes_[0]`` with a negative one. It needs the
    model, not only activations, so it is no classifier of its own, and no accuracy is cross-validated.

    Parameters
    ----------
    beta : float
        How soon a change of log-likelihood (nats per token) counts as enough.
    max_epochs, batch_size, learning_rate, weight_decay : int, int, float, float
        Of the training with AdamW, the step relative to the norm of the residual stream.
    random_state : int
    progress_bar : bool

    References
    ----------
    Cao et al. (2024), "Personalized Steering of Large Language Models: Versatile Steering Vectors Through
    Bi-directional Preference Optimization".
    """

    def __init__(
        self,
        *,
        beta: float = 4.0,
        max_epochs: int = 10,
        batch_size: int = 16,
        learning_rate: float = 0.02,
        weight_decay: float = 0.01,
        random_state: int = 0,
        progress_bar: bool = False,
    ) -> None:
        self.beta = beta
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state
        self.progress_bar = progress_bar

    def optimise(
        self, model: LanguageModel, texts: Sequence[Any], sides: Integers, layers: Sequence[int], norms: Floats
    ) -> Floats:
        """Return one direction per layer, ``(n_layers, hidden size)``; ``norms`` are those of the activations there."""
        if not all(isinstance(text, tuple) for text in texts):
            raise PromptError(
                "an optimised direction needs what is to become likelier; pass (prompt, completion) pairs as texts."
            )
        for name in ("max_epochs", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("beta", "learning_rate"):
            check_positive(name, getattr(self, name))
        check_positive("weight_decay", self.weight_decay, zero=True)
        prompts, completions = split_pairs(texts)
        heads, rows = model.encode(prompts), model.encode(prompts, completions)
        samples = [(row, len(head), float(2 * side - 1)) for row, head, side in zip(rows, heads, sides, strict=True)]
        chance, found = np.random.default_rng(self.random_state), []
        frozen = [(parameter, parameter.requires_grad) for parameter in model.model.parameters()]
        with model.held():
            try:
                for parameter, _ in frozen:
                    parameter.requires_grad_(requires_grad=False)
                for layer, norm in zip(layers, norms, strict=True):
                    module = _Training(model, layer, float(norm), self)
                    batches = _Batches(samples, self.batch_size, chance)
                    train(
                        module, batches, max_epochs=self.max_epochs, progress_bar=self.progress_bar,
                        seed=self.random_state,
                    )  # fmt: skip
                    found.append(module.vector.detach().double().numpy())
            finally:
                for parameter, required in frozen:
                    parameter.requires_grad_(required)
        return np.stack(found)


class _Batches:
    """The samples, shuffled anew in each epoch."""

    def __init__(self, samples: list[tuple[list[int], int, float]], size: int, chance: np.random.Generator) -> None:
        self.samples, self.size, self.chance = samples, size, chance

    def __len__(self) -> int:
        return -(-len(self.samples) // self.size)

    def __iter__(self) -> Any:
        order = self.chance.permutation(len(self.samples))
        for start in range(0, len(order), self.size):
            yield [self.samples[index] for index in order[start : start + self.size]]


class _Training(LightningModule):
    """Learn ``vector``, in units of the norm, so that adding it favours one side and subtracting it the other."""

    def __init__(self, model: LanguageModel, layer: int, norm: float, options: OptimisedDirection) -> None:
        super().__init__()
        self.language_model = [model]  # in a list, so that Lightning neither moves nor trains it
        self.layer, self.norm, self.options = layer, norm, options
        chance = torch.Generator().manual_seed(options.random_state)
        start = torch.randn(model.hidden_size, generator=chance) / model.hidden_size**0.5
        self.vector = nn.Parameter(0.01 * start)

    def training_step(self, batch: list[tuple[list[int], int, float]]) -> Tensor:
        """Loss of a batch: the vector is added to half of the samples and subtracted from the others."""
        with torch.no_grad():
            before = self._likelihoods(batch, None)
        signs = (2 * torch.randint(2, (len(batch),)) - 1).float()
        wanted = signs * torch.tensor([side for _, _, side in batch])
        gained = self._likelihoods(batch, signs) - before
        return -logsigmoid(self.options.beta * wanted * gained).mean()

    def _likelihoods(self, batch: list[tuple[list[int], int, float]], signs: Tensor | None) -> Tensor:
        """Nats per token of each completion."""
        (model,) = self.language_model
        rows, starts = [row for row, _, _ in batch], [start for _, start, _ in batch]
        edits = [] if signs is None else [(self.layer, partial(self._add, signs=signs))]
        with edit(model.blocks, edits):
            sums = summed_log_likelihoods(model, rows, starts).cpu()
        return sums / torch.tensor([len(row) - start for row, start in zip(rows, starts, strict=True)])

    def _add(self, hidden: Tensor, *, signs: Tensor) -> Tensor:
        step = self.norm * signs[:, None, None] * self.vector
        return hidden + step.to(hidden.device, hidden.dtype)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as in the paper."""
        return torch.optim.AdamW([self.vector], lr=self.options.learning_rate, weight_decay=self.options.weight_decay)
