"""What generated text is measured by: effect, preservation, fluency, repetition. No outside judge is needed.

All of them read finished text with the **unsteered** model: reading under the hook would be circular.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from steerkit.activations import pooled_activations
from steerkit.batching import batches
from steerkit.exceptions import ContrastSetError, NotFittedError
from steerkit.language_model import LanguageModel
from steerkit.layerwise import LayerwiseDirections
from steerkit.likelihood import summed_log_likelihoods
from steerkit.prompts import Prompt, check_prompts

Floats = NDArray[np.float64]
LOGITS_PER_BATCH = 2**26  # 256 MiB of float32
TOKENS_PER_BATCH = 16384


class EffectReader:
    """Reads how far a text leans to either class: a probe on the unsteered model's activations of *answers*.

    It is fitted on the answers that the unsteered model gives to labelled prompts, which must be other prompts than
    those that the steering direction was fitted on. The answers are read alone, outside the chat template, so
    neither the persona in the prompt nor the question can leak into the reading.

    It cannot see whether a text is true or on topic, and it reads what *this* model says to either class, which
    need not be what a person would call expert or novice.

    Attributes
    ----------
    accuracy_ : float
        Cross-validated; near 0.5 the model answers both classes alike, and effects mean nothing.
    layer_ : int
        The layer at which answers are read: the one with the best accuracy, the middle-most of equals.
    """

    def __init__(self, model: str | LanguageModel, *, learner: Any = "probe", max_new_tokens: int = 64) -> None:
        self.model = LanguageModel.of(model)
        self.learner = learner
        self.max_new_tokens = max_new_tokens

    def fit(self, X: Sequence[Prompt], y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Answer the labelled prompts unsteered and fit the probe on the answers."""
        answers = generate(self.model, self.model.encode(check_prompts(X)), max_new_tokens=self.max_new_tokens)
        kept = [index for index, answer in enumerate(answers) if self.model.encode_text(answer)]
        y, groups = np.asarray(y)[kept], None if groups is None else np.asarray(groups)[kept]
        if len(np.unique(y)) < 2:
            raise ContrastSetError(
                f"the model answers {len(answers) - len(kept)} of {len(answers)} held-out prompts with nothing, so "
                "there is nothing to read an effect by; allow more new tokens or pass other prompts."
            )
        layers = list(range(self.model.n_layers))
        activations = self._activations([answers[index] for index in kept], layers)
        probe = LayerwiseDirections(self.learner).fit(activations, y, groups)
        scores = np.nan_to_num(probe.accuracies_)
        middle = (len(layers) - 1) / 2
        self.layer_ = min(np.flatnonzero(scores == scores.max()).tolist(), key=lambda layer: abs(layer - middle))
        self.accuracy_ = float(scores[self.layer_])
        self._direction = probe.directions_[self.layer_].astype(np.float64)
        self._offset, self._norm = float(probe.offsets_[self.layer_]), float(probe.norms_[self.layer_])
        return self

    def read(self, texts: Sequence[str]) -> Floats:
        """Return ``(n_texts,)``, positive towards ``classes_[1]``, in units of the norm; 0 for an empty text."""
        if not hasattr(self, "layer_"):
            raise NotFittedError("EffectReader is not fitted; call fit with prompts that the direction has not seen.")
        readings = np.zeros(len(texts))
        filled = [index for index, text in enumerate(texts) if self.model.encode_text(text)]
        if filled:
            activations = self._activations([texts[index] for index in filled], [self.layer_])[:, 0]
            readings[filled] = (activations @ self._direction - self._offset) / self._norm
        return readings

    def digest(self) -> str:
        """Return a digest of what `read` depends on besides the model."""
        content = repr((self.layer_, self._offset, self._norm)).encode() + self._direction.tobytes()
        return hashlib.sha256(content).hexdigest()

    def _activations(self, texts: Sequence[str], layers: list[int]) -> NDArray[np.float32]:
        sequences = [self.model.encode_text(text)[: self.model.context_length] for text in texts]
        return pooled_activations(self.model, sequences, layers=layers, pooling="mean")


def generate(model: LanguageModel, sequences: Sequence[list[int]], **generation: Any) -> list[str]:
    """Generate unsteered, in batches; one text per token sequence, in their order."""
    texts = [""] * len(sequences)
    room = generation.get("max_new_tokens", 0)
    with model.held():
        for rows in batches([len(sequence) + room for sequence in sequences], tokens=TOKENS_PER_BATCH):
            for row, text in zip(rows, model.generate([sequences[row] for row in rows], **generation), strict=True):
                texts[row] = text
    return texts


def logits_limit(model: LanguageModel) -> int:
    """Return the number of tokens whose logits fit in a batch."""
    return max(1, LOGITS_PER_BATCH // int(model.model.config.get_text_config(decoder=True).vocab_size))


def log_likelihoods(
    model: LanguageModel, prompts: Sequence[Prompt], answers: Sequence[str]
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the summed log-likelihood (nats) of each answer given its prompt, and its number of tokens.

    Equal pairs go through the model once.
    """
    keys = [(str(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    unique = sorted(first.values())
    heads = dict(zip([keys[i][0] for i in unique], model.encode([prompts[i] for i in unique]), strict=True))
    sequences = model.encode([prompts[i] for i in unique], [answers[i] for i in unique])
    starts = [len(heads[keys[i][0]]) for i in unique]
    sums = np.zeros(len(unique))
    with model.held(), torch.inference_mode():
        for rows in batches([len(s) for s in sequences], tokens=logits_limit(model)):
            nats = summed_log_likelihoods(model, [sequences[row] for row in rows], [starts[row] for row in rows])
            sums[rows] = nats.double().cpu().numpy()
    place = {keys[i]: position for position, i in enumerate(unique)}
    order = [place[key] for key in keys]
    counts = np.array([len(s) - start for s, start in zip(sequences, starts, strict=True)])
    return sums[order], counts[order]


def question_likelihoods(
    model: LanguageModel, prompts: Sequence[Prompt], answers: Sequence[str], candidates: Sequence[Prompt]
) -> tuple[Floats, Floats]:
    """Return how likely each answer is, in nats per token, given its own question and given the best other candidate.

    Where its own is likelier, the unsteered model still finds the question among the candidates, and the meaning is
    *preserved*. The answer's own style cancels, since it is the same under every question. This cannot see false
    statements that stay on topic. An empty answer has NaN: it preserves nothing.
    """
    others = [[candidate for candidate in candidates if candidate != prompt] for prompt in prompts]
    asked = [c for prompt, distractors in zip(prompts, others, strict=True) for c in [prompt, *distractors]]
    said = [answer for answer, distractors in zip(answers, others, strict=True) for _ in range(len(distractors) + 1)]
    sums, counts = log_likelihoods(model, asked, said)
    own, best_other, start = np.full(len(answers), np.nan), np.full(len(answers), np.nan), 0
    for index, distractors in enumerate(others):
        block = sums[start : start + len(distractors) + 1]
        if counts[start]:
            own[index] = block[0] / counts[start]
            best_other[index] = block[1:].max(initial=-np.inf) / counts[start]
        start += len(block)
    return own, best_other


def distinct_2(text: str) -> float:
    """Return the share of word pairs in a text that occur in it for the first time; low: it repeats itself."""
    words = text.lower().split()
    pairs = list(pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 0.0
