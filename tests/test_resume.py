"""A sweep that is interrupted, repeated, shared or spread over processes ends with the cells of one that is not."""

import contextlib
import os
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

from steerkit.cell_store import FILE, CellStore, digest
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import CorruptFileError, InvalidInputError, StoreError
from steerkit.fingerprint import digest_weights
from steerkit.language_model import LanguageModel
from steerkit.reading import EffectReader
from steerkit.sweep_results import Sweep
from steerkit.sweeps import sweep
from tests.models import LABELS, TEXTS, tiny

Saved = Callable[[str], Path]
OPTIONS: dict[str, Any] = {"alphas": [-1.0, 0.5], "layers": [1, 2], "max_new_tokens": 6, "batch_rows": 5}
SCRIPT = """
import sys
from tests.test_resume import swept_from
swept_from(sys.argv[1], sys.argv[2]).save(sys.argv[3])
"""


def swept_from(model: Any, store: Any = None, **options: Any) -> Sweep:
    """One small sweep, the same whenever it is called."""
    estimator = SteeringEstimator(str(model) if isinstance(model, Path) else model, cv=2).fit(TEXTS, LABELS)
    reader = EffectReader(estimator.model, max_new_tokens=6).fit(TEXTS, LABELS)
    return sweep(estimator, TEXTS[:3], reader=reader, resume=store, **{**OPTIONS, **options})


