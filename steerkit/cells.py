"""The cells of a sweep: one steered answer each, generated and measured a batch at a time, in any process."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.cell_store import digest
from steerkit.decoding import generate_rows
from steerkit.fingerprint import digest_weights
from steerkit.language_model import LanguageModel
from steerkit.likelihood import question_likelihoods
from steerkit.metrics import distinct_2
from steerkit.prompts import Prompt
from steerkit.reading import EffectReader


@dataclass(frozen=True)
class Cell:
    """What is to be answered, and what is added to the residual stream meanwhile."""

    direction: str
    layer: int
    alpha: float
    prompt: int
    step: NDArray[np.float32] | None = None
    """``(hidden size,)``; None where the answer is unsteered."""
    wording: str = "{prompt}"
    """What is asked instead of the prompt."""


@dataclass(frozen=True)
class Bench:
    """Everything that the cells of a sweep share; it travels to the workers."""

    model: LanguageModel
    reader: EffectReader
    prompts: list[Prompt]
    distractors: list[Prompt]
    generation: dict[str, Any] = field(default_factory=dict)
    random_state: int = 0

    @cached_property
    def sampled(self) -> bool:
        """Whether the answers are drawn by chance."""
        return bool(self.model.generation_config(1, **self.generation).do_sample)

    def asked(self, cell: Cell) -> Prompt:
        """Return what the model is asked."""
        prompt = self.prompts[cell.prompt]
        return prompt if cell.wording == "{prompt}" else cell.wording.replace("{prompt}", str(prompt))

    def digests(self, cells: Sequence[Cell]) -> list[str]:
        """Name each cell by all that its content depends on."""
        encode = self.model.encode
        shared = {
            "format": 2,
            "seed": self.random_state if self.sampled else None,
            "model": self.model.fingerprint.to_dict(),
            "weights": digest_weights(self.model.model),
            "reader": self.reader.digest(),
            "candidates": sorted(encode([*self.prompts, *self.distractors])),
            "generation": {name: repr(value) for name, value in self.generation.items()},
        }
        common = digest(shared)
        asked = encode([self.asked(cell) for cell in cells])
        places = encode(self.prompts)
        return [
            digest({
                "shared": common,
                "asked": sequence,
                "prompt": places[cell.prompt],
                "layer": cell.layer,
                "step": None if cell.step is None else hashlib.sha256(cell.step.tobytes()).hexdigest(),
            })
            for cell, sequence in zip(cells, asked, strict=True)
        ]  # fmt: skip

    def run(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        """Generate and measure one batch: ``text``, ``reading``, ``margin``, ``nll``, ``distinct_2`` of each cell.

        An empty answer has neither margin nor nll: they are None.
        """
        texts = self._generate(cells)
        pairs = list(dict.fromkeys((cell.prompt, text) for cell, text in zip(cells, texts, strict=True)))
        asked, answers = [self.prompts[prompt] for prompt, _ in pairs], [text for _, text in pairs]
        readings = self.reader.read(answers)
        own, best_other = question_likelihoods(self.model, asked, answers, [*self.prompts, *self.distractors])
        measured = {
            pair: {"reading": float(reading), "margin": _number(mine - other), "nll": _number(-mine)}
            for pair, reading, mine, other in zip(pairs, readings, own, best_other, strict=True)
        }
        return [
            {"text": text, **measured[cell.prompt, text], "distinct_2": distinct_2(text)}
            for cell, text in zip(cells, texts, strict=True)
        ]

    def _generate(self, cells: Sequence[Cell]) -> list[str]:
        return generate_rows(
            self.model, self.model.encode([self.asked(cell) for cell in cells]), [cell.layer for cell in cells],
            [cell.step for cell in cells], seeds=self._seeds(cells) if self.sampled else None, **self.generation,
        )  # fmt: skip

    def _seeds(self, cells: Sequence[Cell]) -> list[int]:
        """One per prompt, so that the answers to it differ by what is added to the residual stream, not by chance."""
        names = [f"{self.random_state}/{self.prompts[cell.prompt]}" for cell in cells]
        return [int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) for name in names]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
