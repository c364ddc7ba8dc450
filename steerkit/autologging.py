"""`steerkit.autolog`: fits, sweeps, calibrations and searches are logged to MLflow unasked."""

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from typing import Any

import mlflow
from mlflow.utils.autologging_utils import autologging_integration, get_autologging_config, safe_patch
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline

from steerkit import plots
from steerkit.calibration import calibrate
from steerkit.estimator import SteeringEstimator
from steerkit.mlflow_cells import log_rows
from steerkit.mlflow_requests import layer_vectors
from steerkit.mlflow_store import autologging_paused, chosen_store, store
from steerkit.sweeps import sweep
from steerkit.tracking import (
    estimator_params,
    log_calibration,
    log_estimator,
    log_figures,
    log_steered,
    log_sweep,
    user,
)

FLAVOR_NAME = "steerkit"
HOLDS = "steerkit.holds."
BOUNDS = {name: signature(calibrate).parameters[name].default for name in ("preservation", "perplexity", "kl")}
_logger = logging.getLogger("mlflow.steerkit")
_made: dict[int, tuple[str, str, Any]] = {}
"""By the id of an estimator or a sweep: the store and the run that hold it, and a weak reference to the estimator."""


@autologging_integration(FLAVOR_NAME)
def autolog(
    log_models: bool = True,
    log_datasets: bool = True,
    log_cells: bool = True,
    disable: bool = False,
    exclusive: bool = False,
    silent: bool = False,
) -> None:
    """Log every fit of a `SteeringEstimator`, every `sweep` and every `calibrate` to MLflow.

    They go to the active run. Without one, a fit opens a run and closes it, and the sweep of that estimator and the
    calibration of that sweep go on with the same run. A second fit, sweep or calibration in one run opens a run inside
    it. A ``GridSearchCV`` or its like over an estimator is one run, with one inside it for each candidate; where
    ``mlflow.sklearn.autolog()`` logs the search, it is left to that. What cannot be logged is told in a warning;
    nothing that was fitted is lost.

    The store is what MLflow was told, by ``MLFLOW_TRACKING_URI`` or ``mlflow.set_tracking_uri``, else
    ``sqlite:///mlruns/mlflow.db``, which MLflow is then told. It reaches what was imported before too.

    Parameters
    ----------
    log_models : bool
        Log the steered model, with its reliability card.
    log_datasets : bool
        Log the texts and labels as an input: name, digest, source.
    log_cells : bool
        Log each cell of a sweep as a run in the sibling experiment ``<name>/cells``.
    disable : bool
        Log nothing any more.
    exclusive : bool
        Log nothing to runs that you opened yourself.
    silent : bool
        Say and warn nothing meanwhile.
    """
    mlflow.set_tracking_uri(chosen_store())
    safe_patch(FLAVOR_NAME, SteeringEstimator, "fit", _fit)
    safe_patch(FLAVOR_NAME, sweep, "implementation", _sweep)
    safe_patch(FLAVOR_NAME, calibrate, "implementation", _calibrate)
    safe_patch(FLAVOR_NAME, BaseSearchCV, "fit", _search)