def start(*arguments: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> None:
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said


def count(store: Path) -> int:
    """How many cells a store holds, while others may write to it."""
    if not (store / FILE).exists():
        return 0
    with contextlib.closing(sqlite3.connect(store / FILE, timeout=60)) as table:
        if not table.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            return 0
        return int(table.execute("SELECT COUNT(*) FROM cells").fetchone()[0])


def test_a_finished_sweep_computes_nothing_again(tmp_path: Path) -> None:
    model = tiny("llama")
    estimator = SteeringEstimator(model, cv=2).fit(TEXTS, LABELS)
    reader = EffectReader(model, max_new_tokens=6).fit(TEXTS, LABELS)
    passes: list[int] = []
    handle = model.model.register_forward_hook(lambda *_: passes.append(1))
    once = sweep(estimator, TEXTS[:3], reader=reader, resume=tmp_path, **OPTIONS)
    computed = len(passes)
    again = sweep(estimator, TEXTS[:3], reader=reader, resume=tmp_path, **OPTIONS)
    assert len(passes) == computed > 0
    pd.testing.assert_frame_equal(again.cells, once.cells, check_exact=True)
    more = sweep(estimator, TEXTS[:3], reader=reader, resume=tmp_path, **{**OPTIONS, "alphas": [-1.0, 0.5, 0.7]})
    assert computed < len(passes) < 2 * computed
    handle.remove()
    whole = sweep(estimator, TEXTS[:3], reader=reader, **{**OPTIONS, "alphas": [-1.0, 0.5, 0.7]})
    assert more.cells["text"].tolist() == whole.cells["text"].tolist()
    pd.testing.assert_frame_equal(more.cells, whole.cells, rtol=1e-4, atol=1e-6)


def test_a_killed_sweep_goes_on_and_ends_with_the_same_bytes(saved: Saved, tmp_path: Path) -> None:
    model = saved("llama")
    finish(start(model, tmp_path / "whole.store", tmp_path / "whole"))
    expected = (tmp_path / "whole" / "cells.jsonl").read_bytes()
    total, store = count(tmp_path / "whole.store"), tmp_path / "store"
    killed = start(model, store, tmp_path / "killed")
    while not count(store) and killed.poll() is None:
        time.sleep(0.005)  # until the other process has kept its first cells; then it is killed midway
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert 0 < count(store) <= total
    finish(start(model, store, tmp_path / "resumed"))
    assert (tmp_path / "resumed" / "cells.jsonl").read_bytes() == expected
    assert count(store) == total


def test_two_sweeps_share_a_folder(saved: Saved, tmp_path: Path) -> None:
    model = saved("llama")
    both = [start(model, tmp_path / "store", tmp_path / name) for name in ("one", "two")]
    for process in both:
        finish(process)
    one, two = ((tmp_path / name / "cells.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_full_disk_ends_with_a_clear_error_and_keeps_what_was_finished(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from steerkit.cell_store import CellStore
store = CellStore(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for number in range(1000):
    store.put({f"cell {number}": {"text": "x" * 1000}})
"""
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "StoreError: cells cannot be kept in" in result.stderr
    assert "make room or pass another folder: what was finished before is still there." in result.stderr
    kept = CellStore(tmp_path).get([f"cell {number}" for number in range(1000)])
    assert 10 < len(kept) < 1000
    assert set(kept) == {f"cell {number}" for number in range(len(kept))}


def test_a_store_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"^.*file cannot be written \(File exists\); pass another folder\.$"):
        CellStore(tmp_path / "file")
    (tmp_path / FILE).write_bytes(b"no table of cells at all" * 100)
    with pytest.raises(CorruptFileError, match=r"is no readable table of cells \(file is not a database\); remove it"):
        CellStore(tmp_path)


def test_a_digest_depends_on_values_not_on_their_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_trained_cast_and_swapped_weights_have_other_digests() -> None:
    model = tiny("gpt2").model
    before = digest_weights(model)
    assert digest_weights(model) == before
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3
    assert before != digest_weights(model) != digest_weights(model.to(torch.bfloat16))


def test_what_a_cell_depends_on_makes_it_another(tmp_path: Path) -> None:
    model = tiny("llama")
    total = len(swept_from(model, tmp_path).cells)
    before = count(tmp_path)
    assert before <= total
    changes: list[dict[str, Any]] = [{"max_new_tokens": 5}, {"distractors": TEXTS[6:7]}, {"random_state": 1}]
    for change in changes:
        swept_from(model, tmp_path, **change)
        assert count(tmp_path) > before
        before = count(tmp_path)


def test_processes_give_the_cells_of_one_process(saved: Saved) -> None:
    alone, spread = swept_from(saved("llama")), swept_from(saved("llama"), n_jobs=2)
    assert spread.cells["text"].tolist() == alone.cells["text"].tolist()
    pd.testing.assert_frame_equal(spread.cells, alone.cells, rtol=1e-4, atol=1e-6)
    with pytest.raises(
        pickle.PicklingError, match="a model that exists only in memory cannot be pickled; save it with"
    ):
        swept_from(tiny("llama"), n_jobs=2)


class Deadly(EffectReader):
    """Kills the process that first reads with it, unless that is the test's own."""

    mark: Path
    home: int

    def read(self, texts: Any) -> Any:
        if os.getpid() != self.home and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(texts)


def test_a_killed_worker_costs_its_batch_not_the_sweep(saved: Saved, tmp_path: Path) -> None:
    estimator = SteeringEstimator(str(saved("llama")), cv=2).fit(TEXTS, LABELS)
    reader = Deadly(estimator.model, max_new_tokens=6).fit(TEXTS, LABELS)
    reader.mark, reader.home = tmp_path / "killed", os.getpid()
    spread = sweep(estimator, TEXTS[:3], reader=reader, n_jobs=2, resume=tmp_path / "store", **OPTIONS)
    assert reader.mark.exists()
    assert spread.cells["text"].tolist() == swept_from(saved("llama")).cells["text"].tolist()


def test_a_dask_cluster_runs_the_same_sweep_and_survives_a_death(saved: Saved, tmp_path: Path) -> None:
    estimator = SteeringEstimator(str(saved("llama")), cv=2).fit(TEXTS, LABELS)
    reader = Deadly(estimator.model, max_new_tokens=6).fit(TEXTS, LABELS)
    reader.mark, reader.home = tmp_path / "killed", os.getpid()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        spread = sweep(estimator, TEXTS[:3], reader=reader, **OPTIONS)
    assert reader.mark.exists()
    assert spread.cells["text"].tolist() == swept_from(saved("llama")).cells["text"].tolist()


def test_shuffled_labels_and_rewordings_are_compared_with() -> None:
    model = tiny("llama")
    told = {"glad": "{prompt} Answer gladly."}
    cells = swept_from(model, controls=("random", "shuffled"), prompting=told).cells
    kinds = cells["direction"].value_counts().to_dict()
    assert kinds == {"fitted": 12, "random": 12, "shuffled": 12, "unsteered": 3, "prompted glad": 3}
    prompted = cells[cells["direction"] == "prompted glad"]
    assert prompted["prompt"].tolist() == TEXTS[:3]
    asked = [f"{text} Answer gladly." for text in TEXTS[:3]]
    assert prompted["text"].tolist() == [model.generate(model.encode([text]), max_new_tokens=6)[0] for text in asked]
    with pytest.raises(InvalidInputError, match=re.escape("prompting['glad']='Gladly!' lacks {prompt}, where the")):
        swept_from(model, prompting={"glad": "Gladly!"})


def test_the_direction_of_shuffled_labels_is_a_unit_vector_off_the_fitted_one(fitted: SteeringEstimator) -> None:
    np.testing.assert_allclose(np.linalg.norm(fitted.shuffled_directions_, axis=1), 1, rtol=1e-5)
    assert (np.abs((fitted.shuffled_directions_ * fitted.directions_).sum(axis=1)) < 0.99).all()


def test_in_memory_models_sweep_in_one_process_and_handles_anywhere(saved: Saved) -> None:
    one = swept_from(LanguageModel(str(saved("llama")))).cells
    pd.testing.assert_frame_equal(one, swept_from(saved("llama")).cells, check_exact=True)
