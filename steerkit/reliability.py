"""The sections of a reliability card, gathered from a fitted estimator, a calibration, a sweep and its side effects."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from steerkit.card import Card, Section, facts
from steerkit.language_model import LanguageModel

CONTROL_NOTE = (
    "Mean over {n} prompts at the recommended layer, at the lower and the upper recommended alpha. Effect: how far "
    "the finished answers moved, read by the unsteered model. Preserved: the share of answers in which it still finds "
    "the question. Perplexity: relative to the unsteered answers."
)


def estimator_card(estimator: Any, layer: int, names: list[str], calibration: Any = None, **saved: Any) -> Card:
    """Return the card of an estimator's direction at a layer, with how it is ``saved`` and what a calibration found."""
    model = LanguageModel.of(estimator.model).name or "a model in memory"
    counts = ", ".join(f"{n} {name}" for name, n in zip(names, estimator.n_samples_, strict=True))
    about = facts(
        model=model, learner=" ".join(str(estimator.learner).split()), classes=" → ".join(names), texts=counts,
        pooling=estimator.pooling, layer=layer, hidden_size=estimator.directions_.shape[-1], **saved,
    )  # fmt: skip
    measures = {
        "accuracy": estimator.accuracies_, "standard error": estimator.accuracy_errors_, "AUC": estimator.aucs_,
        "norm": estimator.norms_,
    }  # fmt: skip
    note = "Accuracy is cross-validated on the training texts. High accuracy does not mean good steering."
    if estimator.stability_.ndim == 1:
        measures["stability"] = estimator.stability_
        drawn = "bootstrap samples" if estimator.n_bootstrap else "folds"
        note += f" Stability is the mean cosine between the direction and those of {drawn}."
    reading = [
        {"layer": number, **{name: float(values[place]) for name, values in measures.items()}}
        for place, number in enumerate(estimator.layers_)
    ]
    sections = [Section("What it is", about), Section("Where the classes can be read", reading, note)]
    if calibration is None:
        words = "No sweep was calibrated: layer and alpha are a choice, not a recommendation."
        return Card(f"Steered model: {' → '.join(names)}", [*sections, Section("How strongly to steer", [], words)])
    section = steering_section(calibration)
    if layer != calibration.layer or saved.get("alpha") not in calibration.alphas:
        section = replace(section, note=f"{section.note} The model is saved at another layer or alpha than these.")
    return Card(f"Steered model: {' → '.join(names)}", [*sections, section])


def steering_section(calibration: Any) -> Section:
    """Return where and how strongly to steer."""
    row = calibration.layers.loc[calibration.layer]
    (low_from, low_to), (high_from, high_to) = calibration.alphas_interval
    rows = facts(
        layer=calibration.layer,
        alphas=calibration.alphas,
        interval_of_the_lower_end=(low_from, low_to),
        interval_of_the_upper_end=(high_from, high_to),
        effect_span=calibration.span,
        interval_of_the_effect_span=calibration.span_interval,
        effect_span_of_random_directions=float(row["control_span"]),
        collapse=(float(row["collapse_lower"]), float(row["collapse_upper"])),
        share_of_prompts_that_move_the_wrong_way=float(row["anti_steerable"]),
        prompts=calibration.n_prompts,
    )
    return Section(
        "How strongly to steer", rows,
        "Alpha is a fraction of the activation norm. Intervals are 95 % bootstrap intervals over the prompts. "
        "Collapse: the first alphas at which half of the answers are lost, or perplexity is ten times the unsteered.",
    )  # fmt: skip


def reading_section(accuracy: float, words: float, reader: float) -> Section:
    """Return what is read on other data."""
    rows = facts(
        accuracy_on_the_test_texts=accuracy, accuracy_of_a_bag_of_words=words, accuracy_of_the_reader_of_effects=reader
    )
    return Section("On texts that it was not fitted to", rows)


def controls_section(sweep: Any, calibration: Any) -> Section:
    """Return the fitted direction beside every control and the prompting baseline."""
    means = sweep.means()
    at_layer = means["layer"].isin([-1, calibration.layer]) & means["alpha"].isin([0.0, *calibration.alphas])
    rows = [
        {
            "direction": row["direction"],
            "alpha": float(row["alpha"]),
            "effect": float(row["effect"]),
            "preserved": float(row["preserved"]),
            "perplexity": float(np.exp(row["nll_rise"])),
        }
        for row in means[at_layer].to_dict("records")
    ]
    order = {"unsteered": 0, "fitted": 1}
    rows.sort(key=lambda row: (order.get(str(row["direction"]), 2), str(row["direction"]), row["alpha"]))
    return Section("Against controls", rows, CONTROL_NOTE.format(n=len(sweep.prompts)))


def side_effects_section(divergence: pd.DataFrame, what: str) -> Section:
    """Return what steering does to given text, from `sweep_divergence` at one layer."""
    means = divergence.groupby(["direction", "alpha"])[["kl", "nll_rise"]].mean().reset_index()
    rows = [
        {"direction": r["direction"], "alpha": r["alpha"], "KL": r["kl"], "perplexity": float(np.exp(r["nll_rise"]))}
        for r in means.to_dict("records")
    ]
    note = (
        f"On {what}: KL(unsteered ‖ steered) of the next-token distributions, mean over the tokens, "
        "in nats, and the text's perplexity relative to that without steering."
    )
    return Section("Side effects", rows, note)


LIMITS = Section(
    "What was not measured", [],
    "Whether what is said is true. Other prompts, languages and longer answers than those swept. What a person would "
    "call the classes. Directions combined with others.",
)  # fmt: skip
