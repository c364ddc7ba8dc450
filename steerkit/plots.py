"""Figures of a fitted estimator and a sweep. Colours can be told apart by the colour-blind and, printed, in grey."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from steerkit.calibration import Calibration
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import MissingExtraError
from steerkit.neighbourhood import Neighbourhood
from steerkit.sweep_results import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0060a8", "#d55e00", "#8a8a8a"
TITLES = {
    "effect": "Effect: how far the answers move (units of alpha)",
    "preserved": "Preservation: share of answers that still answer their question",
    "nll_rise": "Fluency: rise of the answers' nats per token",
    "margin": "Margin of the true question over the best other (nats per token)",
    "distinct_2": "Repetition: share of word pairs that are new",
    "length": "Length of the answers (words)",
}
DASHES = {"random": ("--", "s"), "shuffled": (":", "^")}


def check_drawable() -> None:
    """Raise `MissingExtraError` unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("plots need matplotlib; pip install 'steerkit-estimator[plots]'.")


def figures(estimator: SteeringEstimator, sweep: Sweep, calibration: Calibration) -> dict[str, "Figure"]:
    """Return all figures by name: reading and steering over the layers, heat maps, dose and response."""
    return {
        "layers": plot_layers(estimator, calibration),
        **{metric: plot_heatmap(sweep, metric, calibration) for metric in sweep.metrics},
        "dose_response": plot_dose_response(sweep, calibration),
        "prompts": plot_prompts(sweep, calibration),
    }


def plot_layers(estimator: SteeringEstimator, calibration: Calibration) -> "Figure":
    """Draw what a probe reads at each layer above what steering there does: reading is not steering."""
    figure, (above, below) = _figure(2, height=5.4)
    layers = estimator.layers_
    above.errorbar(
        layers,
        estimator.accuracies_,
        estimator.accuracy_errors_,
        color=BLUE,
        marker="o",
        capsize=3,
        label="cross-validated",
    )
    above.axhline(0.5, color=GREY, linestyle=":", label="chance")
    above.set(
        ylabel="probe accuracy",
        ylim=(min(0.4, float(np.nanmin(estimator.accuracies_, initial=1.0)) - 0.05), 1.04),
        title="Where the concept can be read …",
        xticks=layers,
    )
    table = calibration.layers
    below.bar(table.index - 0.2, table["span"], 0.4, color=ORANGE, label="fitted direction")
    below.bar(
        table.index + 0.2, table["control_span"], 0.4, color=GREY, hatch="///", label="random direction, same alphas"
    )
    below.axhline(0, color="black", linewidth=0.8)
    below.annotate(
        "chosen", (calibration.layer - 0.2, calibration.span), xytext=(0, 4), textcoords="offset points", ha="center"
    )
    top = float(max(table["span"].max(), 0.01))
    below.set(
        xlabel="layer", ylabel="effect span (units of alpha)", title="… and where steering works, at usable alphas",
        xticks=layers,
        ylim=(min(0.0, float(table[["span", "control_span"]].min().min()) * 1.2), top * 1.2),
    )  # fmt: skip
    for axes in (above, below):
        axes.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
        axes.legend(frameon=False, loc="best", fontsize="small")
    return figure


