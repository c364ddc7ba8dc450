"""The log-likelihood of answers, given their own question and given others."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerkit.language_model import LanguageModel
from steerkit.prompts import Prompt
from steerkit.trunk import passes

Floats = NDArray[np.float64]
LOGITS_PER_BATCH = 2**26  # 256 MiB of float32


def summed_log_likelihoods(model: LanguageModel, sequences: Sequence[list[int]], starts: Sequence[int]) -> Tensor:
    """Return how likely the tokens of each sequence are from its start on, ``(batch,)`` in nats, float32.

    One forward pass, differentiable, under the edits of the caller.

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
    with model.held() as bare, torch.inference_mode():
        for one in passes(model, sequences, tokens=logits_limit(model)):
            logits = bare(**one.inputs).logits.flatten(0, 1).float()
            nats = _nats(logits, {row: path[starts[row] - 1 : -1] for row, path in one.paths.items()}, sequences)
            sums[list(one.paths)] = nats.double().cpu().numpy()
    place = {keys[i]: position for position, i in enumerate(unique)}
    order = [place[key] for key in keys]
    counts = np.array([len(s) - start for s, start in zip(sequences, starts, strict=True)])
    return sums[order], counts[order]


def _nats(logits: Tensor, before: Mapping[int, Tensor], sequences: Sequence[list[int]]) -> Tensor:
    """Sum up how likely the last tokens of some sequences are, each given the place before it in ``logits``."""
    places = torch.cat([*before.values()]).to(logits.device)
    said = [token for row, path in before.items() for token in sequences[row][len(sequences[row]) - len(path) :]]
    chosen = logits[places, torch.tensor(said, dtype=torch.long, device=logits.device)]
    chosen = chosen - logits.logsumexp(dim=1)[places]
    counts = torch.tensor([len(path) for path in before.values()], device=logits.device)
    owners = torch.arange(len(before), device=logits.device).repeat_interleave(counts)
    return chosen.new_zeros(len(before)).index_add_(0, owners, chosen)


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
