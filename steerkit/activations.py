"""Texts to activations: the residual stream after each layer, pooled to one vector per text."""

from collections.abc import Callable, Sequence
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
from steerkit.hooks import capture
from steerkit.language_model import LanguageModel
from steerkit.prompts import check_prompts

Floats = NDArray[np.float32]
TOKENS_PER_BATCH = 4096
POOLINGS = ("last", "mean")


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
    pooling: str = "last",
    batch_size: int | str = "auto",
) -> Floats:
    """Run token sequences through the trunk of the model and keep one vector per sequence and layer.

    Returns
    -------
    ndarray of shape (n_samples, n_layers, hidden size), float32

    Raises
    ------
    NonFiniteError
        The model puts out NaN or Inf.
    """
    if pooling not in POOLINGS:
        raise InvalidInputError(f"pooling={pooling!r} is not known; pass one of {', '.join(map(repr, POOLINGS))}.")
    automatic = batch_size == "auto"
    if not automatic and (isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1):
        raise InvalidInputError(f"batch_size={batch_size!r} is no positive number; pass 'auto' or an int above 0.")
    pooled = np.empty((len(sequences), len(layers), model.hidden_size), dtype=np.float32)
    limits = {"tokens": TOKENS_PER_BATCH} if automatic else {"tokens": 2**62, "rows": int(batch_size)}
    with model.held() as bare, torch.inference_mode():
        for rows in batches([len(sequence) for sequence in sequences], **limits):
            ids, mask = model.pad([sequences[row] for row in rows])
            with capture(model.blocks, layers, _pool(mask, pooling)) as kept:
                bare.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
            for place, layer in enumerate(layers):
                pooled[rows, place] = kept[layer].float().cpu().numpy()
    if not np.isfinite(pooled).all():
        sample, place, _ = np.argwhere(~np.isfinite(pooled))[0]
        raise NonFiniteError(
            f"the activation of prompt {sample} at layer {layers[place]} holds NaN or Inf; load the model in a wider "
            "dtype (dtype='float32') or leave that prompt out."
        )
    return pooled


def _pool(mask: Tensor, pooling: str) -> Callable[[Tensor], Tensor]:
    """Pool over real tokens only; sequences are padded on the right."""
    lengths = mask.sum(dim=1)
    rows = torch.arange(len(mask), device=mask.device)

    def last(hidden: Tensor) -> Tensor:
        return hidden[rows.to(hidden.device), (lengths - 1).to(hidden.device)]

    def mean(hidden: Tensor) -> Tensor:
        weights = (mask / lengths[:, None]).to(hidden.device)[..., None]
        return (hidden.float() * weights).sum(dim=1)

    return last if pooling == "last" else mean


class ActivationExtractor(TransformerMixin, BaseEstimator):
    """Turn texts into activations.

    Parameters
    ----------
    model : str or LanguageModel
    layers : "all", int or list of int
        Activations are the outputs of these decoder blocks, 0-based.
    pooling : {"last", "mean"}
        The last token's activation, where the next token is decided, or the mean over all tokens.
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
        pooling: str = "last",
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
        """Return ``(n_samples, n_layers, hidden size)``, float32, for a sequence of texts."""
        model = LanguageModel.of(self.model)
        sequences = model.encode(check_prompts(X))
        layers = resolve_layers(model, self.layers)
        return pooled_activations(model, sequences, layers=layers, pooling=self.pooling, batch_size=self.batch_size)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.requires_fit = False
        return tags