def plot_heatmap(sweep: Sweep, metric: str, calibration: Calibration | None = None) -> "Figure":
    """Draw the mean of a metric over layer × alpha, with its values; the chosen cells are framed."""
    table = sweep.pivot(metric)
    figure, (axes,) = _figure(1, height=1.4 + 0.36 * len(table), width=max(5.0, 0.75 * len(table.columns) + 1.8))
    values = table.to_numpy()
    largest = float(np.nanmax(np.abs(values))) or 1.0
    scale = {"effect": ("PuOr", -largest, largest), "margin": ("PuOr", -largest, largest)}
    scale |= dict.fromkeys(("preserved", "distinct_2"), ("cividis", 0.0, 1.0))
    colours, low, high = scale.get(metric, ("cividis_r", min(0.0, float(np.nanmin(values))), largest))
    image = axes.imshow(values, aspect="auto", origin="lower", cmap=colours, vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = f"{round(value, 2) + 0.0:.2f}" if np.isfinite(value) else "–"
        axes.text(column, row, text, ha="center", va="center", fontsize="small", color="white" if dark else "black")
    if calibration is not None and calibration.layer in table.index:
        row = table.index.get_loc(calibration.layer)
        inside = [i for i, alpha in enumerate(table.columns) if calibration.alphas[0] <= alpha <= calibration.alphas[1]]
        left, right = inside[0] - 0.5, inside[-1] + 0.5
        axes.plot(
            [left, right, right, left, left],
            [row - 0.5, row - 0.5, row + 0.5, row + 0.5, row - 0.5],
            color="black",
            linewidth=2,
            clip_on=False,
        )
    axes.set(
        xticks=range(len(table.columns)), xticklabels=[f"{alpha:+g}" if alpha else "0" for alpha in table.columns],
        yticks=range(len(table)), yticklabels=table.index,
        xlabel="alpha (fraction of the activation norm)", ylabel="layer",
        title=TITLES.get(metric, metric),
    )  # fmt: skip
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    figure.colorbar(image, ax=axes)
    return figure


def plot_dose_response(sweep: Sweep, calibration: Calibration) -> "Figure":
    """Draw effect and preservation over alpha at the chosen layer, beside the controls; bands are ± 1.96 s.e.

    The effect of asking for it in words is a line across.
    """
    figure, (above, below) = _figure(2, height=5.4, width=8.4)
    for metric, axes in (("effect", above), ("preserved", below)):
        kinds = [kind for kind in DASHES if kind in set(sweep.cells["direction"])]
        styles = [("fitted", ORANGE, "-", "o"), *((kind, GREY, *DASHES[kind]) for kind in kinds)]
        for direction, colour, line, marker in styles:
            cells = sweep.cells[(sweep.cells["layer"] == calibration.layer) & (sweep.cells["direction"] == direction)]
            bare = sweep.cells[sweep.cells["direction"] == "unsteered"]
            by_alpha = [*cells.groupby("alpha")[metric], (0.0, bare[metric])]
            by_alpha.sort(key=lambda item: float(item[0]))
            alphas = np.array([float(alpha) for alpha, _ in by_alpha])
            means = np.array([values.mean() for _, values in by_alpha])
            errors = np.array([values.sem() for _, values in by_alpha])
            axes.plot(alphas, means, color=colour, linestyle=line, marker=marker, label=f"{direction} direction")
            low, high = means - 1.96 * errors, means + 1.96 * errors
            if metric == "preserved":
                low, high = low.clip(0, 1), high.clip(0, 1)
            axes.fill_between(alphas, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.axvspan(*calibration.alphas, color=BLUE, alpha=0.08, linewidth=0, label="usable alphas")
        axes.axhline(0, color="black", linewidth=0.8)
    prompted = sweep.cells[sweep.cells["direction"].str.startswith("prompted ")]
    for name, value in prompted.groupby("direction")["effect"].mean().items():
        above.axhline(value, color=BLUE, linestyle="-.", linewidth=1)
        above.annotate(str(name), (0.01, value), xycoords=("axes fraction", "data"), fontsize="small", va="bottom")
    above.set(ylabel="effect (units of alpha)", title=f"Layer {calibration.layer}: style moves …")
    below.set(
        ylabel="preservation",
        xlabel="alpha (fraction of the activation norm)",
        title="… until meaning is lost",
        ylim=(-0.04, 1.04),
    )
    above.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def plot_prompts(sweep: Sweep, calibration: Calibration) -> "Figure":
    """Draw by prompt how much effect one unit of alpha has at the chosen layer, within the usable alphas."""
    slopes = sweep.slopes(calibration.layer, alphas=calibration.alphas).sort_values()
    figure, (axes,) = _figure(1, height=1.2 + 0.26 * len(slopes))
    wrong = slopes < 0
    places = np.arange(len(slopes))
    axes.barh(places[~wrong], slopes[~wrong], color=ORANGE, label="moves as asked")
    if wrong.any():
        axes.barh(places[wrong], slopes[wrong], color=GREY, hatch="///", label="moves the wrong way")
    axes.axvline(0, color="black", linewidth=0.8)
    names = [name if len(name) <= 48 else f"{name[:47]}…" for name in slopes.index]
    axes.set(
        yticks=places, yticklabels=names, xlabel="effect per unit of alpha",
        title=f"Layer {calibration.layer}: {wrong.mean():.0%} of the prompts are anti-steerable",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def plot_references(ratios: pd.DataFrame, labels: Sequence[str], calibration: Calibration | None = None) -> "Figure":
    """Draw by layer how far given answers trade places in likelihood between -alpha and +alpha, equal at all layers.

    ``ratios`` is what `sweep_references` returned. With a calibration, alphas beyond its usable ones are left out.
    """
    figure, (axes,) = _figure(1, height=3.4, width=8.4)
    means = ratios.groupby(["direction", "alpha", "layer"])["ratio"].mean()
    bare = float(means["unsteered"].mean())
    sizes = sorted({abs(alpha) for alpha in ratios["alpha"]} - {0.0})
    usable = [size for size in sizes if calibration is None or size <= max(map(abs, calibration.alphas))] or sizes[:1]
    drawn = [("fitted", ORANGE, "-", "o", place, size) for place, size in enumerate(usable)]
    drawn += [("random", GREY, *DASHES["random"], len(usable) - 1, usable[-1])]
    for direction, colour, line, marker, place, size in drawn:
        ends = [means[direction, end] if end in means[direction] else bare for end in (size, -size)]
        span = pd.Series(ends[0] - ends[1])
        axes.plot(
            span.index, span, color=colour, linestyle=line, marker=marker, alpha=(place + 1) / len(usable),
            label=f"{direction} direction, alpha ±{size:g}",
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel="layer", ylabel=f"{labels[1]} against {labels[0]} answer\n(nats per token)", xticks=list(span.index),
        title="How far given answers trade places in likelihood, at equal alphas",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def plot_neighbourhood(found: Neighbourhood) -> "Figure":
    """Draw effect span and preservation over the angle to the fitted direction; bands are ± 1.96 s.e. over planes."""
    figure, (above, below) = _figure(2, height=5.4)
    means = found.means()
    resampled = found.table[found.table["kind"] == "bootstrap"]
    for metric, axes in (("span", above), ("preserved", below)):
        middle, error = means[metric]["mean"], means[metric]["sem"].fillna(0.0)
        axes.plot(means.index, middle, color=ORANGE, marker="o", label="turned in random planes")
        axes.fill_between(
            means.index, middle - 1.96 * error, middle + 1.96 * error, color=ORANGE, alpha=0.2, linewidth=0
        )
        if len(resampled):
            axes.plot(resampled["angle"], resampled[metric], "^", color=BLUE, label="refitted to resampled prompts")
    angles = np.linspace(0, max(means.index), 50)
    above.plot(
        angles, means["span"]["mean"][0.0] * np.cos(np.deg2rad(angles)), "--", color=GREY,
        label="if only the part along the fitted one counted",
    )  # fmt: skip
    above.axhline(0, color="black", linewidth=0.8)
    if np.isfinite(found.cone):
        above.axvline(found.cone, color="black", linestyle=":", linewidth=1)
        above.annotate(f"half at {found.cone:.0f}°", (found.cone, 0), xytext=(4, 4), textcoords="offset points")
    above.set(
        ylabel="effect span (units of alpha)",
        title=f"Layer {found.layer}, alpha {found.alphas[0]:+g} to {found.alphas[1]:+g}: how wide a cone works?",
    )
    below.set(ylabel="preservation, worse end", xlabel="angle to the fitted direction (degrees)", ylim=(-0.04, 1.04))
    above.legend(frameon=False, fontsize="small")
    return figure


def _figure(panels: int, *, height: float, width: float = 7.0) -> "tuple[Figure, list[Axes]]":
    check_drawable()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = [figure.add_subplot(panels, 1, number + 1) for number in range(panels)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes
