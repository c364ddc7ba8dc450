"""The cells of a sweep as MLflow runs, hundreds of them in seconds."""

import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from steerkit.sweep_results import Sweep

PARENT = "steerkit.parent_run"
NAMES = {"distinct_2": "new_word_pairs"}
"""Other names in MLflow: its contour plot starts with the metric that is first in the alphabet, to be ``effect``."""
THREADS = 8
PER_TRANSACTION = 200
"""Runs written at once, so that other processes are not kept waiting."""

Row = Mapping[str, Any]


def cell_rows(sweep: "Sweep", parent: str, user: str) -> list[dict[str, Any]]:
    """Return for each direction × layer × alpha its run: name, params, mean metrics and tags."""
    rows = []
    for cell in sweep.means().to_dict("records"):
        title = f"{cell['direction']} layer {cell['layer']} alpha {cell['alpha']:+g}"
        rows.append(
            {
                "name": title,
                "params": {name: str(cell[name]) for name in ("alpha", "direction", "layer")},
                "metrics": {NAMES.get(m, m): float(cell[m]) for m in sweep.metrics if np.isfinite(cell[m])},
                "tags": {
                    PARENT: parent,
                    "mlflow.parentRunId": parent,
                    "mlflow.runName": title,
                    "mlflow.source.name": "steerkit",
                    "mlflow.source.type": "LOCAL",
                    "mlflow.user": user,
                },
            }
        )
    return rows


def log_rows(mlflow: Any, experiment: str, rows: Sequence[Row]) -> None:
    """Log one finished run per row, to a database in few transactions, to a server by a few threads."""
    store = mlflow.tracking._tracking_service.utils._get_store()
    if hasattr(store, "ManagedSessionMaker") and hasattr(store, "engine"):
        for start in range(0, len(rows), PER_TRANSACTION):
            _insert(store, experiment, rows[start : start + PER_TRANSACTION])
        return
    client = mlflow.MlflowClient()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda row: log_row(mlflow, client, experiment, row), rows))


def log_row(mlflow: Any, client: Any, experiment: str, row: Row) -> None:
    """Log one finished run by MLflow's client."""
    Metric, Param = mlflow.entities.Metric, mlflow.entities.Param
    run = client.create_run(experiment, tags=dict(row["tags"])).info.run_id
    now = time.time_ns() // 10**6
    client.log_batch(
        run,
        metrics=[Metric(name, value, now, 0) for name, value in row["metrics"].items()],
        params=[Param(name, value) for name, value in row["params"].items()],
    )
    client.set_terminated(run)


def _insert(store: Any, experiment: str, rows: Sequence[Row]) -> None:
    """Write finished runs in one transaction, as the store itself would one by one."""
    from mlflow.store.tracking.dbmodels import models
    from mlflow.utils.uri import append_to_uri_path
    from sqlalchemy import insert

    root = store.get_experiment(experiment).artifact_location
    now = time.time_ns() // 10**6
    named = [(uuid.uuid4().hex, row) for row in rows]
    runs = [
        {
            "run_uuid": run, "name": row["name"], "experiment_id": int(experiment),
            "user_id": row["tags"]["mlflow.user"], "source_type": "UNKNOWN", "source_name": "",
            "artifact_uri": append_to_uri_path(root, run, "artifacts"),
            "entry_point_name": "", "source_version": "", "status": "FINISHED", "start_time": now, "end_time": now,
            "lifecycle_stage": "active",
        }
        for run, row in named
    ]  # fmt: skip
    pairs = {
        kind: [{"run_uuid": run, "key": key, "value": value} for run, row in named for key, value in row[kind].items()]
        for kind in ("tags", "params", "metrics")
    }
    metrics = [{**pair, "timestamp": now, "step": 0, "is_nan": False} for pair in pairs["metrics"]]
    tables = {
        models.SqlRun: runs,
        models.SqlTag: pairs["tags"],
        models.SqlParam: pairs["params"],
        models.SqlMetric: metrics,
        models.SqlLatestMetric: metrics,
    }
    with store.ManagedSessionMaker(read_only=False) as session:
        for table, values in tables.items():
            if values:
                session.execute(insert(table), values)
