"""`sweep_divergence`: the side effects of steering, as the change of the next-token distributions on given text."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from steerkit.activations import check_texts
from steerkit.controls import check_alphas, control_directions, steered_layers
from steerkit.decoding import row_edits
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import PromptError
from steerkit.hooks import edit
from steerkit.language_model import LanguageModel
from steerkit.likelihood import logits_limit
from steerkit.prompts import split_pairs


def sweep_divergence(
    estimator: SteeringEstimator,
    texts: Sequence[Any],
    *,
    alphas: Sequence[float],
    layers: Any = "auto",
    controls: Sequence[str] = ("random",),
    random_state: int = 0,
) -> pd.DataFrame:
    """Return how far steering moves the model on given texts at every layer × alpha; nothing is generated.

    It cannot see whether a change is the one that was asked for: a register that moves and a fact that is lost both
    count. On text that has nothing to do with the classes it is what steering costs.

    Parameters
    ----------
    estimator : fitted SteeringEstimator
        Of two classes.
    texts : sequence of str or of (prompt, completion)
        Plain texts, outside any chat template; of pairs the completions count. No more than the context holds.
    alphas, layers, controls, random_state
        As in `sweep`.

    Returns
    -------
    DataFrame
        ``direction``, ``layer``, ``alpha``, ``text`` (its index), ``kl`` (KL(unsteered ‖ steered) of the
        next-token distributions, mean over the tokens, in nats) and ``nll_rise`` (by how
        much less likely the text becomes, in nats per token).

    Raises
    ------
    PromptError
        A text has no token to predict.
    """
    model = LanguageModel.of(estimator.model)
    steered, strengths = steered_layers(estimator, layers), check_alphas(alphas)
    steps = control_directions(estimator, steered, controls, list(texts), random_state, {})
    sequences, starts = _encode(model, texts)
    settings = [(kind, layer, alpha) for kind in steps for layer in steered for alpha in strengths]
    rows = []
    for place, sequence in enumerate(sequences):
        start = starts[place]
        if len(sequence) <= start:
            raise PromptError(f"text {place} has no token to predict, one was expected; pass a longer text.")
        size = max(1, logits_limit(model) // len(sequence))
        for first in range(0, len(settings), size):
            some = settings[first : first + size]
            moved = _log_probabilities(
                model, sequence, start, [layer for _, layer, _ in some],
                [alpha * steps[kind](layer, place) for kind, layer, alpha in some],
            )  # fmt: skip
            bare, moved = moved[0], moved[1:]
            kl = (bare.exp() * (bare - moved)).sum(dim=-1).mean(dim=-1)
            said = torch.tensor(sequence[start:], device=bare.device)[:, None]
            rise = (bare.gather(1, said) - moved.gather(2, said.expand(len(some), -1, -1))).mean(dim=(1, 2))
            values = zip(some, kl.clamp(min=0).tolist(), rise.tolist(), strict=True)
            rows += [(*setting, place, divergence, nats) for setting, divergence, nats in values]
    columns = ["direction", "layer", "alpha", "text", "kl", "nll_rise"]
    return pd.DataFrame(rows, columns=columns).sort_values("text", kind="stable", ignore_index=True)


def _encode(model: LanguageModel, texts: Sequence[Any]) -> tuple[list[list[int]], list[int]]:
    """Return token ids, and from which on they count; the first token of a text is given, not predicted."""
    checked = check_texts(texts)
    if not any(isinstance(text, tuple) for text in checked):
        if not checked or not all(isinstance(text, str) for text in checked):
            raise PromptError("texts are plain texts or (prompt, completion) pairs, at least one; pass such.")
        sequences = [model.encode_text(text) for text in checked]
        for place, sequence in enumerate(sequences):
            if len(sequence) > model.context_length:
                raise PromptError(
                    f"text {place} has {len(sequence)} tokens, {model.name or 'the model'} takes at most "
                    f"{model.context_length}; shorten it."
                )
        return sequences, [1] * len(checked)
    prompts, completions = split_pairs(checked)
    return model.encode(prompts, completions), [len(head) for head in model.encode(prompts)]


@torch.inference_mode()
def _log_probabilities(
    model: LanguageModel, sequence: list[int], start: int, layers: Sequence[int], steps: Sequence[Any]
) -> torch.Tensor:
    """Of every next token from a start on, ``(1 + n_settings, n_tokens, vocabulary)``; first unsteered."""
    ids, mask = model.pad([sequence] * (1 + len(steps)))
    edits = row_edits([-1, *layers], [None, *steps], model.hidden_size)
    with model.held(), edit(model.blocks, edits):
        logits = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[:, start - 1 : -1].float().log_softmax(dim=-1)
