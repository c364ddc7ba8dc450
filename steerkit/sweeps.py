"""`sweep`: steer at layers × alphas × prompts, beside controls, measure every answer, and go on after a break."""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky.process_executor import TerminatedWorkerError
from numpy.typing import NDArray

from steerkit.activations import resolve_layers
from steerkit.batching import batches
from steerkit.cell_store import CellStore
from steerkit.cells import Bench, Cell
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError, NonFiniteError, NotFittedError
from steerkit.language_model import LanguageModel
from steerkit.prompts import Prompt, check_prompts
from steerkit.reading import TOKENS_PER_BATCH, EffectReader
from steerkit.sweep_results import Sweep, measured_cells

ALPHAS = (-0.7, -0.35, -0.25, -0.15, 0.15, 0.25, 0.35, 0.7)
CONTROLS = ("random", "shuffled")
DEATHS = 3
"""How often in a row workers may be killed without any batch being finished."""


def sweep(
    estimator: SteeringEstimator,
    prompts: Sequence[Prompt],
    *,
    reader: EffectReader,
    layers: Any = "auto",
    alphas: Sequence[float] = ALPHAS,
    distractors: Sequence[Prompt] = (),
    controls: Sequence[str] = ("random",),
    prompting: Mapping[str, str] | None = None,
    random_state: int = 0,
    max_new_tokens: int = 64,
    batch_rows: int = 64,
    resume: str | Path | None = None,
    n_jobs: int | None = None,
    progress: bool = False,
    **generation: Any,
) -> Sweep:
    """Steer at every layer × alpha × prompt and measure the answers.

    Each row of a batch has its own layer, alpha and direction. Unsteered answers are generated once.

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
    controls : sequence of {"random", "shuffled"}
        Directions to compare with, of equal norm at the same layers and alphas: a random one for each layer and
        prompt, which `calibrate` needs; what the learner finds when the labels are shuffled. May be empty.
    prompting : dict of str, optional
        The prompting baseline: a name, such as that of a class, and what is asked instead of each prompt, such as
        ``"Explain in simple words: {prompt}"``. The cells have the direction ``"prompted <name>"``.
    random_state : int
        Of the random directions.
    batch_rows : int
        Most answers generated at once.
    resume : str or Path, optional
        Folder in which finished cells are kept. A sweep with the same folder, after a kill or with more layers,
        alphas or prompts, computes only what is missing. Several sweeps may share it, also at the same time.
    n_jobs : int, optional
        Batches at a time, in processes of joblib's backend; each loads the model once. A killed worker costs its
        batch. Inside ``joblib.parallel_config("dask")`` the batches run on a Dask cluster.
    progress : bool
        Show a progress bar.
    **generation
        As in ``transformers``' ``generate``.

    Raises
    ------
    InvalidInputError, NotFittedError, NonFiniteError
        Before any work is done.
    StoreError
        The folder ``resume`` cannot be written; what was finished is kept.
    """
    steered = steered_layers(estimator, layers)
    if not hasattr(reader, "layer_"):
        raise NotFittedError("the reader is not fitted; call its fit with prompts that the direction has not seen.")
    if "num_return_sequences" in generation:
        raise InvalidInputError("num_return_sequences is not supported, a cell is one answer; sweep again with a seed.")
    model = LanguageModel.of(estimator.model)
    checked, others = check_prompts(prompts), check_prompts(distractors)
    if len(set(map(str, [*checked, *others]))) < 2 or len(set(map(str, checked))) < len(checked):
        raise InvalidInputError(
            f"{len(checked)} prompts and {len(others)} distractors came, no prompt twice and at least two different "
            "questions in all were expected; preservation is told by finding the question among others."
        )
    wordings = _check_prompting(prompting or {}, checked)
    strengths = check_alphas(alphas)
    directions = control_directions(estimator, steered, controls, len(checked), random_state)
    places = range(len(checked))
    cells = [Cell("unsteered", -1, 0.0, place) for place in places]
    cells += [
        Cell(f"prompted {name}", -1, 0.0, place, None, text) for name, text in wordings.items() for place in places
    ]
    cells += [
        Cell(kind, layer, alpha, place, alpha * direction(layer, place))
        for kind, direction in directions.items()
        for layer in steered
        for alpha in strengths
        for place in places
    ]
    bench = Bench(model, reader, checked, others, {"max_new_tokens": max_new_tokens, **generation})
    contents = _contents(bench, cells, batch_rows, None if resume is None else CellStore(resume), n_jobs, progress)
    settings = {
        "model": model.name,
        "fingerprint": model.fingerprint.to_dict(),
        "random_state": random_state,
        "generation": {"max_new_tokens": max_new_tokens, **generation},
        "distractors": len(others),
        "prompting": wordings,
        "reader_accuracy": reader.accuracy_,
        "reader_layer": reader.layer_,
    }
    return Sweep(measured_cells(cells, contents, checked), settings)


def steered_layers(estimator: SteeringEstimator, layers: Any) -> list[int]:
    """Return the layers to steer at, ascending; ``"auto"`` means all that have a direction.

    Raises
    ------
    NotFittedError, InvalidInputError, LayerError
    """
    if not hasattr(estimator, "layers_"):
        raise NotFittedError("the estimator is not fitted; call its fit first.")
    if estimator.directions_.ndim > 2:
        raise InvalidInputError(
            f"the estimator has {len(estimator.classes_)} classes, a sweep goes from one to another; fit it to two."
        )
    if isinstance(layers, str) and layers == "auto":
        fitted = zip(estimator.layers_, estimator.directions_, strict=True)
        return [layer for layer, direction in fitted if direction.any()]
    return resolve_layers(LanguageModel.of(estimator.model), layers)


