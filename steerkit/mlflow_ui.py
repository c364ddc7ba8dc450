"""MLflow's own pages: started on loopback, and the addresses in them that show a run or compare several."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from steerkit.exceptions import InvalidInputError
from steerkit.mlflow_cells import PARENT
from steerkit.mlflow_store import check_installed, check_store, chosen_store, store

MODE = "workflowType=machine_learning"
SERVER = ("http://", "https://")
MOST = 250
"""Runs in one address; more make the page slow."""


def run_url(run_id: str, *, uri: str | None = None, port: int = 5000) -> str:
    """Return the address of a run's curves in the UI that `steerkit ui` serves."""
    with store(uri) as mlflow:
        experiment = mlflow.get_run(run_id).info.experiment_id
        return f"{_root(mlflow, port)}experiments/{experiment}/runs/{run_id}/model-metrics?{MODE}"


def compare_url(run_ids: Sequence[str], *, experiment: str, uri: str | None = None, port: int = 5000) -> str:
    """Return the address of the page that compares runs of one experiment."""
    runs, experiments = (quote(json.dumps(list(ids), separators=(",", ":"))) for ids in (run_ids, [experiment]))
    with store(uri) as mlflow:
        return f"{_root(mlflow, port)}compare-runs?runs={runs}&experiments={experiments}&{MODE}"


def links(*, uri: str | None = None, port: int = 5000) -> dict[str, str]:
    """Return addresses worth opening: experiments, the last run, the runs beside it, the cells of the last sweep."""
    with store(uri) as mlflow:
        found = {"experiments": f"{_root(mlflow, port)}experiments?{MODE}"}
        names = {e.experiment_id: e.name for e in mlflow.search_experiments(max_results=1000)}
        parents = [key for key, name in names.items() if not name.endswith("/cells")]
        cells = [key for key, name in names.items() if name.endswith("/cells")]
        latest = _search(mlflow, parents, "", 1)
        if latest:
            mine, run = latest[0].info.experiment_id, latest[0].info.run_id
            found["last run"] = f"{_root(mlflow, port)}experiments/{mine}/runs/{run}/model-metrics?{MODE}"
            found["runs beside it"] = f"{_root(mlflow, port)}experiments/{mine}/runs?{MODE}"
            beside = [other.info.run_id for other in _search(mlflow, [mine], "attributes.status = 'FINISHED'", 10)]
            if len(beside) > 1:
                found["compare runs"] = compare_url(beside, experiment=mine, port=port)
        swept = _search(mlflow, cells, "", 1)
        if swept:
            parent, place = swept[0].data.tags.get(PARENT, ""), swept[0].info.experiment_id
            query = f"tags.`{PARENT}` = '{parent}' AND params.direction = 'fitted'"
            same = [cell.info.run_id for cell in _search(mlflow, [place], query, MOST)]
            found["last sweep"] = compare_url(same, experiment=place, port=port)
    return found


def serve_ui(*, uri: str | None = None, port: int = 5000) -> int:
    """Serve MLflow's own pages of the store on loopback until interrupted; return the exit status.

    The pages of a tracking server are its own; this serves databases.

    Raises
    ------
    InvalidInputError
        The store is a server, or a local database that is not there.
    """
    check_installed()
    chosen = ui_store(uri)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise InvalidInputError(f"port {port} is in use already; pass another, such as --port {port + 1}.")
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **quiet, "PYTHONWARNINGS": "ignore"}
    options = ["--backend-store-uri", chosen, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # A group of its own, so that Ctrl-C comes to us alone and all of its processes are ended in order.
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "mlflow", "ui", *options], env=environment, start_new_session=True
    ) as server:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by whatever means, leave none behind
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            signal.signal(signal.SIGTERM, before)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def ui_store(uri: str | None = None) -> str:
    """Return the store to show, or raise `InvalidInputError` if there is nothing to serve in it."""
    chosen = chosen_store(uri)
    if chosen.startswith(SERVER):
        raise InvalidInputError(f"{chosen} is a tracking server, which has its own pages; open that address.")
    check_store(chosen)
    return chosen


def _root(mlflow: Any, port: int) -> str:
    """Return where the pages of a store are: a tracking server has its own, `serve_ui` serves those of a database."""
    uri = str(mlflow.get_tracking_uri())
    return f"{uri.rstrip('/')}/#/" if uri.startswith(SERVER) else f"http://127.0.0.1:{port}/#/"


def _search(mlflow: Any, experiments: Sequence[str], query: str, most: int) -> list[Any]:
    if not experiments:
        return []
    order = ["attributes.start_time DESC"]
    client = mlflow.MlflowClient()
    return list(client.search_runs(list(experiments), filter_string=query, max_results=most, order_by=order))
