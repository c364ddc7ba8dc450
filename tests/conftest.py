"""Fixtures: tiny models in memory and on disk, and an estimator fitted on one of them."""

import os
import sys

for library in ("OMP", "OPENBLAS"):  # before anything imports them: tiny models are slower on two threads
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

import steerkit
from steerkit.calibration import calibrate
from steerkit.estimator import SteeringEstimator
from steerkit.language_model import LanguageModel
from steerkit.mlflow_store import experiment, make_ready
from steerkit.tracking import log_calibration, log_estimator, log_sweep, open_run
from tests.models import ARCHITECTURES, LABELS, TEXTS, planted_sweep, tiny, tiny_model, tiny_tokenizer
from tests.servers import free_port, running

# A busy machine is no failure: time is never asserted.
hypothesis.settings.register_profile("steerkit", deadline=None)
hypothesis.settings.load_profile("steerkit")


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """A tiny float64 model of each architecture, so that only mistakes, not rounding, make a difference."""
    return tiny(request.param, dtype=torch.float64)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a tiny model of an architecture as a user's folder, once, and return the folder."""
    root = tmp_path_factory.mktemp("models")

    def save(architecture: str) -> Path:
        folder = root / architecture
        if not folder.exists():
            tiny_model(architecture).save_pretrained(folder)
            tiny_tokenizer(chat=architecture != "gpt2").save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def fitted() -> SteeringEstimator:
    """An estimator fitted on a tiny Llama in memory."""
    return SteeringEstimator(tiny("llama", dtype=torch.float64), learner="mean-diff", cv=3).fit(TEXTS, LABELS)


@pytest.fixture(scope="session")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of an MLflow database, made once, since that takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with chdir(folder):  # where the artifacts of its first experiment will lie
        make_ready(uri)
    return uri


@pytest.fixture(scope="session")
def ui(store_uri: str, fitted: SteeringEstimator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The addresses that `steerkit ui` prints, while it runs, of a store with two runs with sweeps and a model."""
    other = SteeringEstimator(LanguageModel.of(fitted.model), learner="mass-mean", cv=3).fit(TEXTS, LABELS)
    for estimator in (fitted, other):
        swept = planted_sweep()
        with open_run(uri=store_uri, name="tutor", title=f"tiny {estimator.learner}"):
            log_calibration(calibrate(swept))
            log_estimator(estimator, train=(TEXTS, LABELS))
            log_sweep(swept)
    port, log = free_port(), tmp_path_factory.mktemp("ui") / "log"
    command = [sys.executable, "-m", "steerkit.cli", "ui", "--store", store_uri, "--port", str(port)]
    with running(command, log, answers=f"http://127.0.0.1:{port}/health"):
        printed = [line for line in log.read_text().splitlines() if "/#/" in line]
        yield {what.strip(): address for what, _, address in (line.rpartition(" ") for line in printed)}


@pytest.fixture
def mlflow(store_uri: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow, told of the database and of an experiment with the test's name; left as it was found."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    mlflow.set_tracking_uri(store_uri)
    mlflow.set_experiment(experiment_id=experiment(mlflow, request.node.name))
    yield mlflow
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.tracking.fluent._active_experiment_id = None
    mlflow.set_tracking_uri(None)


@pytest.fixture
def autolog(mlflow: Any) -> Iterator[Any]:
    """`steerkit.autolog`, which is off again after the test."""
    yield steerkit.autolog
    steerkit.autolog(disable=True)


@pytest.fixture
def estimator(fitted: SteeringEstimator) -> SteeringEstimator:
    """One that is not fitted yet, on the same tiny model."""
    return SteeringEstimator(LanguageModel.of(fitted.model), learner="mean-diff", cv=3)
