"""What a person reads at the end of a run: tables of layers, and of answers side by side as text and as a page."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from steerkit.calibration import Calibration
from steerkit.estimator import SteeringEstimator
from steerkit.neighbourhood import Neighbourhood
from steerkit.sweep_results import Sweep

STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2rem;color:#1b1b1b}"
    "table{border-collapse:collapse}th,td{border:1px solid #ccc;padding:.5rem;vertical-align:top;text-align:left;"
    "min-width:14rem}thead th{position:sticky;top:0;background:#f2f2f2}tbody th{min-width:9rem}"
    "td.lost{background:#e4e4e4;color:#555}"
)


def layers_table(
    estimator: SteeringEstimator, test_scores: NDArray[np.float64] | None, calibration: Calibration | None = None
) -> Table:
    """Return a table of accuracy, norm and steering effect (units of alpha) per layer; the chosen layer is marked."""
    table = Table(title="Where the concept is read, and where steering works", title_justify="left")
    for heading in (
        "layer",
        "accuracy\n(cv)",
        "s.e.",
        "accuracy\n(test)",
        "norm",
        "usable\nalphas",
        "effect\nspan",
        "random\nspan",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, layer in enumerate(estimator.layers_):
        steering = ["–"] * 3
        if calibration is not None and layer in calibration.layers.index:
            row = calibration.layers.loc[layer]
            steering = [f"{row['lower']:+g} … {row['upper']:+g}", f"{row['span']:.2f}", f"{row['control_span']:.2f}"]
        chosen = calibration is not None and layer == calibration.layer
        table.add_row(
            f"→ {layer}" if chosen else str(layer),
            f"{estimator.accuracies_[place]:.2f}",
            f"{estimator.accuracy_errors_[place]:.2f}",
            "–" if test_scores is None else f"{test_scores[place]:.2f}",
            f"{estimator.norms_[place]:.1f}",
            *steering,
            style="bold" if chosen else None,
        )
    return table


def answers_table(question: str, alphas: Sequence[float], answers: Sequence[str], *, classes: Sequence[str]) -> Table:
    """Return a table of one question's answers by alpha."""
    table = Table(title=question, title_justify="left", show_lines=True)
    table.add_column("alpha", justify="right", no_wrap=True)
    table.add_column(f"answer (minus: {classes[0]}, plus: {classes[1]})")
    for alpha, answer in zip(alphas, answers, strict=True):
        table.add_row(
            f"{alpha:+.2f}" if alpha else "0", " ".join(answer.split()) or "(nothing)", style=None if alpha else "bold"
        )
    return table


def neighbourhood_table(found: Neighbourhood) -> Table:
    """Return a table of effect span and preservation by angle to the fitted direction."""
    half = f"half of the effect is left at {found.cone:.0f}°" if np.isfinite(found.cone) else "half is never lost"
    table = Table(title=f"Directions near that of layer {found.layer}: {half}", title_justify="left")
    for heading in ("angle", "effect span", "s.e.", "share of the fitted", "preserved", "directions"):
        table.add_column(heading, justify="right")
    whole = float(found.table.iloc[0]["span"])
    resampled = found.table[found.table["kind"] == "bootstrap"]
    groups = [(f"{angle:g}°", rows) for angle, rows in found.table.drop(resampled.index).groupby("angle")]
    if len(resampled):
        groups.append((f"bootstrap, {resampled['angle'].mean():.0f}°", resampled))
    for name, rows in groups:
        span, error = float(rows["span"].mean()), float(rows["span"].sem())
        table.add_row(
            name, f"{span:.3f}", f"{error:.3f}" if np.isfinite(error) else "–", f"{span / whole:.0%}" if whole else "–",
            f"{rows['preserved'].mean():.2f}", str(len(rows)),
        )  # fmt: skip
    return table


def answers_page(sweep: Sweep, layer: int) -> str:
    """Return an HTML page of all answers at a layer: prompts down, alphas across.

    An answer that no longer answers its question is grey and marked.
    """
    tables = [sweep.answers(prompt, layer) for prompt in sweep.prompts]
    heads = "".join(f"<th>{alpha:+g}</th>" if alpha else "<th>unsteered</th>" for alpha in tables[0]["alpha"])
    rows = "".join(
        f"<tr><th>{escape(prompt)}</th>{''.join(map(_answer, table.to_dict('records')))}</tr>\n"
        for prompt, table in zip(sweep.prompts, tables, strict=True)
    )
    title = f"Answers at layer {layer}, by alpha"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n<style>{STYLE}</style>\n'
        f"<h1>{title}</h1>\n<p>† and grey: the unsteered model no longer finds the question in the answer, or it "
        f"is babble.</p>\n<table><thead><tr><th>prompt</th>{heads}</tr></thead><tbody>\n{rows}</tbody></table></html>\n"
    )


def _answer(cell: dict[str, Any]) -> str:
    text = escape(" ".join(cell["text"].split())) or "(nothing)"
    lost = "" if cell["preserved"] else ' class="lost"'
    return f'<td{lost} title="effect {cell["effect"]:+.2f}">{"" if cell["preserved"] else "† "}{text}</td>'
