"""The log-likelihood of answers: one forward pass for one batch, differentiable, under the edits of the caller."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steerkit.language_model import LanguageModel


def summed_log_likelihoods(model: LanguageModel, sequences: Sequence[list[int]], starts: Sequence[int]) -> Tensor:
    """Return how likely the tokens of each sequence are from its start on, ``(batch,)`` in nats, float32.

    Parameters
    ----------
    model : LanguageModel
        To be held by the caller.
    sequences : sequence of list of int
        Token ids of prompts with their answers.
    starts : sequence of int
        The number of tokens of each prompt.
    """
    ids, mask = model.pad(sequences)
    logits = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    chosen = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(dim=2)
    places = torch.arange(1, ids.shape[1], device=ids.device)
    of_answer = (places >= torch.tensor(starts, device=ids.device)[:, None]) & mask[:, 1:].bool()
    return torch.where(of_answer, chosen, 0.0).sum(dim=1)
