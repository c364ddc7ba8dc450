"""How long MLflow takes to keep the cells of a sweep: one by one by its client, and as steerkit writes them.

The last line is the ratio. `python benchmarks/log_cells.py [cells]`
"""

import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from steerkit.metrics import METRICS
from steerkit.mlflow_cells import cell_rows, log_row, log_rows
from steerkit.mlflow_store import experiment, store
from steerkit.sweep_results import Sweep


def made_up(n_cells: int) -> Sweep:
    """Return a sweep with as many cells of two answers each, ten alphas at each layer."""
    rows = [
        {"direction": "fitted", "layer": cell // 10, "alpha": cell % 10 / 10, "prompt": prompt, "text": "text"}
        for cell in range(n_cells)
        for prompt in ("one?", "two?")
    ]
    return Sweep(pd.DataFrame(rows).assign(**dict.fromkeys(METRICS, 0.5)), {})


def main() -> None:
    """Log the cells both ways into a fresh database each and print seconds and their ratio."""
    n_cells = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    seconds = {}
    for way in ("one by one", "in batches"):
        with tempfile.TemporaryDirectory() as folder, store(f"sqlite:///{Path(folder, 'mlflow.db')}") as mlflow:
            cells, client = experiment(mlflow, "cells"), mlflow.MlflowClient()
            rows = cell_rows(made_up(n_cells), "0" * 32, "someone")
            start = time.perf_counter()
            if way == "in batches":
                log_rows(mlflow, cells, rows)
            else:
                for row in rows:
                    log_row(mlflow, client, cells, row)
            seconds[way] = time.perf_counter() - start
            kept = len(mlflow.search_runs([cells], max_results=n_cells + 1))
        print(f"{kept} cells {way}: {seconds[way]:.2f} s")
    print(f"{seconds['one by one'] / seconds['in batches']:.1f}")


if __name__ == "__main__":
    main()
