"""`EffectReader`: how far a generated text leans to either class, read by a probe on the unsteered model.

Reading under the hook would be circular.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerkit.activations import pooled_activations
from steerkit.batching import batches
from steerkit.exceptions import ContrastSetError, NotFittedError
from steerkit.language_model import LanguageModel
from steerkit.layerwise import LayerwiseDirections
from steerkit.prompts import Prompt, check_prompts

Floats = NDArray[np.float64]
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
