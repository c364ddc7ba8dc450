"""A lazy handle on a causal language model and its tokenizer: what scikit-learn may clone, compare and pickle."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import PicklingError
from typing import Any, Self

import torch
from torch import Tensor, nn

from steerkit.exceptions import InvalidInputError, LayerError, ModelLoadError, PromptError, SteeringActiveError
from steerkit.fingerprint import Fingerprint
from steerkit.generation import generation_settings, seeded_sampling
from steerkit.hooks import find_blocks, is_edited
from steerkit.loading import Loaded, load
from steerkit.prompts import Prompt, check_prompt


class LanguageModel:
    """A causal language model by name, folder or ``builtin:`` name, loaded when it is first needed.

    ``clone`` and ``copy`` return the handle itself; a pickle holds the name, never the weights.

    Parameters
    ----------
    name : str
        ``"builtin:tutor"``, a folder written by ``save_pretrained``, or a name on the Hugging Face hub.
    revision : str, optional
        Branch, tag or commit on the hub.
    dtype : str
        As in ``from_pretrained``; ``"auto"`` takes the checkpoint's own.
    device : str, optional
        Default: the first CUDA device if there is one, else the CPU.
    chat : {"auto", True, False}
        Whether prompts are wrapped in the tokenizer's chat template; ``"auto"``: if it has one.
    blocks : str, optional
        Dotted path to the list of decoder blocks, for a model in which they cannot be found.
    **from_pretrained
        Handed to ``AutoModelForCausalLM.from_pretrained``.
    """

    def __init__(
        self,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        chat: bool | str = "auto",
        blocks: str | None = None,
        **from_pretrained: Any,
    ) -> None:
        if not isinstance(name, str | os.PathLike):
            raise ModelLoadError(
                f"model is a {type(name).__name__}, a name or folder was expected; pass a str or Path."
            )
        if chat not in ("auto", True, False):
            raise InvalidInputError(f"chat={chat!r} is not understood; pass 'auto', True or False.")
        # A folder is kept by its full path: a saved or pickled handle must find it from anywhere.
        self.name = str(Path(name).resolve()) if name and Path(name).is_dir() else os.fspath(name)
        self.revision = revision
        self.dtype = dtype
        self.device = device
        self.chat = chat
        self.blocks_path = blocks
        self.from_pretrained = from_pretrained
        self._loaded: Loaded | None = None
        self._fingerprint: Fingerprint | None = None

    @classmethod
    def of(cls, model: "str | os.PathLike[str] | LanguageModel") -> "LanguageModel":
        """Return the handle for a name, or the handle itself."""
        if isinstance(model, LanguageModel):
            return model
        if not isinstance(model, str | os.PathLike):
            raise ModelLoadError(
                f"model is a {type(model).__name__}, a name or a LanguageModel was expected; wrap a loaded model "
                "with LanguageModel.wrap(model, tokenizer)."
            )
        return cls(model)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, *, chat: bool | str = "auto", blocks: str | None = None) -> Self:
        """Make a handle on a model that is in memory already, in evaluation mode; such a handle cannot be pickled."""
        handle = cls("", chat=chat, blocks=blocks)
        handle._loaded = Loaded(model.eval(), tokenizer)
        return handle

    # Identity: scikit-learn clones and compares parameters, joblib pickles them.

    def _key(self) -> tuple[Any, ...]:
        options = tuple(sorted((key, repr(value)) for key, value in self.from_pretrained.items()))
        identity = None if self.name or self._loaded is None else id(self._loaded.model)
        return (self.name, self.revision, self.dtype, self.device, self.chat, self.blocks_path, options, identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LanguageModel) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"LanguageModel({self.name or type(self.model).__name__!r})"

    def __sklearn_clone__(self) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        if not self.name:
            raise PicklingError(
                "a model that exists only in memory cannot be pickled; save it with save_pretrained and pass the "
                "folder to LanguageModel."
            )
        return {**self.__dict__, "_loaded": None, "_fingerprint": None}

    # The model, loaded on first use.

    def load(self) -> Loaded:
        """Load model and tokenizer if they are not in memory yet, and return them.

        Raises
        ------
        ModelLoadError
            The name or folder is no causal language model, or its files are damaged.
        """
        if self._loaded is None:
            self._loaded = load(self.name, self.revision, self.dtype, self.device, self.from_pretrained)
        return self._loaded

    @contextmanager
    def held(self) -> Iterator[Any]:
        """Hold the bare model, which is yielded, against other threads.

        Raises
        ------
        SteeringActiveError
            It is being steered around this call, so its output would not be what was asked for.
        """
        with self.load().lock:
            if is_edited(self.blocks):
                raise SteeringActiveError(
                    "the model is being steered by a context around this call; leave it first, or put all vectors "
                    "into one SteeredModel."
                )
            yield self.model

    @property
    def model(self) -> Any:
        """The transformers model, in evaluation mode."""
        return self.load().model

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; never changed by steerkit."""
        return self.load().tokenizer

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks; layer ``i`` is the residual stream after block ``i``."""
        return find_blocks(self.model, self.blocks_path)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)

    @property
    def context_length(self) -> int:
        """Longest input in tokens that the model was built for."""
        config = self.model.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

    @property
    def fingerprint(self) -> Fingerprint:
        """What a direction made for this model depends on."""
        if self._fingerprint is None:
            self._fingerprint = Fingerprint.of(self.model, self.tokenizer, self.n_layers)
        return self._fingerprint

    def check_layer(self, layer: Any) -> int:
        """Return ``layer`` as an int, or raise `LayerError`."""
        if isinstance(layer, bool) or not hasattr(layer, "__index__") or not 0 <= layer < self.n_layers:
            raise LayerError(
                f"layer={layer!r} is outside 0..{self.n_layers - 1} for {self.name or 'the model'}; "
                "pass layer='auto' or an index in that range."
            )
        return int(layer)

    # Text to tokens and back.

    @property
    def uses_chat(self) -> bool:
        """Whether prompts are wrapped in the chat template."""
        if self.chat is True and not self.tokenizer.chat_template:
            raise InvalidInputError(f"chat=True, but {self!r} has no chat template; pass chat='auto' or False.")
        return bool(self.tokenizer.chat_template) and bool(self.chat)

    def encode(
        self, prompts: Sequence[Prompt], answers: Sequence[str] | None = None, *, check_length: bool = True
    ) -> list[list[int]]:
        """Return the token ids of each prompt, in the chat template if the model uses one, BOS never doubled.

        Parameters
        ----------
        prompts : sequence of str or of chat messages
        answers : sequence of str, optional
            Text to append to each prompt, as the model would have generated it.
        check_length : bool
            Whether to refuse what is longer than the model's context.

        Raises
        ------
        PromptError
            A prompt is empty, no text, or longer than the model's context.
        """
        sequences = [self._encode(index, prompt) for index, prompt in enumerate(prompts)]
        if answers is not None:
            tails = (self.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers)
            sequences = [head + tail for head, tail in zip(sequences, tails, strict=True)]
        for index, ids in enumerate(sequences):
            if check_length and len(ids) > self.context_length:
                raise PromptError(
                    f"prompt {index} has {len(ids)} tokens, {self.name or 'the model'} takes at most "
                    f"{self.context_length}; shorten it."
                )
        return sequences

    def _encode(self, index: int, prompt: Prompt) -> list[int]:
        check_prompt(prompt, index)
        if self.uses_chat:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            return list(rendered["input_ids"])
        if not isinstance(prompt, str):
            prompt = "\n\n".join(message["content"] for message in prompt)
        return list(self.tokenizer(prompt)["input_ids"])

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of plain text, outside any chat template, with the special tokens around it."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])  # too long is told by those who mind

    def pad(self, sequences: Sequence[list[int]], *, side: str = "right") -> tuple[Tensor, Tensor]:
        """Return ``input_ids`` and ``attention_mask``, both ``(batch, longest)``, on the model's device."""
        longest = max(map(len, sequences))
        fill = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        ids = torch.full((len(sequences), longest), fill)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            place = slice(0, len(sequence)) if side == "right" else slice(longest - len(sequence), longest)
            ids[row, place] = torch.tensor(sequence)
            mask[row, place] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def generate(
        self, sequences: Sequence[list[int]], *, seeds: Sequence[int] | None = None, **generation: Any
    ) -> list[str]:
        """Generate one batch; return the new text only, without special tokens.

        Greedy unless ``generation`` asks to sample; then ``seeds`` give each row its own stream of chance. With
        ``num_return_sequences=k`` the list holds k texts for each sequence in turn.
        """
        ids, mask = self.pad(sequences, side="left")
        config = self.generation_config(ids.shape[1], **generation)
        processors = None if seeds is None else seeded_sampling(config, seeds)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, tokenizer=self.tokenizer,
                logits_processor=processors,
            )  # fmt: skip
        return self.decode(output[:, ids.shape[1] :])

    def generation_config(self, length: int, **generation: Any) -> Any:
        """Return the settings for a prompt of ``length`` tokens: the model's own, with ``generation`` over them."""
        return generation_settings(self.model.generation_config, self.context_length, length, generation)

    def decode(self, tokens: Tensor | Sequence[list[int]]) -> list[str]:
        """Return the text of each row of token ids, special tokens left out."""
        return list(self.tokenizer.batch_decode(tokens, skip_special_tokens=True))
