"""`sweep`: steer at layers × alphas × prompts, beside a random control, and measure every answer."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from steerkit.activations import resolve_layers
from steerkit.batching import batches
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import CorruptFileError, InvalidInputError, NonFiniteError, NotFittedError
from steerkit.hooks import edit
from steerkit.language_model import LanguageModel
from steerkit.metrics import TOKENS_PER_BATCH, EffectReader, distinct_2, question_likelihoods
from steerkit.operations import add
from steerkit.prompts import Prompt, check_prompts
from steerkit.vectors import new_folder

ALPHAS = (-0.7, -0.35, -0.25, -0.15, 0.15, 0.25, 0.35, 0.7)
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
        One row per answer: ``direction`` ("unsteered", "fitted", "random"), ``layer`` (-1 where unsteered),
        ``alpha``, ``prompt``, ``text``, and the columns of `METRICS`.
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


def sweep(
    estimator: SteeringEstimator,
    prompts: Sequence[Prompt],
    *,
    reader: EffectReader,
    layers: Any = "auto",
    alphas: Sequence[float] = ALPHAS,
    distractors: Sequence[Prompt] = (),
    controls: Sequence[str] = ("random",),
    random_state: int = 0,
    max_new_tokens: int = 64,
    batch_rows: int = 64,
    progress: bool = False,
    **generation: Any,
) -> Sweep:
    """Steer at every layer × alpha × prompt and measure the answers.

    Each row of a batch has its own layer, alpha and direction. Unsteered answers are generated once. The control
    adds, at the same layers and alphas, a random direction of equal norm, another one for each layer and prompt.

    Parameters
    ----------
    estimator : fitted SteeringEstimator
    prompts : sequence of str
        Questions that say nothing of either class.
    reader : fitted EffectReader
        Fitted on other prompts than the estimator.
    layers : "auto", int or list of int
        ``"auto"``: all layers that have a direction.
    alphas : sequence of float
        Fractions of the layer's norm; 0 is always measured besides.
    distractors : sequence of str
        More questions from which `question_likelihoods` has to tell the true one.
    controls : sequence of str
        ``("random",)``, or empty to save half of the time; `calibrate` needs the control.
    random_state : int
        Of the control's directions.
    batch_rows : int
        Most answers generated at once.
    progress : bool
        Show a progress bar.
    **generation
        As in ``transformers``' ``generate``.
    """
    if not hasattr(estimator, "layers_"):
        raise NotFittedError("the estimator is not fitted; call its fit first.")
    if estimator.directions_.ndim > 2:
        raise InvalidInputError(
            f"the estimator has {len(estimator.classes_)} classes, a sweep goes from one to another; fit it to two."
        )
    if not hasattr(reader, "layer_"):
        raise NotFittedError("the reader is not fitted; call its fit with prompts that the direction has not seen.")
    if "num_return_sequences" in generation:
        raise InvalidInputError("num_return_sequences is not supported, a cell is one answer; sweep again with a seed.")
    if list(controls) not in ([], ["random"]):
        raise InvalidInputError(f"controls={controls!r} is not known; pass ('random',) or ().")
    model = LanguageModel.of(estimator.model)
    checked, others = check_prompts(prompts), check_prompts(distractors)
    if len(set(map(str, [*checked, *others]))) < 2 or len(set(map(str, checked))) < len(checked):
        raise InvalidInputError(
            f"{len(checked)} prompts and {len(others)} distractors came, no prompt twice and at least two different "
            "questions in all were expected; preservation is told by finding the question among others."
        )
    try:
        strengths = sorted({float(alpha) for alpha in np.atleast_1d(np.asarray(alphas, dtype=float))} - {0.0})
    except (TypeError, ValueError):
        strengths = []
    if not strengths or not np.isfinite(strengths).all():
        raise NonFiniteError(f"alphas={alphas!r} must hold finite numbers other than 0; pass fractions such as [0.1].")
    if isinstance(layers, str) and layers == "auto":
        fitted = zip(estimator.layers_, estimator.directions_, strict=True)
        steered = [layer for layer, direction in fitted if direction.any()]
    else:
        steered = resolve_layers(model, layers)
    vectors = {layer: estimator.vector(layer) for layer in steered}

    rows = [("unsteered", -1, 0.0, index) for index in range(len(checked))]
    rows += [
        (direction, layer, alpha, index)
        for direction in ("fitted", *controls)
        for layer in vectors
        for alpha in strengths
        for index in range(len(checked))
    ]
    cells = pd.DataFrame(rows, columns=["direction", "layer", "alpha", "prompt"])
    generator = np.random.default_rng(random_state)
    units = {
        (layer, index): _random_unit(generator, model.hidden_size) for layer in vectors for index in range(len(checked))
    }
    directions = {
        row: (vectors[layer].direction if kind == "fitted" else units[layer, index]) * vectors[layer].norm * alpha
        for row, (kind, layer, alpha, index) in enumerate(rows)
        if layer >= 0
    }
    with _bar(progress) as bar:
        sequences = model.encode(checked)
        cells["text"] = _generate(
            model, [sequences[index] for index in cells["prompt"]], cells["layer"].to_numpy(), directions, batch_rows,
            bar, max_new_tokens=max_new_tokens, **generation,
        )  # fmt: skip
        cells = _measure(model, cells, checked, others, reader, bar)
    cells["prompt"] = [str(checked[index]) for index in cells["prompt"]]
    settings = {
        "model": model.name,
        "fingerprint": model.fingerprint.to_dict(),
        "random_state": random_state,
        "generation": {"max_new_tokens": max_new_tokens, **generation},
        "distractors": len(others),
        "reader_accuracy": reader.accuracy_,
        "reader_layer": reader.layer_,
    }
    return Sweep(cells, settings)


def _random_unit(generator: np.random.Generator, size: int) -> NDArray[np.float32]:
    direction = generator.normal(size=size)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def _generate(
    model: LanguageModel,
    sequences: list[list[int]],
    layers: NDArray[np.int64],
    steps: dict[int, NDArray[np.float32]],
    batch_rows: int,
    bar: Any,
    **generation: Any,
) -> list[str]:
    """Generate all rows; ``steps[row]`` is what is added to the residual stream of that row at ``layers[row]``."""
    texts = [""] * len(sequences)
    task = bar.add_task("generating", total=len(sequences)) if bar else None
    lengths = [len(sequence) + generation["max_new_tokens"] for sequence in sequences]
    none = np.zeros(model.hidden_size, dtype=np.float32)
    for rows in batches(lengths, tokens=TOKENS_PER_BATCH, rows=batch_rows):
        edits = []
        for layer in sorted({int(layers[row]) for row in rows if row in steps}):
            added = np.stack([steps[row] if layers[row] == layer else none for row in rows])
            edits.append((layer, partial(add, direction=torch.from_numpy(added), amount=torch.tensor(1.0))))
        with model.held(), edit(model.blocks, edits):
            batch = model.generate([sequences[row] for row in rows], **generation)
        for row, text in zip(rows, batch, strict=True):
            texts[row] = text
        if bar:
            bar.advance(task, len(rows))
    return texts


def _measure(
    model: LanguageModel,
    cells: pd.DataFrame,
    prompts: list[Prompt],
    distractors: list[Prompt],
    reader: EffectReader,
    bar: Any,
) -> pd.DataFrame:
    """Add the columns of `METRICS`; equal answers to one prompt are measured once."""
    task = bar.add_task("measuring", total=len(cells)) if bar else None
    unique = cells.drop_duplicates(["prompt", "text"])[["prompt", "text"]].reset_index(drop=True)
    parts = []
    for start in range(0, len(unique), 64):
        part = unique.iloc[start : start + 64].copy()
        asked, answers = [prompts[index] for index in part["prompt"]], part["text"].tolist()
        part["reading"] = reader.read(answers)
        own, best_other = question_likelihoods(model, asked, answers, [*prompts, *distractors])
        part["margin"], part["nll"] = own - best_other, -own
        parts.append(part)
        if bar:
            bar.update(task, completed=round(len(cells) * (start + len(part)) / len(unique)))
    measured = cells.merge(pd.concat(parts), on=["prompt", "text"], how="left", validate="many_to_one")
    base = measured[measured["direction"] == "unsteered"].set_index("prompt")
    measured["effect"] = measured["reading"] - measured["prompt"].map(base["reading"])
    measured["nll_rise"] = measured["nll"] - measured["prompt"].map(base["nll"])
    # Scraps of words on the topic still find their question; they preserve nothing.
    measured["preserved"] = ((measured["margin"] > 0) & (measured["nll_rise"] < np.log(BABBLE))).astype(float)
    measured["distinct_2"] = measured["text"].map(distinct_2)
    return measured[["direction", "layer", "alpha", "prompt", "text", *METRICS]]


def _bar(progress: bool) -> Any:
    if not progress:
        return nullcontext()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
