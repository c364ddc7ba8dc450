"""`Sweep`: the measured answers of a sweep as a table, its means, and its files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from steerkit.cells import Cell
from steerkit.exceptions import CorruptFileError, InvalidInputError
from steerkit.prompts import Prompt
from steerkit.vectors import new_folder

BABBLE = 5.0
"""At this many times the perplexity of the unsteered answer, an answer is no longer taken for one."""
METRICS = {
    "effect": "reading of the answer minus that of the unsteered one, in units of alpha",
    "preserved": "1 if the unsteered model still finds the question that the answer answers, and no babble, else 0",
    "margin": "by how much it does, in nats per token",
    "nll_rise": "nats per token by which the answer is less likely than the unsteered one; log of the perplexity ratio",
    "distinct_2": "share of word pairs that are not repeated",
}


@dataclass(frozen=True)
class Sweep:
    """The measured answers of a sweep.

    Attributes
    ----------
    cells : DataFrame
        One row per answer: ``direction`` ("unsteered", "fitted", "random", "shuffled", "prompted ..."), ``layer`` (-1
        where nothing is added), ``alpha``, ``prompt``, ``text``, and the columns of `METRICS`.
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
    def prompts(self) -> list[str]:
        """The prompts, in the order in which they were given."""
        return list(self.cells["prompt"].unique())

    def means(self) -> pd.DataFrame:
        """Return the mean of every metric over the prompts, a row per direction, layer and alpha."""
        return self.cells.groupby(["direction", "layer", "alpha"])[list(METRICS)].mean().reset_index()

    def pivot(self, metric: str, *, direction: str = "fitted") -> pd.DataFrame:
        """Return the mean of a metric, layers down and alphas (0, the unsteered answers, included) across."""
        if metric not in METRICS:
            raise InvalidInputError(f"metric={metric!r} is not known; pass one of {', '.join(map(repr, METRICS))}.")
        means = self.means()
        table = means[means["direction"] == direction].pivot(index="layer", columns="alpha", values=metric)
        table[0.0] = float(means.loc[means["direction"] == "unsteered", metric].iloc[0])
        return table.sort_index(axis=1)

    def answers(self, prompt: str, layer: int) -> pd.DataFrame:
        """Return the cells of one prompt at one layer by ascending alpha, the unsteered answer among them."""
        mine = self.cells[self.cells["prompt"] == prompt]
        fitted = (mine["direction"] == "fitted") & (mine["layer"] == layer)
        return mine[fitted | (mine["direction"] == "unsteered")].sort_values("alpha")

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
            cells = pd.DataFrame(map(json.loads, lines)).astype({"alpha": float, **dict.fromkeys(METRICS, float)})
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
    # Scraps of words on the topic still find their question; they preserve nothing.
    measured["preserved"] = ((measured["margin"] > 0) & (measured["nll_rise"] < np.log(BABBLE))).astype(float)
    measured["prompt"] = [str(prompts[place]) for place in measured["prompt"]]
    return measured[["direction", "layer", "alpha", "prompt", "text", *METRICS]]
