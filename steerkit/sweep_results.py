"""`Sweep`: the measured answers of a sweep as a table, its means, and its files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from steerkit.cells import Cell
from steerkit.exceptions import CorruptFileError, InvalidInputError, NothingSteersError
from steerkit.metrics import KEYS, METRICS, Answers, Metric, as_metrics, n_words, preserved
from steerkit.prompts import Prompt
from steerkit.vectors import new_folder

COLLAPSED = 10.0
"""At this many times the unsteered perplexity, text is no longer language."""
ROUNDING = 1e-9
"""So that eighteen of twenty are nine tenths."""


@dataclass(frozen=True)
class Sweep:
    """The measured answers of a sweep.

    Attributes
    ----------
    cells : DataFrame
        One row per answer: ``direction`` ("unsteered", "fitted", "random", "shuffled", "prompted ..."), ``layer`` (-1
        where nothing is added), ``alpha``, ``prompt``, ``text``, the columns of `METRICS`, and those of `measure`.
    settings : dict
        JSON values: model, generation, the reader's accuracy.
    """

    cells: pd.DataFrame
    settings: dict[str, Any]

    @property
    def layers(self) -> list[int]:
        """The steered layers, ascending."""
        return sorted(int(layer) for layer in self.cells["layer"].unique() if layer >= 0)

    @property
    def alphas(self) -> list[float]:
        """The strengths other than 0, ascending."""
        return sorted(float(alpha) for alpha in self.cells["alpha"].unique() if alpha)

    @property
    def prompts(self) -> list[str]:
        """The prompts, in the order in which they were given."""
        return list(self.cells["prompt"].unique())

    @property
    def metrics(self) -> list[str]:
        """The names of what was measured."""
        return [column for column in self.cells if column not in KEYS]

    def measure(self, *metrics: Metric | Callable[[Any, str], float]) -> Self:
        """Return the sweep with more metrics: `Metric` objects, or functions of a prompt and an answer.

        Equal answers to one prompt are measured once.
        """
        chosen = as_metrics(metrics)
        columns = self.cells.copy()
        bare = columns[columns["direction"] == "unsteered"].set_index("prompt")["text"]
        unique = columns[["prompt", "text"]].drop_duplicates()
        prompts, texts = unique["prompt"].tolist(), unique["text"].tolist()
        answers = Answers(prompts, texts, bare[prompts].tolist())
        better = dict(self.settings.get("greater_is_better", {}))
        for metric in chosen:
            measured = np.asarray(metric.measure(answers), dtype=np.float64)
            if measured.shape != (len(texts),) or np.isinf(measured).any():
                raise InvalidInputError(
                    f"metric {metric.name!r} returned {measured.shape} for {len(texts)} answers"
                    f"{', infinite ones among them' if np.isinf(measured).any() else ''}; return one finite number for "
                    "each, NaN where there is none."
                )
            values = dict(zip(zip(prompts, texts, strict=True), measured.tolist(), strict=True))
            columns[metric.name] = [values[pair] for pair in zip(columns["prompt"], columns["text"], strict=True)]
            better[metric.name] = metric.greater_is_better
        return type(self)(columns, {**self.settings, "greater_is_better": better})

    def means(self) -> pd.DataFrame:
        """Return the mean of every metric over the prompts, a row per direction, layer and alpha."""
        return self.cells.groupby(["direction", "layer", "alpha"])[self.metrics].mean().reset_index()

    def best(self, metric: str = "effect", *, preservation: float = 0.9, perplexity: float = 2.0) -> "pd.Series[Any]":
        """Return the row of `means` in which the fitted direction has most of a metric without breaking the answers.

        Parameters
        ----------
        metric : str
            Least of it counts as most where less is better.
        preservation : float
            Share of what the unsteered answers preserve that must be preserved.
        perplexity : float
            Most times the perplexity of the unsteered answers.

        Raises
        ------
        NothingSteersError
            No cell is within these bounds.
        """
        self._check(metric)
        means = self.means()
        bare = means[means["direction"] == "unsteered"].iloc[0]
        kept = (means["preserved"] >= preservation * bare["preserved"] - ROUNDING) & (bare["preserved"] > 0)
        rows = means[(means["direction"] == "fitted") & kept & (means["nll_rise"] <= np.log(perplexity))]
        rows = rows[rows[metric].notna()]
        if rows.empty:
            raise NothingSteersError(
                f"no layer and alpha preserves {preservation:.0%} of the answers with at most {perplexity:g} times "
                "their perplexity; sweep over smaller alphas."
            )
        better = {name: known.greater_is_better for name, known in METRICS.items()}
        better |= self.settings.get("greater_is_better", {})
        return rows.loc[rows[metric].idxmin() if better[metric] is False else rows[metric].idxmax()]

    def pivot(self, metric: str, *, direction: str = "fitted") -> pd.DataFrame:
        """Return the mean of a metric, layers down and alphas (0, the unsteered answers, included) across."""
        self._check(metric)
        means = self.means()
        steered = sorted(set(means.loc[means["layer"] >= 0, "direction"]))
        if direction not in steered:
            raise InvalidInputError(f"direction={direction!r} was not swept; pass one of {steered}.")
        table = means[means["direction"] == direction].pivot(index="layer", columns="alpha", values=metric)
        table[0.0] = float(means.loc[means["direction"] == "unsteered", metric].iloc[0])
        return table.sort_index(axis=1)

    def collapsed(self, *, direction: str = "fitted") -> pd.DataFrame:
        """Return by layer and alpha whether the text has broken down.

        At most half of what the unsteered answers preserve is preserved, or the perplexity is `COLLAPSED` times theirs.
        """
        kept, rise = self.pivot("preserved", direction=direction), self.pivot("nll_rise", direction=direction)
        # Where nothing is preserved unsteered, nothing can be lost. A rise of NaN, where every answer is empty, is no
        # rise within bounds, unless the unsteered answers are empty too.
        lost = kept.le(0.5 * kept[0.0], axis=0).mul(kept[0.0] > 0, axis=0)
        broken = lost | (~(rise < np.log(COLLAPSED))).mul(rise[0.0].notna(), axis=0)
        return broken.drop(columns=0.0)

    def slopes(self, layer: int, *, alphas: tuple[float, float] = (-np.inf, np.inf)) -> "pd.Series[float]":
        """Return by prompt how much effect one unit of alpha has, fitted by least squares to alphas within bounds.

        A prompt with a slope below 0 is anti-steerable: its answer moves the wrong way (Tan et al. 2024, "Analyzing
        the Generalization and Reliability of Steering Vectors"). NaN where no alpha but 0 is within the bounds.
        """
        if layer not in self.layers:
            raise InvalidInputError(f"layer={layer!r} was not swept; pass one of {self.layers}.")
        mine = self.cells[(self.cells["direction"] == "fitted") & (self.cells["layer"] == layer)]
        mine = mine[mine["alpha"].between(*alphas)]
        # The unsteered answer has alpha 0 and effect 0, so the line goes through the origin.
        products = (mine["alpha"] * mine["effect"]).groupby(mine["prompt"]).sum()
        squares = (mine["alpha"] ** 2).groupby(mine["prompt"]).sum()
        return (products / squares).reindex(self.prompts).rename("slope")

    def plot(self, metric: str = "effect") -> Any:
        """Draw a heat map of a metric over layer × alpha; returns a matplotlib ``Figure``."""
        return import_module("steerkit.plots").plot_heatmap(self, metric)  # drawing is a floor above

    def answers(self, prompt: str, layer: int) -> pd.DataFrame:
        """Return the cells of one prompt at one layer by ascending alpha, the unsteered answer among them."""
        mine = self.cells[self.cells["prompt"] == prompt]
        fitted = (mine["direction"] == "fitted") & (mine["layer"] == layer)
        return mine[fitted | (mine["direction"] == "unsteered")].sort_values("alpha")

    def _check(self, metric: str) -> None:
        if metric not in self.metrics:
            raise InvalidInputError(
                f"metric={metric!r} is not known; pass one of {', '.join(map(repr, self.metrics))}."
            )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write ``cells.jsonl`` and ``sweep.json`` into a new folder."""
        with new_folder(path, overwrite=overwrite, holds="sweep.json") as folder:
            rows = self.cells.astype(object).where(self.cells.notna(), None).to_dict("records")
            # Not by pandas, which rounds: 0.35 must come back as 0.35.
            lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            (folder / "cells.jsonl").write_text(lines, encoding="utf-8")
            (folder / "sweep.json").write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        try:
            lines = Path(path, "cells.jsonl").read_text(encoding="utf-8").splitlines()
            cells = pd.DataFrame(map(json.loads, lines))
            cells = cells.astype(dict.fromkeys({*cells, *METRICS} - {*KEYS}, float) | {"alpha": float})
            settings = json.loads(Path(path, "sweep.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{path} holds no readable sweep ({error}); run it again.") from error
        return cls(cells, settings)


def measured_cells(
    cells: Sequence[Cell], contents: Sequence[dict[str, Any]], prompts: Sequence[Prompt]
) -> pd.DataFrame:
    """Return the cells with the columns of `METRICS`; effects and rises are relative to the unsteered answers."""
    rows = [
        {"direction": cell.direction, "layer": cell.layer, "alpha": cell.alpha, "prompt": cell.prompt, **content}
        for cell, content in zip(cells, contents, strict=True)
    ]
    measured = pd.DataFrame(rows).astype({"margin": float, "nll": float})
    base = measured[measured["direction"] == "unsteered"].set_index("prompt")
    measured["effect"] = measured["reading"] - measured["prompt"].map(base["reading"])
    measured["nll_rise"] = measured["nll"] - measured["prompt"].map(base["nll"])
    measured["preserved"] = preserved(measured["margin"], measured["nll_rise"])
    measured["length"] = [float(n_words(text)) for text in measured["text"]]
    measured["prompt"] = [str(prompts[place]) for place in measured["prompt"]]
    return measured[[*KEYS, *METRICS]]
