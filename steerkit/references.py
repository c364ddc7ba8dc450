"""`sweep_references`: how steering moves the likelihood of given answers. Nothing is generated, so it is fast."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from steerkit.batching import batches
from steerkit.controls import check_alphas, control_directions, steered_layers
from steerkit.decoding import row_edits
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import ContrastSetError
from steerkit.hooks import edit
from steerkit.language_model import LanguageModel
from steerkit.likelihood import logits_limit, summed_log_likelihoods
from steerkit.prompts import Prompt, check_prompts


def sweep_references(
    estimator: SteeringEstimator,
    prompts: Sequence[Prompt],
    references: Mapping[Any, Sequence[str]],
    *,
    alphas: Sequence[float],
    layers: Any = "auto",
    controls: Sequence[str] = ("random",),
    random_state: int = 0,
    batch_rows: int = 64,
) -> pd.DataFrame:
    """Return the log-likelihood ratio of reference answers at every layer × alpha × prompt.

    It cannot see what the model would say by itself, nor whether that is still language: a layer may favour one
    reference over the other long after it has broken.

    Parameters
    ----------
    estimator : fitted SteeringEstimator
        Of two classes.
    prompts : sequence of str
    references : dict
        For each class, one answer per prompt.
    alphas, layers, controls, random_state, batch_rows
        As in `sweep`.

    Returns
    -------
    DataFrame
        ``direction``, ``layer`` (-1 where unsteered), ``alpha``, ``prompt`` and ``ratio``: nats per token of the answer
        of ``classes_[1]`` minus those of the answer of ``classes_[0]``.

    Raises
    ------
    ContrastSetError
        The references are not one answer per prompt and class.
    """
    model, checked = LanguageModel.of(estimator.model), check_prompts(prompts)
    steered, strengths = steered_layers(estimator, layers), check_alphas(alphas)
    names = [str(name) for name in estimator.classes_]
    answers = {str(name): list(texts) for name, texts in references.items()}
    if sorted(answers) != sorted(names) or any(len(texts) != len(checked) for texts in answers.values()):
        came = {name: len(texts) for name, texts in answers.items()}
        raise ContrastSetError(
            f"references has {came} answers, {len(checked)} for each of {names} were expected; pass one per prompt."
        )
    directions = control_directions(estimator, steered, controls, checked, random_state, {})
    heads = [len(head) for head in model.encode(checked)]
    sequences = {name: model.encode(checked, answers[name]) for name in names}
    settings = [("unsteered", -1, 0.0)]
    settings += [(kind, layer, alpha) for kind in directions for layer in steered for alpha in strengths]
    rows = [(setting, place) for setting in settings for place in range(len(checked))]
    nats = {name: np.zeros(len(rows)) for name in names}
    for name in names:
        lengths = [len(sequences[name][place]) for _, place in rows]
        for batch in batches(lengths, tokens=logits_limit(model), rows=batch_rows):
            some = [rows[row] for row in batch]
            steps = [
                None if layer < 0 else alpha * directions[kind](layer, place) for (kind, layer, alpha), place in some
            ]
            edits = row_edits([layer for (_, layer, _), _ in some], steps, model.hidden_size)
            with model.held(), edit(model.blocks, edits), torch.inference_mode():
                sums = summed_log_likelihoods(
                    model, [sequences[name][place] for _, place in some], [heads[place] for _, place in some]
                )
            counts = [lengths[row] - heads[place] for row, (_, place) in zip(batch, some, strict=True)]
            nats[name][batch] = sums.double().cpu().numpy() / counts
    table = pd.DataFrame([(*setting, str(checked[place])) for setting, place in rows])
    table.columns = pd.Index(["direction", "layer", "alpha", "prompt"])
    return table.assign(ratio=nats[names[1]] - nats[names[0]])