def _fit(original: Callable[..., Any], self: SteeringEstimator, X: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
    active = mlflow.active_run()
    if active is not None and active.data.tags.get("mlflow.autologging", FLAVOR_NAME) != FLAVOR_NAME:
        return original(self, X, y, *args, **kwargs)  # a part of what another autologging logs as a whole
    with _run("fit", params=estimator_params(self)) as run:
        with autologging_paused():  # the learners inside are scikit-learn's
            fitted = original(self, X, y, *args, **kwargs)
        _log_fitted(self, (X, y, *args[:1]) if args or "groups" not in kwargs else (X, y, kwargs["groups"]))
    _remember(self, run, self)
    return fitted


def _sweep(original: Callable[..., Any], estimator: SteeringEstimator, *args: Any, **kwargs: Any) -> Any:
    with _run("sweep", follows=estimator) as run:
        with autologging_paused():
            swept = original(estimator, *args, **kwargs)
        _try(log_sweep, swept, cells=_asked("log_cells"))
    _remember(swept, run, estimator)
    return swept


def _calibrate(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    found = original(*args, **kwargs)  # before a run is opened: a refusal is a result, not a failure of the run
    swept = args[0] if args else kwargs["sweep"]
    with _run("calibration", follows=swept):
        _try(log_calibration, found, **{name: kwargs.get(name, default) for name, default in BOUNDS.items()})
        estimator = _made.get(id(swept), ("", "", lambda: None))[2]()
        if estimator is not None:
            if find_spec("matplotlib") is not None:
                _try(lambda: log_figures(plots.figures(estimator, swept, found)))
            if _asked("log_models"):
                steered = lambda: estimator.export(calibration=found)  # noqa: E731
                _try(lambda: log_steered(steered(), name="calibrated_model", vectors=layer_vectors(estimator)))
    return found


def _search(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    searched = self.estimator.steps[-1][1] if isinstance(self.estimator, Pipeline) else self.estimator
    if not isinstance(searched, SteeringEstimator):
        return original(self, *args, **kwargs)
    with _run("fit", params=estimator_params(searched)) as run:
        with autologging_paused():
            fitted = original(self, *args, **kwargs)
        _try(_log_candidates, self, run)
        if hasattr(self, "best_estimator_"):
            best = self.best_estimator_
            best = best.steps[-1][1] if isinstance(best, Pipeline) else best
            _log_fitted(best, None)
            _remember(best, run, best)
    return fitted


def _log_fitted(estimator: SteeringEstimator, data: Any) -> None:
    _try(log_estimator, estimator, train=data if _asked("log_datasets") else None)
    if _asked("log_models"):
        _try(lambda: log_steered(estimator.export(), vectors=layer_vectors(estimator)))


def _log_candidates(search: Any, run: str) -> None:
    """Log each candidate of a search as a run inside the search's."""
    results, names = search.cv_results_, ("mean_test_score", "std_test_score", "rank_test_score", "mean_fit_time")
    rows = []
    for place, candidate in enumerate(results["params"]):
        params = {name: " ".join(str(value).split())[:6000] for name, value in candidate.items()}
        tags = {"mlflow.parentRunId": run, "mlflow.user": user(), "mlflow.source.name": "steerkit"}
        title = ", ".join(f"{name}={value}" for name, value in params.items())[:200]
        metrics = {name: float(results[name][place]) for name in names if results[name][place] == results[name][place]}
        rows.append({"name": title, "params": params, "metrics": metrics, "tags": {**tags, "mlflow.runName": title}})
    with store() as tracked:
        log_rows(tracked, tracked.get_run(run).info.experiment_id, rows)
        if hasattr(search, "best_score_"):
            tracked.log_metric("best_cv_score", float(search.best_score_))


@contextmanager
def _run(kind: str, *, params: Any = None, follows: Any = None) -> Iterator[str]:
    """Yield the id of the run to log to; one that is opened here is closed at the end, as failed after an error.

    The caller's own work happens inside, so what MLflow says and warns is hushed at the edges only.
    """
    with store() as tracked:
        active = tracked.active_run()
        place, mine, _ = _made.get(id(follows), ("", "", None))
        mine = mine if place == tracked.get_tracking_uri() else ""
        here = active.info.run_id if active is not None else mine
        full = bool(here) and _is_full(tracked, here, kind, params)
        opened = active is None or full
        if opened:
            named = {"run_id": mine} if active is None and mine and not full else {"nested": active is not None}
            title = f"{params['model']} {params['learner']}" if params else None
            here = tracked.start_run(**named, run_name=None if "run_id" in named else title).info.run_id
    status = "FAILED"
    try:
        yield str(here)
        with store() as tracked:
            tags = {f"{HOLDS}{kind}": "yes", "mlflow.autologging": FLAVOR_NAME}
            for tag, value in tags.items():
                tracked.MlflowClient().set_tag(here, tag, value)
        status = "FINISHED"
    finally:
        if opened:
            with store() as tracked:
                tracked.end_run(status)


def _is_full(tracked: Any, run: str, kind: str, params: Any) -> bool:
    """Return whether a run holds another fit, sweep or calibration already, or parameters that contradict these."""
    data = tracked.get_run(run).data
    clash = any(data.params.get(name, str(value)) != str(value) for name, value in (params or {}).items())
    return clash or f"{HOLDS}{kind}" in data.tags


def _remember(made: object, run: str, estimator: SteeringEstimator) -> None:
    if id(made) not in _made:
        weakref.finalize(made, _made.pop, id(made), None)
    _made[id(made)] = mlflow.get_tracking_uri(), run, weakref.ref(estimator)


def _asked(option: str) -> bool:
    return bool(get_autologging_config(FLAVOR_NAME, option, True))


def _try(log: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Log a part; what fails is told, and the other parts go on."""
    try:
        log(*args, **kwargs)
    except Exception as error:  # MLflow, its stores and the network each raise their own kinds
        _logger.warning("steerkit could not log all of this run (%s: %s)", type(error).__name__, error)
