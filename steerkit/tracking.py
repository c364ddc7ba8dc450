"""Experiments in MLflow: the only home of MLflow, with `mlflow_model`, the code that is logged with a model."""

import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from steerkit.calibration import Calibration
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError, MissingExtraError
from steerkit.sweep_results import Sweep

STORE = "sqlite:///mlruns/mlflow.db"
PARENT = "steerkit.parent_run"


def check_installed() -> None:
    """Raise `MissingExtraError` unless MLflow is installed."""
    if find_spec("mlflow") is None:
        raise MissingExtraError(
            "tracking needs MLflow; pip install 'steerkit-estimator[tracking]', or pass --set track=false."
        )


@contextmanager
def store(uri: str | None = None) -> Iterator[Any]:
    """Yield the mlflow module, with its tracking URI set to ``uri``, else MLFLOW_TRACKING_URI, else `STORE`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    check_installed()
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")  # also what set_tracking_uri was last called with
    quiet = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in quiet]
    mlflow.set_tracking_uri(uri or before or STORE)
    for logger in quiet:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield mlflow
    finally:
        mlflow.set_tracking_uri(before)
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)


def log_run(
    name: str,
    *,
    parameters: Mapping[str, Any],
    estimator: SteeringEstimator,
    test_scores: Any,
    sweep: Sweep,
    calibration: Calibration | None,
    figures: Mapping[str, Any],
    steered: Path | None,
    uri: str | None = None,
) -> str:
    """Log one parent run with curves over layers, figures and the model, and one run per cell in ``<name>/cells``.

    Returns
    -------
    str
        The id of the parent run.
    """
    with store(uri) as mlflow:
        client = mlflow.MlflowClient()
        experiment = _experiment(mlflow, name)
        with mlflow.start_run(
            experiment_id=experiment, run_name=f"{parameters['model.name']} {parameters['estimator.learner']}"
        ) as run:
            mlflow.log_params(dict(parameters))
            mlflow.set_tags(
                {
                    "steerkit.model": sweep.settings["model"],
                    "steerkit.architecture": estimator.fingerprint_.architecture,
                }
            )
            client.log_batch(run.info.run_id, metrics=_curves(mlflow, estimator, test_scores, calibration))
            if calibration is not None:
                lower, upper = calibration.alphas
                mlflow.log_metrics(
                    {
                        "best_layer": calibration.layer,
                        "alpha_lower": lower,
                        "alpha_upper": upper,
                        "best_span": calibration.span,
                    }
                )
                mlflow.log_dict(calibration.to_dict(), "calibration.json")
            for title, figure in figures.items():
                mlflow.log_figure(figure, f"plots/{title}.png")
            mlflow.log_table(sweep.cells, "generations.json")
            if steered is not None:
                _log_model(mlflow, steered)
        _log_cells(mlflow, client, _experiment(mlflow, f"{name}/cells"), run.info.run_id, sweep)
        return str(run.info.run_id)


def run_url(run_id: str, *, uri: str | None = None, port: int = 5000) -> str:
    """Return the address of a run's page in the UI that `steerkit ui` serves."""
    with store(uri) as mlflow:
        experiment = mlflow.get_run(run_id).info.experiment_id
    return (
        f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs/{run_id}/model-metrics?workflowType=machine_learning"
    )


def check_store(uri: str) -> None:
    """Raise `InvalidInputError` if the store is a local database that is not there."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InvalidInputError(f"{uri} does not exist yet; run `steerkit run RECIPE` first, or pass --store.")


def serve_ui(*, uri: str = STORE, port: int = 5000) -> int:
    """Serve MLflow's own pages of the store on loopback until interrupted; return the exit status."""
    check_installed()
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    try:
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603
    except KeyboardInterrupt:
        return 0


def _experiment(mlflow: Any, name: str) -> str:
    """Return the id of an experiment, made if new; beside a local database, its artifacts lie in ``artifacts/``."""
    if found := mlflow.get_experiment_by_name(name):
        return str(found.experiment_id)
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("sqlite:///"):
        return str(mlflow.create_experiment(name))
    artifacts = Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts" / name.replace("/", "-")
    return str(mlflow.create_experiment(name, artifact_location=artifacts.as_uri()))


def _curves(mlflow: Any, estimator: SteeringEstimator, test_scores: Any, calibration: Calibration | None) -> list[Any]:
    """Return metrics with ``step = layer``, which the UI draws as curves over the layers."""
    curves = {
        "probe_accuracy": dict(zip(estimator.layers_, estimator.accuracies_, strict=True)),
        "test_accuracy": dict(zip(estimator.layers_, test_scores, strict=True)),
        "activation_norm": dict(zip(estimator.layers_, estimator.norms_, strict=True)),
    }
    if calibration is not None:
        curves["steering_effect"] = calibration.layers["span"].to_dict()
        curves["random_effect"] = calibration.layers["control_span"].to_dict()
    now = time.time_ns() // 10**6
    return [
        mlflow.entities.Metric(name, float(value), now, int(layer))
        for name, curve in curves.items()
        for layer, value in curve.items()
        if np.isfinite(value)
    ]


def _log_cells(mlflow: Any, client: Any, experiment: str, parent: str, sweep: Sweep) -> None:
    """Log one finished run per direction × layer × alpha."""
    Metric, Param = mlflow.entities.Metric, mlflow.entities.Param
    for cell in sweep.means().to_dict("records"):
        title = f"{cell['direction']} layer {cell['layer']} alpha {cell['alpha']:+g}"
        tags = {PARENT: parent, "mlflow.runName": title, "mlflow.source.name": "steerkit"}
        run = client.create_run(experiment, tags=tags).info.run_id
        now = time.time_ns() // 10**6
        client.log_batch(
            run,
            metrics=[Metric(name, float(cell[name]), now, 0) for name in sweep.metrics if np.isfinite(cell[name])],
            params=[Param(name, str(cell[name])) for name in ("direction", "layer", "alpha")],
        )
        client.set_terminated(run)


def _log_model(mlflow: Any, steered: Path) -> None:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    import steerkit

    alpha = float(steerkit.SteeredModel.from_pretrained(steered).alpha)
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema(
            [ParamSpec("alpha", DataType.double, alpha), ParamSpec("max_new_tokens", DataType.long, 64)]
        ),
    )
    mlflow.pyfunc.log_model(
        name="steered_model",
        python_model=str(Path(__file__).with_name("mlflow_model.py")),
        artifacts={"steered": str(steered)},
        signature=signature,
        input_example=(["What is a neutron star?"], {"alpha": alpha, "max_new_tokens": 64}),
        pip_requirements=[f"steerkit-estimator=={steerkit.__version__}"],
    )
