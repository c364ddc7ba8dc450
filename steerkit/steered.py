"""`SteeredModel`: a language model with directions added to its residual stream while it generates."""

import json
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray

from steerkit.batching import batches
from steerkit.card import JSON, Card
from steerkit.exceptions import CorruptFileError, InvalidInputError, NonFiniteError, PromptError
from steerkit.hooks import Edit, edit
from steerkit.language_model import LanguageModel
from steerkit.mlflow_store import in_mlflow
from steerkit.operations import OPERATIONS
from steerkit.prompts import Prompt, check_prompts, is_conversation
from steerkit.vectors import CONFIG, SteeringVector, load_vectors, new_folder, save_vectors

Alpha = float | Sequence[float] | NDArray[Any] | Mapping[str, Any]
TOKENS_PER_BATCH = 16384
MLMODEL = "MLmodel"
"""The file by which a folder is known as one that `steerkit.mlflow.save_model` wrote."""


class SteeredModel:
    """A language model that is steered while it generates, and only then.

    Parameters
    ----------
    model : str or LanguageModel
    vectors : SteeringVector or sequence of them
        Applied in the order given; each at its own layer.
    alpha : float or dict
        Default strength, as a signed fraction of each vector's ``norm``. Positive is towards ``classes[1]``. With
        several vectors, a dict gives each its own, by the name of its ``classes[1]``; those left out do nothing.
    operation : {"add", "ablate", "clamp"}
        ``add``: ``h + alpha * norm * v``. ``ablate``: remove the share alpha of the projection on v.
        ``clamp``: set the projection, in units of alpha and counted from the offset, to alpha.
    card : Card, optional
        What was measured on it, saved with it; `SteeringEstimator.export` writes one.

    Raises
    ------
    FingerprintError
        A vector was made for another model.
    """

    def __init__(
        self,
        model: str | LanguageModel,
        vectors: SteeringVector | Sequence[SteeringVector],
        *,
        alpha: float | Mapping[str, float] = 0.07,
        operation: str = "add",
        card: Card | None = None,
    ) -> None:
        self.model = LanguageModel.of(model)
        self.vectors = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
        self.operation = operation
        self.card = card
        if operation not in OPERATIONS:
            raise InvalidInputError(
                f"operation={operation!r} is not known; pass one of {', '.join(map(repr, OPERATIONS))}."
            )
        if not self.vectors:
            raise InvalidInputError("vectors is empty; pass at least one SteeringVector.")
        alphas = self._alphas(alpha, 1)[0]
        named = dict(zip(self._names(), alphas.tolist(), strict=True))
        self.alpha: Any = {n: named[n] for n in alpha} if isinstance(alpha, Mapping) else float(alphas[0])
        for vector in self.vectors:
            vector.fingerprint.check(self.model.fingerprint, self.model.name or "the model")
            self.model.check_layer(vector.layer)

    def __repr__(self) -> str:
        layers = [vector.layer for vector in self.vectors]
        layer = layers[0] if len(layers) == 1 else layers
        return f"SteeredModel({self.model!r}, layer={layer}, alpha={self.alpha!r}, operation={self.operation!r})"

    @overload
    def generate(self, prompts: Prompt, *, alpha: Alpha | None = None, **generation: Any) -> str: ...
    @overload
    def generate(self, prompts: Sequence[Prompt], *, alpha: Alpha | None = None, **generation: Any) -> list[str]: ...
    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, alpha: Alpha | None = None, **generation: Any
    ) -> str | list[str]:
        """Answer a prompt, or each of a list of prompts.

        Parameters
        ----------
        prompts : str, list of chat messages, or a sequence of either
        alpha : float, one per prompt, or a dict, optional
            Overrides the default strength. A dict as above, its values one number or one per prompt.
        **generation
            As in ``transformers``' ``generate``; greedy and, where neither it nor the model's own settings say
            otherwise, at most 200 new tokens.

        Returns
        -------
        str or list of str
            The answers; ``num_return_sequences=k`` gives k in turn for each prompt.
        """
        single = isinstance(prompts, str) or is_conversation(prompts)
        checked = check_prompts([prompts] if single else prompts)
        alphas = self._alphas(alpha, len(checked))
        sequences = self.model.encode(checked)
        answers: list[list[str]] = [[] for _ in sequences]
        longest = generation.get("max_new_tokens") or 200
        for rows in batches([len(sequence) + longest for sequence in sequences], tokens=TOKENS_PER_BATCH):
            with self._steering(alphas[rows]):
                texts = self.model.generate([sequences[row] for row in rows], **generation)
            copies = len(texts) // len(rows)
            for place, row in enumerate(rows):
                answers[row] = texts[place * copies : (place + 1) * copies]
        flat = [text for texts in answers for text in texts]
        return flat[0] if single and len(flat) == 1 else flat

    def stream(
        self, prompt: Prompt, *, alpha: float | Mapping[str, float] | None = None, **generation: Any
    ) -> Iterator[str]:
        """Yield the answer to one prompt piece by piece. Closing the iterator early stops the generation."""
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        # Held once here: if the caller's own thread steers the model, the streaming thread would wait forever.
        with self.model.held():
            sequence = self.model.encode(check_prompts([prompt]))
        alphas = self._alphas(alpha, 1)
        ids, mask = self.model.pad(sequence)
        config = self.model.generation_config(ids.shape[1], **generation)
        streamer = TextIteratorStreamer(self.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stopped = threading.Event()
        failure: list[BaseException] = []

        def stop(input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), stopped.is_set(), dtype=torch.bool, device=input_ids.device)

        def work() -> None:
            try:
                with self._steering(alphas), torch.inference_mode():
                    self.model.model.generate(
                        input_ids=ids,
                        attention_mask=mask,
                        generation_config=config,
                        tokenizer=self.model.tokenizer,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([stop]),
                    )
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:  # the hook must be gone before the caller goes on, whether or not the answer was read to its end
            stopped.set()
            thread.join()
        if failure:
            raise failure[0]

    @contextmanager
    def steering(self, alpha: float | Mapping[str, float] | None = None) -> Iterator[Any]:
        """Steer the bare transformers model, which is yielded, in all its forward passes inside the context."""
        with self._steering(self._alphas(alpha, 1)[0]):
            yield self.model.model

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the directions (safetensors), the settings (JSON) and the name of the model, not its weights.

        Raises
        ------
        OutputExistsError
            ``path`` exists and ``overwrite`` is false.
        InvalidInputError
            The model exists only in memory, so its name could not be written.
        """
        if not self.model.name:
            raise InvalidInputError(
                "the model exists only in memory; save it with its own save_pretrained and load it by that folder."
            )
        names = ("name", "revision", "dtype", "chat")
        model = {name: getattr(self.model, name) for name in names} | {"blocks": self.model.blocks_path}
        with new_folder(path, overwrite=overwrite, holds=CONFIG) as folder:
            save_vectors(folder, self.vectors, model=model, alpha=self.alpha, operation=self.operation)
            if self.card is not None:
                self.card.save(folder)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, model: str | LanguageModel | None = None) -> Self:
        """Load what `save_pretrained` or MLflow wrote: from a folder, or by a URI such as ``models:/tutor@champion``.

        ``model`` says where the weights are now, if they moved, or how to load them, if that takes more than the
        revision, dtype, chat and blocks, which are saved.
        """
        if in_mlflow(path) or Path(path, MLMODEL).is_file():  # imported now: it is floors above
            return cast("Self", import_module("steerkit.mlflow").load_model(path, model=model))
        vectors, settings = load_vectors(path)
        try:
            if model is None:
                name = settings["model"].pop("name")
                beside = name.startswith("../") and Path(path, name).is_dir()  # as in a model saved by value
                model = LanguageModel(Path(path, name) if beside else name, **_keyed(settings["model"]))
            card = _card(path)
            return cls(model, vectors, alpha=_strength(settings["alpha"]), operation=settings["operation"], card=card)
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(f"{path} holds no usable settings ({error!r}); save the model again.") from error

    # How alpha becomes an edit.

    @contextmanager
    def _steering(self, alphas: NDArray[np.float64]) -> Iterator[None]:
        """Steer with alphas ``(n_vectors,)`` for all rows or ``(n_rows, n_vectors)``; others of the model wait."""
        amounts = torch.from_numpy(np.asarray(alphas))
        edits = [edit for i, vector in enumerate(self.vectors) for edit in self._edits(vector, amounts[..., i])]
        with self.model.held(), edit(self.model.blocks, edits):
            yield

    def _edits(self, vector: SteeringVector, alphas: torch.Tensor) -> Iterator[Edit]:
        if torch.isnan(alphas).all() or (self.operation == "add" and not alphas.any()):
            return
        amounts = {
            "add": alphas * vector.norm,
            "ablate": alphas,
            "clamp": alphas * vector.norm + vector.offset,
        }[self.operation]
        direction = torch.from_numpy(vector.direction.copy())
        yield vector.layer, partial(OPERATIONS[self.operation], direction=direction, amount=amounts.float())

    def _names(self) -> list[str]:
        return [vector.classes[1] for vector in self.vectors]

    def _alphas(self, alpha: Alpha | None, n_prompts: int) -> NDArray[np.float64]:
        """Return ``(n_prompts, n_vectors)``."""
        alpha = self.alpha if alpha is None else alpha
        if not isinstance(alpha, Mapping):
            columns = [self._column(alpha, n_prompts)] * len(self.vectors)
            return np.stack(columns, axis=1)
        if unknown := [name for name in alpha if name not in self._names()]:
            raise InvalidInputError(
                f"alpha names {', '.join(map(repr, unknown))}; the vectors lead to "
                f"{', '.join(map(repr, self._names()))}, pass these."
            )
        unnamed = np.full(n_prompts, np.nan)
        columns = [self._column(alpha[n], n_prompts) if n in alpha else unnamed for n in self._names()]
        return np.stack(columns, axis=1)

    def _column(self, alpha: Any, n_prompts: int) -> NDArray[np.float64]:
        try:
            alphas = np.asarray(alpha, dtype=np.float64)
        except (TypeError, ValueError):
            raise InvalidInputError(
                f"alpha={alpha!r} is no number; pass a fraction of the norm such as 0.07."
            ) from None
        largest = max(vector.norm for vector in self.vectors)
        with np.errstate(over="ignore"):
            finite = np.isfinite((alphas * largest).astype(np.float32)).all()
        if not finite:
            raise NonFiniteError(f"alpha={json.dumps(alphas.tolist())} is not finite; pass a fraction such as 0.07.")
        if alphas.ndim > 1 or (alphas.ndim == 1 and len(alphas) != n_prompts):
            raise PromptError(
                f"alpha has shape {alphas.shape} for {n_prompts} prompts; pass one number, or one for each prompt."
            )
        return np.broadcast_to(alphas, (n_prompts,)).copy()


def _keyed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a model that a file may make: none that runs code."""
    if unknown := settings.keys() - {"revision", "dtype", "chat", "blocks"}:
        raise KeyError(f"unknown settings of the model: {sorted(unknown)}")
    return settings


def _card(path: str | Path) -> Card | None:
    """Return the card beside a model, if any; a damaged one costs no model."""
    if not Path(path, JSON).exists():
        return None
    try:
        return Card.load(path)
    except CorruptFileError as error:
        warnings.warn(f"the model is loaded without its card: {error}", stacklevel=3)
        return None


def _strength(alpha: Any) -> float | dict[str, float]:
    return {name: float(value) for name, value in alpha.items()} if isinstance(alpha, dict) else float(alpha)
