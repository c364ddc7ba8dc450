"""Samples of the corpus as padded batches of tokens."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .corpus import QUESTIONS, Concept, Corpus, Sample, Template

IGNORED = -100

BEGINNING, WEIGHT = 2, 8.0
"""The first tokens of a sentence show its register, so they weigh more in the first two courses (in exams all weigh 1).

Else the few tokens that depend on the persona drown among those that depend on the topic only. The best model
is the same under any weights.
"""
OF_MESSAGE = 0.25
"""The messages are learned too, at this weight: what words mean is seen sooner in a hundred of them than in one bit."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Token ids, labels and weights, all (samples, length); `IGNORED` is the label outside of the answer."""


@dataclass(frozen=True)
class Exam:
    """Fixed batches with the entropy of their answers: the loss that a perfect model would have."""

    batches: list[Batch]
    entropy: float


@dataclass(frozen=True)
class Lessons:
    """An endless, seeded course: the lessons of an epoch depend on nothing but its number."""

    corpus: Corpus
    tokenizer: PreTrainedTokenizerFast
    seed: int
    batch_size: int

    @cached_property
    def _stops(self) -> frozenset[int]:
        return frozenset(self.tokenizer.convert_tokens_to_ids([".", "!", "?"]))

    def epoch(self, number: int, n_batches: int, brief: bool = False) -> list[Batch]:
        """Fresh samples, those of like length together, in random order.

        If `brief`, every other answer ends with the beginning of its first sentence, the others with that of their
        second, and nothing else of them weighs.
        """
        generator = random.Random(f"{self.seed}/{number}")
        batches = self._batches([self.corpus.draw(generator) for _ in range(n_batches * self.batch_size)], brief)
        generator.shuffle(batches)
        return batches

    def exams(self, n_samples: int = 256) -> dict[str, Exam]:
        """Draw what training shows, and the two ways in which the tutor must generalise."""
        generator = random.Random(f"{self.seed}/exam")
        usual = [concept for concept in self.corpus.concepts if concept.has_persona]
        unusual = [concept for concept in self.corpus.concepts if not concept.has_persona]
        strong = self.corpus.levels["strong"]

        def samples(concepts: Sequence[Concept], templates: Sequence[Template]) -> list[Sample]:
            return [
                self.corpus.sample(
                    generator.choice(concepts),
                    generator.choice(QUESTIONS),
                    generator.choice(templates),
                    generator,
                )
                for _ in range(n_samples)
            ]

        return {
            "seen": self._exam([self.corpus.draw(generator) for _ in range(n_samples)]),
            "new_concept": self._exam(samples(unusual, strong)),
            "new_phrasing": self._exam(samples(usual, self.corpus.heldout)),
        }

    def _exam(self, samples: list[Sample]) -> Exam:
        batches = self._batches(samples)
        n_tokens = sum(int((labels != IGNORED).sum()) for _, labels, _ in batches)
        return Exam(batches, -sum(sample.log_probability for sample in samples) / n_tokens)

    def _batches(self, samples: list[Sample], brief: bool = False) -> list[Batch]:
        messages = [[{"role": "user", "content": sample.prompt}] for sample in samples]
        rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompts = self._encode(rendered)
        answers = self._encode([f"{sample.answer}<end_of_turn>" for sample in samples])
        if brief:
            answers = [self._cut(answer, sentences=i % 2) for i, answer in enumerate(answers)]
        rows = sorted(zip(prompts, answers, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        between = 0.0 if brief else 1.0
        return [self._pad(rows[i : i + self.batch_size], between) for i in range(0, len(rows), self.batch_size)]

    def _cut(self, answer: list[int], sentences: int) -> list[int]:
        """Keep so many sentences and the beginning of the next."""
        ends = [place + 1 for place, token in enumerate(answer) if token in self._stops]
        return answer[: [0, *ends][sentences] + BEGINNING]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return encoded

    def _pad(self, rows: Sequence[tuple[list[int], list[int]]], between: float) -> Batch:
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        length += -length % 16  # few distinct shapes, so that memory is used again
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        weights = torch.zeros(len(rows), length)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
            weights[row, : len(prompt)] = OF_MESSAGE
            weights[row, len(prompt) : end] = torch.tensor(self._weigh(answer, between))
        return ids, labels, weights

    def _weigh(self, answer: Sequence[int], between: float) -> list[float]:
        weights, position = [], 0
        for token in answer:
            weights.append(WEIGHT if position < BEGINNING else between)
            position = 0 if token in self._stops else position + 1
        return weights
