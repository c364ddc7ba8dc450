"""How alike the steered and the unsteered answer are to a sentence encoder."""

from functools import cached_property
from importlib.util import find_spec
from os import PathLike, fspath
from typing import Any, Protocol

import numpy as np

from steerkit.exceptions import InvalidInputError, MissingExtraError, NonFiniteError
from steerkit.likelihood import Floats
from steerkit.metrics import Answers, Metric


class Encoder(Protocol):
    """What turns texts into vectors; a ``SentenceTransformer`` does."""

    def encode(self, texts: list[str], /) -> Any:
        """Return ``(n_texts, n_dimensions)``."""


class Similarity(Metric):
    """The cosine between the embeddings of the answer and of the unsteered answer.

    An answer without text has 0, as has one whose unsteered answer has none.

    It cannot see style and meaning apart: a change of register lowers it while nothing else changed, and a negation,
    which turns the meaning round, hardly moves it. Of a long answer it sees no more than the encoder reads. What is
    high depends on the encoder, so compare it between answers, not with a fixed number.

    Parameters
    ----------
    encoder : str, path or object
        A name or folder for ``sentence_transformers.SentenceTransformer``, which is loaded when first used, or
        anything with ``encode(list of str)`` that returns an array with a row for each text.
    name : str
        Of the column.
    """

    greater_is_better = True
    unit = "cosine"

    def __init__(self, encoder: str | PathLike[str] | Encoder, *, name: str = "similarity") -> None:
        if isinstance(encoder, str | PathLike):
            check_installed()
        elif not callable(getattr(encoder, "encode", None)):
            raise InvalidInputError(
                f"encoder={encoder!r} is no name or folder and has no encode; pass the name of a SentenceTransformer."
            )
        self.encoder = encoder
        self.name = name

    def measure(self, answers: Answers) -> Floats:
        """Embed each distinct text once, in one call."""
        pairs = list(zip(answers.texts, answers.unsteered, strict=True))
        texts = list(dict.fromkeys(text for pair in pairs for text in pair if text.strip()))
        rows = {text: row for row, text in enumerate(texts)}
        embeddings = self._embed(texts)
        cosines = [embeddings[rows[a]] @ embeddings[rows[b]] if a in rows and b in rows else 0.0 for a, b in pairs]
        return np.clip(np.array(cosines, dtype=np.float64), -1, 1)

    def _embed(self, texts: list[str]) -> Floats:
        """Return embeddings of length 1, or 0 for those that are zero."""
        if not texts:
            return np.zeros((0, 1))
        embeddings = np.asarray(self._encoder.encode(texts), dtype=np.float64)
        if embeddings.ndim != 2 or len(embeddings) != len(texts):
            raise InvalidInputError(
                f"the encoder returned shape {embeddings.shape} for {len(texts)} texts, a row for each was expected; "
                "mend its encode."
            )
        if not np.isfinite(embeddings).all():
            raise NonFiniteError("the encoder returned NaN or Inf, finite numbers were expected; load it in float32.")
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        unit: Floats = np.divide(embeddings, lengths, out=np.zeros_like(embeddings), where=lengths > 0)
        return unit

    @cached_property
    def _encoder(self) -> Encoder:
        if not isinstance(self.encoder, str | PathLike):
            return self.encoder
        check_installed()
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(fspath(self.encoder))
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InvalidInputError(
                f"encoder={self.encoder!r} cannot be loaded ({reason}); pass the name or folder of a "
                "SentenceTransformer, or an object with encode."
            ) from error


def check_installed() -> None:
    """Raise `MissingExtraError` unless sentence-transformers is installed."""
    if find_spec("sentence_transformers") is None:
        raise MissingExtraError("similarity needs sentence-transformers; pip install 'steerkit-estimator[similarity]'.")
