"""What a direction of the residual stream says in words: what it adds to the logits."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from steerkit.exceptions import InvalidInputError
from steerkit.language_model import LanguageModel


@torch.inference_mode()
def unembed(model: LanguageModel, direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a direction of the residual stream adds to each token's logit, ``(vocabulary,)``.

    The weights of the final norm are folded in, its division by the activation's length is not.

    Raises
    ------
    InvalidInputError
        The model has no unembedding.
    """
    head = model.model.get_output_embeddings()
    if head is None:
        raise InvalidInputError(f"{model!r} has no unembedding to read a direction by; pass a causal language model.")
    weights = head.weight
    stream = torch.tensor(direction).to(weights.device, weights.dtype)
    norms = [m for m in model.model.get_decoder().children() if "norm" in type(m).__name__.lower()]
    if norms and isinstance(norms[-1], nn.LayerNorm):
        stream = (stream - stream.mean()) * norms[-1].weight
    elif norms:  # an RMS norm leaves a vector of ones as its own weights, however it stores them
        stream = stream * norms[-1](torch.ones_like(stream))
    return np.asarray((weights @ stream).float().cpu())
