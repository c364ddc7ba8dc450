"""`steerkit.autolog`: fits, sweeps, calibrations and searches are logged to MLflow unasked."""

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from math import isfinite
from typing import Any

try:
    import mlflow
except ModuleNotFoundError as error:
    from steerkit.exceptions import MissingExtraError
    from steerkit.mlflow_store import MISSING

    raise MissingExtraError(MISSING) from error
from mlflow.utils.autologging_utils import autologging_integration, get_autologging_config, safe_patch
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline

from steerkit import plots
from steerkit.calibration import calibrate
from steerkit.estimator import SteeringEstimator
from steerkit.mlflow_cells import log_rows
from steerkit.mlflow_fits import estimator_params, estimator_parts, log_finite, param_name, user
from steerkit.mlflow_requests import layer_vectors
from steerkit.mlflow_store import autologging_paused, chosen_store, store
from steerkit.sweeps import sweep
from steerkit.tracking import log_calibration, log_figures, log_steered, log_sweep, open_run

FLAVOR_NAME = "steerkit"
HOLDS = "steerkit.holds."
SCORES = ("mean_test_", "std_test_", "rank_test_")
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
    ``mlflow.sklearn.autolog()`` logs the search, it is left to that. ``cross_val_score`` is as many fits as it has
    folds: with a run active, the first goes to that run, and the others to runs inside it. Fits in threads have a run
    each. What cannot be logged is told in a warning; nothing that was fitted is lost.

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
    with _run("fit", params=estimator_params(self), title=_title(self)) as run:
        with autologging_paused():  # the learners inside are scikit-learn's
            fitted = original(self, X, y, *args, **kwargs)
        _log_fitted(self, _data(X, y, *args, **kwargs))
    _remember(self, run, self)
    return fitted


def _sweep(original: Callable[..., Any], estimator: SteeringEstimator, *args: Any, **kwargs: Any) -> Any:
    with _run("sweep", follows=estimator, title=_title(estimator)) as run:
        with autologging_paused():
            swept = original(estimator, *args, **kwargs)
        _try("the sweep", log_sweep, swept, cells=_asked("log_cells"))
    _remember(swept, run, estimator)
    return swept


def _calibrate(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    found = original(*args, **kwargs)  # before a run is opened: a refusal is a result, not a failure of the run
    swept = args[0] if args else kwargs["sweep"]
    estimator = _made.get(id(swept), ("", "", lambda: None))[2]()
    with _run("calibration", follows=swept, title=None if estimator is None else _title(estimator)):
        bounds = {name: kwargs.get(name, default) for name, default in BOUNDS.items()}
        _try("the calibration", log_calibration, found, **bounds)
        if estimator is not None:
            if find_spec("matplotlib") is not None:
                _try("the figures", lambda: log_figures(plots.figures(estimator, swept, found)))
            if _asked("log_models"):
                steered = lambda: estimator.export(calibration=found)  # noqa: E731
                vectors = lambda: layer_vectors(estimator)  # noqa: E731
                _try("the model", lambda: log_steered(steered(), name="calibrated_model", vectors=vectors()))
    return found


def _search(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    searched = self.estimator.steps[-1][1] if isinstance(self.estimator, Pipeline) else self.estimator
    if not isinstance(searched, SteeringEstimator):
        return original(self, *args, **kwargs)
    with _run("fit", params=estimator_params(searched), title=_title(searched)) as run:
        with autologging_paused(search=True):
            fitted = original(self, *args, **kwargs)
        _try("the candidates", _log_candidates, self, run)
        if hasattr(self, "best_estimator_"):
            best = self.best_estimator_
            best = best.steps[-1][1] if isinstance(best, Pipeline) else best
            _log_fitted(best, _data(*args, **kwargs))
            _remember(best, run, best)
    return fitted


def _data(X: Any, y: Any = None, groups: Any = None, **_: Any) -> tuple[Any, ...]:
    return (X, y) if groups is None else (X, y, groups)


def _log_fitted(estimator: SteeringEstimator, data: Any) -> None:
    for what, log in estimator_parts(estimator, train=data if _asked("log_datasets") else None).items():
        _try(what, _log_part, log)
    if _asked("log_models"):
        _try("the model", lambda: log_steered(estimator.export(), vectors=layer_vectors(estimator)))


def _log_part(log: Callable[[Any, str], None]) -> None:
    with open_run() as (tracked, run):
        log(tracked, run)


def _log_candidates(search: Any, run: str) -> None:
    """Log each candidate of a search as a run inside the search's, with its finite scores of every scorer."""
    results = search.cv_results_
    names = [name for name in results if name.startswith(SCORES) or name == "mean_fit_time"]
    rows = []
    for place, candidate in enumerate(results["params"]):
        params = {param_name(name): " ".join(str(value).split())[:6000] for name, value in candidate.items()}
        tags = {"mlflow.parentRunId": run, "mlflow.user": user(), "mlflow.source.name": "steerkit"}
        title = ", ".join(f"{name}={value}" for name, value in params.items())[:200]
        metrics = {param_name(name): float(results[name][place]) for name in names if isfinite(results[name][place])}
        rows.append({"name": title, "params": params, "metrics": metrics, "tags": {**tags, "mlflow.runName": title}})
    with store() as tracked:
        log_rows(tracked, tracked.get_run(run).info.experiment_id, rows)
        if hasattr(search, "best_score_"):
            log_finite(tracked, {"best_cv_score": search.best_score_})


def _title(estimator: SteeringEstimator) -> str:
    params = estimator_params(estimator)
    return f"{params['model']} {params['learner']}"


@contextmanager
def _run(kind: str, *, params: Any = None, follows: Any = None, title: str | None = None) -> Iterator[str]:
    """Yield the id of the run to log to; one that is opened here is closed at the end, as failed after an error.

    A run for what follows something in a run that is full is named after the ``title`` and lies inside that run.
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
            where: dict[str, Any] = {"nested": True} if active is not None else _inside(tracked, mine) if full else {}
            named = {**where, "run_name": title if kind == "fit" or title is None else f"{title} {kind}"}
            goes_on = active is None and mine and not full
            here = tracked.start_run(**({"run_id": mine} if goes_on else named)).info.run_id
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


def _inside(tracked: Any, run: str) -> dict[str, str]:
    return {"parent_run_id": run, "experiment_id": tracked.get_run(run).info.experiment_id}


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


def _try(what: str, log: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Log a part; what fails is told, and the other parts go on."""
    try:
        log(*args, **kwargs)
    except Exception as error:  # MLflow, its stores and the network each raise their own kinds
        _logger.warning("steerkit could not log %s of this run (%s: %s)", what, type(error).__name__, error)
