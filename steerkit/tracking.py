"""What of an estimator, a sweep, a calibration and a steered model goes into an MLflow run, and under which names."""

import getpass
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from steerkit.calibration import Calibration
from steerkit.card import PAGE
from steerkit.estimator import SteeringEstimator
from steerkit.fingerprint import digest_weights
from steerkit.language_model import LanguageModel
from steerkit.mlflow_cells import cell_rows, log_rows
from steerkit.mlflow_store import experiment, store
from steerkit.steered import SteeredModel
from steerkit.sweep_results import Sweep

PACKAGES = ("steerkit-estimator", "torch", "transformers", "scikit-learn", "numpy", "mlflow")


def log_estimator(estimator: SteeringEstimator, *, train: Any = None, test: Any = None, test_scores: Any = None) -> str:
    """Log a fitted estimator to the active run, or else to a run of its own.

    Its parameters; its accuracies, norms and AUCs as curves with ``step = layer``; tags that say of which model,
    packages and commit they are.

    Parameters
    ----------
    estimator : fitted SteeringEstimator
    train, test : Bunch, or tuple of texts, labels and, optionally, groups
        The contrast sets, logged as inputs: name, digest, source.
    test_scores : array-like of shape (n_layers,), optional
        What `SteeringEstimator.layer_scores` returned for ``test``.

    Returns
    -------
    str
        The id of the run.
    """
    with open_run() as (mlflow, run):
        mlflow.log_params(estimator_params(estimator))
        mlflow.set_tags(_origin(estimator))
        curves = {
            "probe_accuracy": estimator.accuracies_,
            "activation_norm": estimator.norms_,
            "auc": estimator.aucs_,
            **({} if test_scores is None else {"test_accuracy": test_scores}),
        }
        place = estimator.layers_.index(estimator.layer_)
        _log_finite(mlflow, {"accuracy": estimator.accuracies_[place], "read_layer": estimator.layer_})
        _log_curves(mlflow, run, {name: zip(estimator.layers_, v, strict=True) for name, v in curves.items()})
        for context, data in (("train", train), ("test", test)):
            if data is not None:
                log_data(mlflow, data, context)
        return run


def log_sweep(sweep: Sweep, *, cells: bool = True) -> str:
    """Log a sweep to the active run, or else to a run of its own: its answers as a table, its cells as runs.

    Parameters
    ----------
    sweep : Sweep
    cells : bool
        Whether each direction × layer × alpha becomes a run of its own in the sibling experiment ``<name>/cells``,
        tagged with this run.

    Returns
    -------
    str
        The id of the run.
    """
    with open_run() as (mlflow, run):
        settings = sweep.settings
        mlflow.log_params(
            {
                "alphas": sweep.alphas,
                "controls": sorted(set(sweep.cells["direction"]) - {"unsteered", "fitted"}),
                "prompts": len(sweep.prompts),
                **({"random_state": settings["random_state"]} if "random_state" in settings else {}),
                **settings.get("generation", {}),
            }
        )
        table = pd.DataFrame({"prompt": sweep.prompts})
        mlflow.log_input(mlflow.data.from_pandas(table, name="steered prompts"), context="sweep")
        lead = ["prompt", "direction", "layer", "alpha", "text"]
        answers = sweep.cells[lead + [name for name in sweep.cells if name not in lead]]
        mlflow.log_table(answers, "generations.json")
        if cells:
            name = mlflow.get_experiment(mlflow.get_run(run).info.experiment_id).name
            log_rows(mlflow, experiment(mlflow, f"{name}/cells"), cell_rows(sweep, run, user()))
        return run


def log_calibration(calibration: Calibration, **bounds: Any) -> str:
    """Log a calibration to the active run, or else to a run of its own.

    Steering effect, random effect and usable alphas as curves with ``step = layer``; the choice as metrics.

    Parameters
    ----------
    calibration : Calibration
    **bounds
        What `calibrate` was called with, logged as parameters.

    Returns
    -------
    str
        The id of the run.
    """
    with open_run() as (mlflow, run):
        mlflow.log_params({name: value for name, value in bounds.items() if not isinstance(value, pd.DataFrame)})
        lower, upper = calibration.alphas
        chosen = {"best_layer": calibration.layer, "alpha_lower": lower, "alpha_upper": upper}
        _log_finite(mlflow, {"effect_span": calibration.span, **chosen})
        columns = {
            "steering_effect": "span",
            "random_effect": "control_span",
            "usable_alpha_lower": "lower",
            "usable_alpha_upper": "upper",
        }
        _log_curves(mlflow, run, {name: calibration.layers[column].items() for name, column in columns.items()})
        mlflow.log_dict(calibration.to_dict(), "calibration.json")
        return run