def check_alphas(alphas: Any) -> list[float]:
    """Return the alphas other than 0, ascending, or raise `NonFiniteError`."""
    try:
        strengths = sorted({float(alpha) for alpha in np.atleast_1d(np.asarray(alphas, dtype=float))} - {0.0})
    except (TypeError, ValueError):
        strengths = []
    if not strengths or not np.isfinite(strengths).all():
        raise NonFiniteError(f"alphas={alphas!r} must hold finite numbers other than 0; pass fractions such as [0.1].")
    return strengths


def _check_prompting(prompting: Mapping[str, str], prompts: Sequence[Prompt]) -> dict[str, str]:
    for name, text in prompting.items():
        if "{prompt}" not in str(text):
            raise InvalidInputError(
                f"prompting[{name!r}]={text!r} lacks {{prompt}}, where the prompt is to stand; put it in."
            )
    if prompting and not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidInputError("prompting rewords prompts that are texts, lists of messages came; pass strings.")
    return dict(prompting)


def control_directions(
    estimator: SteeringEstimator, layers: Sequence[int], controls: Sequence[str], n_prompts: int, random_state: int
) -> dict[str, Callable[[int, int], NDArray[np.float32]]]:
    """Return what is added at alpha 1, ``(hidden size,)``, for "fitted" and each control, by layer and prompt.

    Raises
    ------
    InvalidInputError
        A control is unknown or not to be had.
    """
    if len({*controls}) < len(controls) or not {*controls} <= {*CONTROLS}:
        raise InvalidInputError(f"controls={controls!r} is not known; pass some of {', '.join(map(repr, CONTROLS))}.")
    vectors = {layer: estimator.vector(layer) for layer in layers}
    generator = np.random.default_rng(random_state)
    size = estimator.directions_.shape[-1]
    drawn = {(layer, place): generator.normal(size=size) for layer in layers for place in range(n_prompts)}

    def scaled(layer: int, direction: Any) -> NDArray[np.float32]:
        length = np.linalg.norm(direction) or 1.0
        return np.asarray(vectors[layer].norm * direction / length, dtype=np.float32)

    every: dict[str, Callable[[int, int], NDArray[np.float32]]] = {
        "fitted": lambda layer, _: scaled(layer, vectors[layer].direction),
        "random": lambda layer, place: scaled(layer, drawn[layer, place]),
        "shuffled": lambda layer, _: scaled(layer, shuffled[estimator.layers_.index(layer)]),
    }
    shuffled = estimator.shuffled_directions_
    if "shuffled" in controls and not shuffled.any():
        raise InvalidInputError(
            f"{estimator.learner!r} has no directions of shuffled labels, as its own were given or a class has one "
            "text; leave out that control."
        )
    return {kind: every[kind] for kind in ("fitted", *controls)}


def _contents(
    bench: Bench, cells: list[Cell], batch_rows: int, store: CellStore | None, n_jobs: int | None, progress: bool
) -> list[dict[str, Any]]:
    """Return the content of every cell, from the store or computed."""
    digests = bench.digests(cells) if store else []
    contents: dict[int, dict[str, Any]] = {}
    if store:
        found = store.get(digests)
        contents = {row: found[name] for row, name in enumerate(digests) if name in found}
    if effective_n_jobs(n_jobs) > 1:
        pickle.dumps(bench.model)  # a model that cannot travel is refused before any work
    room = bench.generation["max_new_tokens"]
    lengths = [len(sequence) + room for sequence in bench.model.encode([bench.asked(cell) for cell in cells])]
    missing = _missing(lengths, contents, batch_rows)
    with _bar(progress) as bar:
        task = bar.add_task("steering", total=len(cells), completed=len(contents), rate="") if bar else None
        for rows, batch in _finished(bench, cells, missing, n_jobs):
            if store:
                store.put({digests[row]: content for row, content in zip(rows, batch, strict=True)})
            contents |= zip(rows, batch, strict=True)
            if bar:
                bar.update(task, completed=len(contents), rate=f"{bar.tasks[task].speed or 0:.1f} answers/s")
    return [contents[row] for row in range(len(cells))]


def _missing(lengths: Sequence[int], contents: Mapping[int, Any], batch_rows: int) -> list[list[int]]:
    """Return the batches to compute: after a kill the very ones that were left, in a larger sweep full ones."""
    limits = {"tokens": TOKENS_PER_BATCH, "rows": batch_rows}
    planned = [(rows, [row for row in rows if row not in contents]) for rows in batches(lengths, **limits)]
    loose = sorted(row for rows, left in planned if len(left) < len(rows) for row in left)
    regrouped = [[loose[place] for place in part] for part in batches([lengths[row] for row in loose], **limits)]
    return [rows for rows, left in planned if left == rows] + regrouped


def _finished(
    bench: Bench, cells: list[Cell], missing: list[list[int]], n_jobs: int | None
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Yield batches as they are finished; begin those again whose worker was killed."""
    left, deaths = {tuple(rows) for rows in missing}, 0
    while left:
        before = len(left)
        try:
            tasks = [
                delayed(_run)(bench, rows, [cells[row] for row in rows]) for rows in missing if tuple(rows) in left
            ]
            parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            for rows, contents in parallel(tasks):
                left.remove(tuple(rows))
                yield rows, contents
        except TerminatedWorkerError:
            deaths = deaths + 1 if len(left) == before else 0
            if deaths == DEATHS:
                raise


def _run(bench: Bench, rows: list[int], cells: list[Cell]) -> tuple[list[int], list[dict[str, Any]]]:
    return rows, bench.run(cells)


def _bar(progress: bool) -> Any:
    if not progress:
        return nullcontext()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
