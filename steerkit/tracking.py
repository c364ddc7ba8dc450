"""What of an estimator, a sweep, a calibration and a steered model goes into an MLflow run, and under which names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from steerkit.calibration import Calibration
from steerkit.card import PAGE
from steerkit.estimator import SteeringEstimator
from steerkit.mlflow_cells import cell_rows, log_rows
from steerkit.mlflow_fits import estimator_parts, log_curves, log_finite, user
from steerkit.mlflow_store import experiment, store
from steerkit.steered import SteeredModel
from steerkit.sweep_results import Sweep


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
        for log in estimator_parts(estimator, train=train, test=test, test_scores=test_scores).values():
            log(mlflow, run)
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
        log_finite(mlflow, {"effect_span": calibration.span, **chosen})
        columns = {
            "steering_effect": "span",
            "random_effect": "control_span",
            "usable_alpha_lower": "lower",
            "usable_alpha_upper": "upper",
        }
        log_curves(mlflow, run, {name: calibration.layers[column].items() for name, column in columns.items()})
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
    Other threads that log wait until the context ends: so wait for none of them inside.
    """
    with store(uri) as mlflow:
        active = mlflow.active_run()
        if active is not None and name is None:
            yield mlflow, active.info.run_id
            return
        place = None if name is None else experiment(mlflow, name)
        with mlflow.start_run(experiment_id=place, run_name=title, nested=active is not None) as run:
            yield mlflow, run.info.run_id