def log_steered(steered: SteeredModel, *, name: str = "model", vectors: Any = ()) -> str:
    """Log a steered model to the active run, or else to a run of its own: as a model, with its reliability card.

    ``vectors`` are as in `steerkit.mlflow.save_model`.

    Returns
    -------
    str
        The id of the run.
    """
    from steerkit.mlflow import log_model

    with open_run() as (mlflow, run):
        log_model(steered, name=name, vectors=vectors)
        if steered.card is not None:
            with TemporaryDirectory() as folder:
                steered.card.save(folder)
                mlflow.log_artifact(str(Path(folder, PAGE)))
        return run


def log_figures(figures: Mapping[str, Any]) -> None:
    """Log matplotlib figures by name to the active run, under ``plots/``."""
    with open_run() as (mlflow, _):
        for title, figure in figures.items():
            mlflow.log_figure(figure, f"plots/{title}.png")


@contextmanager
def open_run(*, uri: str | None = None, name: str | None = None, title: str | None = None) -> Iterator[tuple[Any, str]]:
    """Yield the mlflow module and the id of the active run, or of one that is opened now and closed at the end.

    With the ``name`` of an experiment a run is opened in any case, inside the active one if that is in the same store.
    """
    with store(uri) as mlflow:
        active = mlflow.active_run()
        if active is not None and name is None:
            yield mlflow, active.info.run_id
            return
        place = None if name is None else experiment(mlflow, name)
        with mlflow.start_run(experiment_id=place, run_name=title, nested=active is not None) as run:
            yield mlflow, run.info.run_id


def estimator_params(estimator: SteeringEstimator) -> dict[str, Any]:
    """Return the parameters of an estimator under its own names; a learner that is an object has ``learner__C`` etc.

    The model is its name; its revision and data type stand beside it.
    """
    params = {name: _said(value) for name, value in estimator.get_params(deep=False).items()}
    if isinstance(estimator.learner, BaseEstimator):
        deep = estimator.learner.get_params(deep=True)
        params |= {f"learner__{name}": value for name, value in deep.items() if not isinstance(value, BaseEstimator)}
        params["learner"] = type(estimator.learner).__name__
    model = LanguageModel.of(estimator.model)
    named = {"model": model.name or type(model.model).__name__, "revision": model.revision, "dtype": model.dtype}
    return {**params, **named, "texts": sum(getattr(estimator, "n_samples_", []))}


def log_data(mlflow: Any, data: Any, context: str) -> None:
    """Log a contrast set as an input of the active run; the source of one from a file is that file."""
    source = None
    if isinstance(data, Mapping):
        texts, labels, groups = data["data"], data["target"], data.get("groups")
        labels = np.asarray(data["target_names"])[labels] if "target_names" in data else labels
        name, source = str(data.get("DESCR", context)).partition(":")[0], data.get("filename")
    else:
        (texts, labels, *rest), name = data, context
        groups = rest[0] if rest else None
    table = pd.DataFrame({"text": [t if isinstance(t, str) else json.dumps(t) for t in texts], "label": labels})
    table["label"] = table["label"].astype(str)
    if groups is not None:
        table["group"] = np.asarray(groups).astype(str)
    mlflow.log_input(mlflow.data.from_pandas(table, source=source, name=name, targets="label"), context=context)


def _said(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else " ".join(str(value).split())


def _origin(estimator: SteeringEstimator) -> dict[str, str]:
    """Return tags that say what the numbers are of: the model, the packages, the commit."""
    model = LanguageModel.of(estimator.model)
    tags = {f"steerkit.fingerprint.{name}": str(value) for name, value in estimator.fingerprint_.to_dict().items()}
    tags["steerkit.fingerprint.weights"] = digest_weights(model.model)[:16]
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # mlflow-skinny, or steerkit from a folder
            tags[f"steerkit.version.{name}"] = version(name)
    if git := which("git"):
        head = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603
        tags |= {"mlflow.source.git.commit": head.stdout.strip()} if head.returncode == 0 else {}
    return tags


def user() -> str:
    """Return who logs."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _log_curves(mlflow: Any, run: str, curves: Mapping[str, Any]) -> None:
    """Log metrics with ``step = layer``, which the UI draws as curves over the layers."""
    now = time.time_ns() // 10**6
    points = [
        mlflow.entities.Metric(name, float(value), now, int(layer))
        for name, curve in curves.items()
        for layer, value in curve
        if np.ndim(value) == 0 and np.isfinite(value)
    ]
    client = mlflow.MlflowClient()
    for start in range(0, len(points), 1000):  # the most that a batch may hold
        client.log_batch(run, metrics=points[start : start + 1000])


def _log_finite(mlflow: Any, metrics: Mapping[str, Any]) -> None:
    mlflow.log_metrics({name: float(value) for name, value in metrics.items() if np.isfinite(value)})
