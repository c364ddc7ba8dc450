"""Texts to activations: the residual stream after each layer, pooled to one vector per text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from torch import Tensor

from steerkit.batching import batches
from steerkit.exceptions import InvalidInputError, NonFiniteError
from steerkit.fingerprint import digest_weights
from steerkit.hooks import capture, has_hooks
from steerkit.language_model import LanguageModel
from steerkit.prompts import check_prompts, split_pairs
from steerkit.trunk import passes, tokens_per_batch

Floats = NDArray[np.float32]


def resolve_layers(model: LanguageModel, layers: Any) -> list[int]:
    """Return the layers meant by ``"all"``, an index or a sequence of indices, checked and in ascending order."""
    if isinstance(layers, str):
        if layers != "all":
            raise InvalidInputError(f"layers={layers!r} is not understood; pass 'all' or a list of layer indices.")
        return list(range(model.n_layers))
    if np.iterable(layers) and not len(list(layers)):
        raise InvalidInputError("layers is empty; pass 'all' or a list of at least one layer index.")
    return sorted({model.check_layer(layer) for layer in (layers if np.iterable(layers) else [layers])})


def pooled_activations(
    model: LanguageModel,
    sequences: Sequence[list[int]],
    *,
    layers: Sequence[int],
    pooling: str | int = "last",
    batch_size: int | str = "auto",
    starts: Sequence[int] | None = None,
) -> Floats:
    """Run token sequences through the trunk of the model and keep one vector per sequence and layer.

    Parameters
    ----------
    pooling : {"last", "mean", "last-k"} or int
        The last token, the mean of all, the mean of the last k (``"last-4"``), or the token at a place counted from
        the start (0) or from the end (-1).
    starts : sequence of int, optional
        Pool over each sequence from here on only.

    Returns
    -------
    ndarray of shape (n_samples, n_layers, hidden size), float32

    Raises
    ------
    NonFiniteError
        The model puts out NaN or Inf.
    """
    lengths = [len(sequence) for sequence in sequences]
    spans = [_span(pooling, start, end) for start, end in zip(starts or [0] * len(lengths), lengths, strict=True)]
    automatic = batch_size == "auto"
    if not automatic and (isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1):
        raise InvalidInputError(f"batch_size={batch_size!r} is no positive number; pass 'auto' or an int above 0.")
    pooled = np.empty((len(sequences), len(layers), model.hidden_size), dtype=np.float32)
    with model.held() as bare, torch.inference_mode():
        for one in passes(model, sequences, batch_size=None if automatic else int(batch_size)):
            chosen = [path[slice(*spans[row])] for row, path in one.paths.items()]
            with capture(model.blocks, layers, partial(_means, chosen), only=True) as kept:
                bare.get_decoder()(**one.inputs)
            for place, layer in enumerate(layers):
                pooled[list(one.paths), place] = kept[layer].float().cpu().numpy()
    if not np.isfinite(pooled).all():
        sample, place, _ = np.argwhere(~np.isfinite(pooled))[0]
        raise NonFiniteError(
            f"the activation of prompt {sample} at layer {layers[place]} holds NaN or Inf; load the model in a wider "
            "dtype (dtype='float32') or leave that prompt out."
        )
    return pooled


def text_activations(
    model: LanguageModel, X: Sequence[Any], *, layers: Sequence[int], pooling: str | int, batch_size: int | str
) -> Floats:
    """Return the pooled activations of prompts, or of the completions of ``(prompt, completion)`` pairs."""
    sequences, starts = _encode(model, X)
    return pooled_activations(model, sequences, layers=layers, pooling=pooling, batch_size=batch_size, starts=starts)


def check_texts(X: object) -> list[Any]:
    """Return texts or ``(prompt, completion)`` pairs as a list, or raise `PromptError`."""
    if hasattr(X, "columns"):
        raise InvalidInputError("X is a DataFrame, texts were expected; pass one of its columns.")
    texts = list(X) if isinstance(X, Iterable) and not isinstance(X, str | Mapping) else X
    if isinstance(texts, list) and any(isinstance(text, tuple) for text in texts):
        split_pairs(texts)
        return texts
    return check_prompts(texts)


def token_activations(model: LanguageModel, text: Any, layer: int) -> tuple[list[int], Floats]:
    """Return the token ids of a prompt or ``(prompt, completion)``, and their activations ``(n_tokens, hidden)``."""
    (sequence,), _ = _encode(model, check_texts([text]))
    ids, mask = model.pad([sequence])
    with model.held() as bare, torch.inference_mode(), capture(model.blocks, [layer], lambda hidden: hidden[0]) as kept:
        bare.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    return sequence, kept[layer].float().cpu().numpy()


def stream_activations(model: LanguageModel, texts: Sequence[str], layer: int, *, window: int = 512) -> Floats:
    """Return the activations of all tokens of plain texts at a layer, ``(n_tokens, hidden size)``, in reading order.

    Longer texts are cut into windows. Special tokens are left out: the first of a text often has a norm hundreds of
    times that of the others.
    """
    special, window = set(model.tokenizer.all_special_ids), min(window, model.context_length)
    whole = [model.encode_text(text) for text in check_prompts(texts)]
    pieces = [ids[start : start + window] for ids in whole for start in range(0, len(ids), window)]
    kinds = [torch.tensor([token not in special for token in piece]) for piece in pieces]
    if not any(kind.any() for kind in kinds):
        raise InvalidInputError("the texts hold no tokens but special ones; pass texts with words in them.")
    found: dict[int, Tensor] = {}
    with model.held() as bare, torch.inference_mode():
        for rows in batches([len(piece) for piece in pieces], tokens=tokens_per_batch(model)):
            ids, mask = model.pad([pieces[row] for row in rows])
            with capture(model.blocks, [layer], Tensor.float) as kept:
                bare.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
            hidden = kept[layer].cpu()
            found |= {row: hidden[place, : len(pieces[row])][kinds[row]] for place, row in enumerate(rows)}
    return torch.cat([found[row] for row in range(len(pieces))]).numpy()


def _encode(model: LanguageModel, X: Sequence[Any]) -> tuple[list[list[int]], list[int] | None]:
    texts = check_texts(X)
    if not any(isinstance(text, tuple) for text in texts):
        return model.encode(texts), None
    prompts, completions = split_pairs(texts)
    return model.encode(prompts, completions), [len(head) for head in model.encode(prompts)]


def remembered_activations(
    model: LanguageModel, X: Sequence[Any], *, layers: Sequence[int], pooling: str | int, batch_size: int | str
) -> Floats:
    """Return what `text_activations` does, computing only what was not asked of this model before.

    So the candidates and folds of a grid search send each text through the model once. Other weights, adapters or a
    chat template forget; under hooks of the caller's own, which may do anything, nothing is remembered.
    """
    loaded = model.load()
    with model.held() as bare:
        if has_hooks(bare):
            return text_activations(model, X, layers=layers, pooling=pooling, batch_size=batch_size)
        state = digest_weights(bare)
        sequences, starts = _encode(model, X)
        keys = [
            (state, model.blocks_path, pooling, tuple(sequence), start)
            for sequence, start in zip(sequences, starts or [0] * len(sequences), strict=True)
        ]
        wanted = dict(zip(keys, X, strict=True))
        missing = [key for key in wanted if not all((key, layer) in loaded.activations for layer in layers)]
        fresh: dict[Any, Any] = {}
        if missing:
            texts = [wanted[key] for key in missing]
            computed = text_activations(model, texts, layers=layers, pooling=pooling, batch_size=batch_size)
            fresh = {(key, layer): computed[i, j] for i, key in enumerate(missing) for j, layer in enumerate(layers)}
        pooled = [[fresh.get((key, layer), loaded.activations.get((key, layer))) for layer in layers] for key in keys]
        for place, vector in fresh.items():
            loaded.activations[place] = vector.copy()
    return np.array(pooled, dtype=np.float32)


def _span(pooling: str | int, start: int, end: int) -> tuple[int, int]:
    """Return the first token to pool over and the one after the last."""
    length = end - start
    if isinstance(pooling, Integral) and not isinstance(pooling, bool):
        place = int(pooling) + (end if pooling < 0 else start)
        if not start <= place < end:
            raise InvalidInputError(f"pooling={pooling!r} is outside a text of {length} tokens; pass a smaller number.")
        return place, place + 1
    if pooling == "mean":
        return start, end
    last = re.fullmatch(r"last(?:-([1-9]\d*))?", pooling) if isinstance(pooling, str) else None
    if last is None:
        raise InvalidInputError(f"pooling={pooling!r} is not known; pass 'last', 'mean', 'last-4' or a token's index.")
    return max(start, end - int(last[1] or 1)), end


def _means(places: Sequence[Tensor], hidden: Tensor) -> Tensor:
    """Return the mean over each of the groups of places in a batch, rows flattened."""
    flat, counts = torch.cat(list(places)), torch.tensor([len(one) for one in places], device=hidden.device)
    tokens = hidden.flatten(0, 1)[flat.to(hidden.device)]
    if len(tokens) == len(places):
        return tokens
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    owners = torch.arange(len(places), device=hidden.device).repeat_interleave(counts)
    return tokens.new_zeros(len(places), tokens.shape[1]).index_add_(0, owners, tokens) / counts[:, None]


class ActivationExtractor(TransformerMixin, BaseEstimator):
    """Turn texts into activations.

    Parameters
    ----------
    model : str or LanguageModel
    layers : "all", int or list of int
        Activations are the outputs of these decoder blocks, 0-based.
    pooling : {"last", "mean", "last-k"} or int
        The last token's activation, where the next token is decided, the mean over all tokens or over the last k
        (``"last-4"``), or a token's index from the start (0) or the end (-1). Of a ``(prompt, completion)`` pair the
        tokens of the completion count.
    batch_size : "auto" or int
        Texts per forward pass; ``"auto"`` bounds the tokens per pass instead.

    Attributes
    ----------
    layers_ : list of int
    """

    def __init__(
        self,
        model: str | LanguageModel = "builtin:tutor",
        *,
        layers: Any = "all",
        pooling: str | int = "last",
        batch_size: int | str = "auto",
    ) -> None:
        self.model = model
        self.layers = layers
        self.pooling = pooling
        self.batch_size = batch_size

    def fit(self, X: Sequence[str], y: object = None) -> Self:
        """Check the parameters against the model; nothing is learned."""
        self.layers_ = resolve_layers(LanguageModel.of(self.model), self.layers)
        return self

    def transform(self, X: Sequence[str]) -> Floats:
        """Return ``(n_samples, n_layers, hidden size)``, float32, for texts or ``(prompt, completion)`` pairs."""
        model = LanguageModel.of(self.model)
        return text_activations(
            model, X, layers=resolve_layers(model, self.layers), pooling=self.pooling, batch_size=self.batch_size
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.requires_fit = False
        return tags
