"""Run the cells of a sweep: those that are missing, in batches and processes, each batch kept as it is finished."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky.process_executor import TerminatedWorkerError

from steerkit.batching import batches
from steerkit.cell_store import CellStore
from steerkit.cells import Bench, Cell
from steerkit.reading import TOKENS_PER_BATCH

DEATHS = 3
"""How often in a row workers may be killed without any batch being finished."""


def run_cells(
    bench: Bench, cells: list[Cell], batch_rows: int, store: CellStore | None, n_jobs: int | None, task: str | None
) -> list[dict[str, Any]]:
    """Return the content of every cell, from the store or computed; ``task`` names the progress bar, if any."""
    digests = bench.digests(cells) if store else []
    contents: dict[int, dict[str, Any]] = {}
    if store:
        found = store.get(digests)
        contents = {row: found[name] for row, name in enumerate(digests) if name in found}
    if effective_n_jobs(n_jobs) > 1:
        pickle.dumps(bench.model)  # a model that cannot travel is refused before any work
    room = bench.generation["max_new_tokens"]
    asked = bench.model.encode([bench.asked(cell) for cell in cells])
    missing = _missing(asked, room, contents, batch_rows)
    with _bar(task) as bar:
        shown = bar.add_task(task, total=len(cells), completed=len(contents), rate="") if bar else None
        for rows, batch in _finished(bench, cells, missing, n_jobs):
            if store:
                store.put({digests[row]: content for row, content in zip(rows, batch, strict=True)})
            contents |= zip(rows, batch, strict=True)
            if bar:
                bar.update(shown, completed=len(contents), rate=f"{bar.tasks[shown].speed or 0:.1f} answers/s")
    return [contents[row] for row in range(len(cells))]


def _missing(asked: Sequence[list[int]], room: int, contents: Mapping[int, Any], batch_rows: int) -> list[list[int]]:
    """Return the batches to compute: after a kill the very ones that were left, in a larger sweep full ones.

    Cells of one prompt stand together, since a batch reads a prompt once for all of them.
    """

    def grouped(cells: Sequence[int]) -> list[list[int]]:
        lengths, kinds = [len(asked[cell]) + room for cell in cells], [asked[cell] for cell in cells]
        cut = batches(lengths, tokens=TOKENS_PER_BATCH, rows=batch_rows, kinds=kinds)
        return [[cells[place] for place in places] for places in cut]

    planned = [(cells, [cell for cell in cells if cell not in contents]) for cells in grouped(range(len(asked)))]
    loose = sorted(cell for cells, left in planned if len(left) < len(cells) for cell in left)
    return [cells for cells, left in planned if left == cells] + grouped(loose)


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


def _bar(task: str | None) -> Any:
    if task is None:
        return nullcontext()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
