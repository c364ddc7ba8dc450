"""Which MLflow store is used, made ready for several processes at once, and the experiments in it."""

import logging
import os
import sqlite3
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steerkit.exceptions import InvalidInputError, MissingExtraError

STORE = Path("mlruns", "mlflow.db")
SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/")
"""How the URI of a model in MLflow starts."""
HOW = "pip install 'steerkit-estimator[tracking]'"
MISSING = f"tracking needs MLflow, which is not installed; {HOW}."
_ready: set[str] = set()
_lock = threading.RLock()
"""Held by the thread that has MLflow's store, which is one of the whole process, set for its own purpose."""


def check_installed(*_: Any, **__: Any) -> None:
    """Raise `MissingExtraError` unless MLflow is installed, whatever it is called with: it stands in for `autolog`."""
    if not is_installed():
        raise MissingExtraError(MISSING)


def is_installed() -> bool:
    """Return whether MLflow is installed."""
    return find_spec("mlflow") is not None


def in_mlflow(uri: str | Path) -> bool:
    """Return whether a name is the URI of a model in MLflow."""
    return str(uri).startswith(SCHEMES)


def load() -> Any:
    """Return the mlflow module, imported now: it is heavy, and an extra."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    check_installed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module("mlflow")


def chosen_store(uri: str | None = None) -> str:
    """Return the tracking URI to use: ``uri``, else what MLflow was told, else the project's own database.

    That is ``mlruns/mlflow.db`` in the working directory, by its full path, since the directory may change. MLflow is
    told by ``MLFLOW_TRACKING_URI``, by ``mlflow.set_tracking_uri``, or by a run or an experiment that is active in its
    own default store.
    """
    mlflow = load()
    told = os.environ.get("MLFLOW_TRACKING_URI")  # also what set_tracking_uri was last called with
    active = mlflow.active_run() or getattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    return str(uri or told or (mlflow.get_tracking_uri() if active else f"sqlite:///{STORE.absolute().as_posix()}"))


@contextmanager
def store(uri: str | None = None) -> Iterator[Any]:
    """Yield the mlflow module while it uses `chosen_store`; what it says and warns meanwhile is its own business.

    The store, the levels of the loggers and the filters of the warnings are those of the whole process; so one thread
    at a time is inside, and each finds them, and leaves them, as they were.
    """
    mlflow = load()
    quiet = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    with _lock:
        before = os.environ.get("MLFLOW_TRACKING_URI")
        levels = [logger.level for logger in quiet]
        chosen = chosen_store(uri)
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                make_ready(chosen)
                mlflow.set_tracking_uri(chosen)
                yield mlflow
        finally:
            mlflow.set_tracking_uri(before)
            for logger, level in zip(quiet, levels, strict=True):
                logger.setLevel(level)


def make_ready(uri: str) -> None:
    """Make the tables of a local database, one process at a time: two that make them at once break each other.

    Raises
    ------
    InvalidInputError
        It cannot be written, or what is there is no database: MLflow would try for minutes, and say nothing.
    """
    if uri in _ready or not uri.startswith("sqlite:///") or "?" in uri:  # what has options is its maker's business
        return
    from filelock import FileLock

    path = Path(uri.removeprefix("sqlite:///")).absolute()
    if path.exists():
        _check_database(path, uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            load().MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except OSError as error:
        if not path.is_file():  # one that is there may at least be read
            raise InvalidInputError(
                f"{uri} cannot be written ({error.strerror or error}); pass another store, or set MLFLOW_TRACKING_URI."
            ) from error
    _ready.add(uri)


def _check_database(path: Path, uri: str) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=60)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise InvalidInputError(
            f"{uri} cannot be opened as a database ({error}); pass another store, or set MLFLOW_TRACKING_URI."
        ) from error


def check_store(uri: str) -> None:
    """Raise `InvalidInputError` if the store is a local database that is not there."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InvalidInputError(
            f"{uri} does not exist yet; run `steerkit run RECIPE` first, or name another store (--store, or "
            "MLFLOW_TRACKING_URI)."
        )


def experiment(mlflow: Any, name: str) -> str:
    """Return the id of an experiment, made if new; beside a local database, its artifacts lie in ``artifacts/``."""
    if found := mlflow.get_experiment_by_name(name):
        return str(found.experiment_id)
    uri, location = mlflow.get_tracking_uri(), None
    if uri.startswith("sqlite:///"):
        root = Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts"
        location = (root / name.replace("/", "-")).as_uri()
    try:
        return str(mlflow.create_experiment(name, artifact_location=location))
    except mlflow.exceptions.MlflowException:  # another process was faster
        if found := mlflow.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise


class _Pauses(threading.local):
    """What MLflow reads as "autologging is off for everybody", here true for the threads that paused it only.

    Two fits in threads would otherwise each restore what the other had set. The threads that joblib starts for a
    search are known by their depth in it.
    """

    depth = 0
    searches = 0
    """Under way in any thread: a number of the class, not of the thread."""

    def __bool__(self) -> bool:
        return self.depth > 0 or (_Pauses.searches > 0 and joblib_depth() > 0)


_pauses = _Pauses()


def joblib_depth() -> int:
    """Return how many of joblib's parallel calls the thread is inside."""
    joblib: Any = sys.modules.get("joblib.parallel")
    return 0 if joblib is None else int(joblib.get_active_backend()[0].nesting_level or 0)


@contextmanager
def autologging_paused(*, search: bool = False) -> Iterator[None]:
    """Let no autologging of MLflow log what this thread does inside, be it ours or that of scikit-learn.

    Of a ``search``, that includes the threads that joblib starts for it.
    """
    if "mlflow" not in sys.modules:  # then nothing is logged unasked
        yield
        return
    utils: Any = import_module("mlflow.utils.autologging_utils")
    with _lock:
        if not utils._AUTOLOGGING_GLOBALLY_DISABLED:
            utils._AUTOLOGGING_GLOBALLY_DISABLED = _pauses
        _Pauses.searches += search
    _pauses.depth += 1
    try:
        yield
    finally:
        _pauses.depth -= 1
        with _lock:
            _Pauses.searches -= search
