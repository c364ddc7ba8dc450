"""Databases, tracking servers, no MLflow at all: what is logged arrives, and nothing else stops."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import steerkit
from steerkit.cli import app
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError, MissingExtraError
from steerkit.experiment import run
from steerkit.mlflow_store import chosen_store, store
from steerkit.mlflow_ui import links, run_url, ui_store
from steerkit.recipe import Recipe
from steerkit.steered import SteeredModel
from steerkit.tracking import log_estimator, log_steered, log_sweep, open_run
from tests.models import LABELS, TEXTS, planted_sweep
from tests.servers import MLFLOW_WARNS, ROOT

pytestmark = MLFLOW_WARNS
WRITER = """
import sys
from steerkit.mlflow_cells import log_rows
from steerkit.mlflow_store import experiment, store

uri, name = sys.argv[1:]
tags = {"mlflow.user": "someone", "mlflow.runName": name}
cell = {"name": name, "params": {"alpha": "0.1"}, "metrics": {"effect": 0.5}, "tags": tags}
with store(uri) as mlflow:
    place = experiment(mlflow, "together")
    for step in range(3):
        with mlflow.start_run(experiment_id=place, run_name=name):
            mlflow.log_params({"writer": name, "step": step})
            mlflow.log_metrics({"effect": 1.0}, step=step)
        log_rows(mlflow, experiment(mlflow, "together/cells"), [cell] * 50)
"""


def test_four_processes_that_log_at_once_into_a_fresh_store_lose_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    command = [sys.executable, "-W", "ignore", "-c", WRITER, uri]
    writers = [
        subprocess.Popen([*command, f"writer {number}"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    problems = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, problems
    with store(uri) as mlflow:
        runs = mlflow.search_runs(experiment_names=["together"])
        cells = mlflow.search_runs(experiment_names=["together/cells"])
    assert sorted(runs["params.writer"] + runs["params.step"]) == [
        f"writer {number}{step}" for number in range(4) for step in range(3)
    ]
    assert set(runs["status"]) == set(cells["status"]) == {"FINISHED"}
    assert cells["tags.mlflow.runName"].value_counts().to_dict() == {f"writer {number}": 150 for number in range(4)}


def test_a_tracking_server_is_used_like_a_database(
    ui: dict[str, str], fitted: SteeringEstimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ui["experiments"].partition("/#/")[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with open_run(name="remote") as (mlflow, run_id):
        log_estimator(fitted, train=(TEXTS, LABELS))
        log_sweep(planted_sweep(n_prompts=2))
        log_steered(fitted.export(0.5))
        (model,) = mlflow.search_logged_models(
            [mlflow.get_run(run_id).info.experiment_id], filter_string=f"source_run_id='{run_id}'", output_format="list"
        )
    with store() as mlflow:
        assert mlflow.get_tracking_uri() == server
        cells = mlflow.search_runs(experiment_names=["remote/cells"])
        assert len(cells) == 1 + 2 * 3 * 6
        assert set(cells["tags.steerkit.parent_run"]) == {run_id}
        assert len(mlflow.MlflowClient().get_metric_history(run_id, "probe_accuracy")) == 4
    answers = SteeredModel.from_pretrained(f"models:/{model.model_id}").generate(TEXTS[:2], max_new_tokens=6)
    assert answers == fitted.export(0.5).generate(TEXTS[:2], max_new_tokens=6)
    assert run_url(run_id).startswith(f"{server}/#/experiments/")
    assert all(address.startswith(f"{server}/#/") for address in links().values())
    message = f"{server} is a tracking server, which has its own pages; open that address."
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        ui_store()


def test_the_store_is_the_one_that_was_named(
    mlflow: Any, store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen_store("sqlite:///mine.db") == "sqlite:///mine.db"
    assert chosen_store() == store_uri
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert chosen_store() == mlflow.get_tracking_uri()  # as an experiment was chosen there
    mlflow.tracking.fluent._active_experiment_id = None
    monkeypatch.chdir(tmp_path)
    assert chosen_store() == f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    with store(store_uri):
        assert mlflow.get_tracking_uri() == store_uri


def test_the_ui_shares_no_port(ui: dict[str, str], store_uri: str) -> None:
    port = int(ui["experiments"].partition("/#/")[0].rpartition(":")[2])
    result = CliRunner().invoke(app, ["ui", "--store", store_uri, "--port", str(port)])
    assert result.exit_code == 2
    assert result.stderr == f"Error: port {port} is in use already; pass another, such as --port {port + 1}.\n"


@pytest.fixture
def recipe(saved: Callable[[str], Path], tmp_path: Path) -> dict[str, Any]:
    """Settings of a run that takes a second."""
    data = pd.DataFrame({"text": TEXTS, "label": ["ab"[label] for label in LABELS]})
    data.to_csv(tmp_path / "train.csv", index=False)
    return {
        "name": "small",
        "model": {"name": str(saved("llama"))},
        "data": {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "train.csv"), "labels": ["a", "b"]},
        "estimator": {"learner": "mean-diff"},
        "sweep": {"prompts": TEXTS[:2], "layers": [1], "alphas": [0.5], "max_new_tokens": 4},
        "show": TEXTS[0],
    }


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_without_mlflow_a_run_says_how_to_track_and_does_all_else(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = "pip install 'steerkit-estimator[tracking]'"
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = run(Recipe.model_validate(recipe), output=tmp_path / "out", say=said.append)
    assert said[-1] == f"Not tracked, as MLflow is not installed; {how} to log the run."
    assert (tmp_path / "out" / "steered" / "steering_config.json").is_file()
    assert done.run_id is None
    off = Recipe.model_validate({**recipe, "track": False})
    run(off, output=tmp_path / "off", say=said.append)
    assert said[-1] == "Not tracked; pass --set track=true to log the run to MLflow."

    needed = f"tracking needs MLflow, which is not installed; {how}."
    with pytest.raises(MissingExtraError, match=f"^{re.escape(needed)}$"):
        steerkit.autolog()
    result = CliRunner().invoke(app, ["ui"])
    assert (result.exit_code, result.stderr) == (2, f"Error: {needed}\n")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_run_that_cannot_be_tracked_is_kept_and_autologging_does_not_log_it_twice(
    recipe: dict[str, Any], tmp_path: Path, mlflow: Any, store_uri: str
) -> None:
    said: list[str] = []
    (tmp_path / "file").touch()
    broken = f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"
    done = run(Recipe.model_validate(recipe), output=tmp_path / "out", store=broken, say=said.append)
    assert done.run_id is None
    assert said[-1].startswith(f"Not logged to MLflow (InvalidInputError: {broken} cannot be written")
    assert (tmp_path / "out" / "steered").is_dir()

    steerkit.autolog()
    try:
        done = run(Recipe.model_validate(recipe), output=tmp_path / "again", store=store_uri, say=said.append)
    finally:
        steerkit.autolog(disable=True)
    assert len(mlflow.search_runs()) == 0
    logged = mlflow.search_runs(experiment_names=["small"])
    assert logged["run_id"].tolist() == [done.run_id]
    assert "name: small\n" in mlflow.artifacts.load_text(f"runs:/{done.run_id}/recipe.yaml")
