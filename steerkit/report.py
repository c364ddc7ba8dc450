"""What a person reads at the end of a run: rich tables of layers and of answers side by side."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from steerkit.calibration import Calibration
from steerkit.estimator import SteeringEstimator


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
