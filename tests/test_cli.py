"""The command line, as its users call it: the main job end to end, MLflow included."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steerkit.cli import app

RECIPE = str(Path(__file__).parents[1] / "recipes" / "expertise.yaml")
SMALL = ["sweep.layers=[6, 7]", "sweep.alphas=[-0.35, 0.35]", "sweep.max_new_tokens=24", "sweep.distractors=[]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def ran(home: Path) -> str:
    """The main job, small, run once through the command line."""
    store = f"sqlite:///{home / 'mlruns' / 'mlflow.db'}"
    arguments = ["run", RECIPE, "--output", str(home / "out"), "--store", store]
    for setting in SMALL:
        arguments += ["--set", setting]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_prints_layers_choice_answers_and_places(ran: str, home: Path) -> None:
    assert "Where the concept is read, and where steering works" in ran
    assert "a bag of words reads 0." in ran
    assert re.search(r"Steer at layer [67] with alpha from|Nothing is recommended: no layer has", ran)
    assert ran.count("│ +") + ran.count("│  +") >= 3
    store = f"sqlite:///{home / 'mlruns' / 'mlflow.db'}"
    assert f"MLflow         steerkit ui --store {store}, then http://127.0.0.1:5000/#/experiments/1/runs/" in ran
    assert (home / "out" / "sweep" / "cells.jsonl").is_file()
    assert (home / "out" / "recipe.yaml").is_file()


def test_the_saved_model_answers_on_the_command_line(ran: str, home: Path) -> None:
    del ran
    arguments = ["generate", str(home / "out" / "steered"), "What is a virus?", "--alpha", "-0.5", "--alpha", "0.5"]
    result = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "16"])
    assert result.exit_code == 0
    assert re.search(r"^\[alpha -0\.5\] .+\n\[alpha \+0\.5\] .+\n$", result.output, re.DOTALL)


def test_the_run_and_its_model_have_a_card_and_a_page_of_answers(ran: str, home: Path) -> None:
    del ran
    for folder in (home / "out", home / "out" / "steered"):
        result = CliRunner().invoke(app, ["card", str(folder)])
        assert result.exit_code == 0
        assert "\n# Steered model: novice → expert\n" in result.output
        assert "## What was not measured" in result.output
    result = CliRunner().invoke(app, ["card", str(home / "out"), "--html", str(home / "card.html")])
    assert (home / "card.html").read_text().startswith("<!doctype html>")
    result = CliRunner().invoke(app, ["card", str(home)])
    assert result.exit_code == 2
    assert "holds no readable card" in result.output
    assert "What is a neutron star?" in (home / "out" / "answers.html").read_text()


def test_the_neighbourhood_of_a_run_is_measured(ran: str, home: Path) -> None:
    assert "Steer at layer" in ran
    arguments = ["neighbourhood", RECIPE, "--output", str(home / "near"), "--run", str(home / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "is no output of this recipe with these settings; run it first" in result.output
    for setting in SMALL:
        arguments += ["--set", setting]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "share of the fitted" in result.output
    assert (home / "near" / "neighbourhood.png").stat().st_size > 10_000
    assert (home / "near" / "neighbourhood.csv").is_file()


def test_mlflow_holds_the_run_its_curves_its_cells_and_the_model(ran: str, home: Path) -> None:
    del ran
    from steerkit.mlflow_cells import PARENT
    from steerkit.mlflow_store import store
    from steerkit.steered import SteeredModel

    with store(f"sqlite:///{home / 'mlruns' / 'mlflow.db'}") as mlflow:
        client = mlflow.MlflowClient()
        (parent,) = client.search_runs([client.get_experiment_by_name("expertise").experiment_id])
        cells = client.search_runs([client.get_experiment_by_name("expertise/cells").experiment_id])
        assert parent.data.params["learner"] == "probe"
        curve = client.get_metric_history(parent.info.run_id, "probe_accuracy")
        assert [point.step for point in curve] == list(range(len(curve)))
        assert len(cells) == 1 + 2 * 2 * 2
        assert {cell.data.tags[PARENT] for cell in cells} == {parent.info.run_id}
        assert {cell.data.params["alpha"] for cell in cells} == {"-0.35", "0.0", "0.35"}
        assert all("effect" in cell.data.metrics for cell in cells)
        assert {cell.info.status for cell in [parent, *cells]} == {"FINISHED"}

        (model,) = mlflow.search_logged_models([parent.info.experiment_id], output_format="list")
        loaded = mlflow.pyfunc.load_model(model.model_uri)
        answer = loaded.predict(["What is a virus?"], params={"alpha": 0.5, "max_new_tokens": 16})
        folder = Path(mlflow.artifacts.download_artifacts(model.model_uri))
    assert [path.name for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")] == []
    steered = SteeredModel.from_pretrained(home / "out" / "steered")
    assert answer == steered.generate(["What is a virus?"], alpha=0.5, max_new_tokens=16)


def test_an_existing_output_is_refused_before_any_work(ran: str, home: Path) -> None:
    del ran
    before = sorted((home / "out").rglob("*"))
    result = CliRunner().invoke(app, ["run", RECIPE, "--output", str(home / "out")])
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"Error: {home / 'out'} exists; pass overwrite=True (--overwrite) to replace it, or another path.\n"
    )
    assert sorted((home / "out").rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["run", "no.yaml"],
            "Error: no.yaml does not exist; pass the path of a recipe such as recipes/expertise.yaml.\n",
        ),
        (["run", RECIPE, "--set", "sweep.alfas=[1]"], "sweep.alfas is no key of a recipe; the keys there are prompts,"),
        (["generate", "no-model", "hi"], "Error: no-model/steering_config.json is missing; pass a folder written by"),
        (
            ["ui", "--store", "sqlite:///no/mlflow.db"],
            "Error: sqlite:///no/mlflow.db does not exist yet; run `steerkit",
        ),
    ],
)
def test_errors_are_one_sentence_and_status_2(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert "Traceback" not in result.output


def test_help_teaches_without_loading_torch() -> None:
    code = "import sys; from steerkit.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for word in ("run", "generate", "ui", "steerkit run recipes/expertise.yaml"):
        assert word in printed
    assert "torch" not in printed.split()
    for command in ("run", "generate", "ui"):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_a_run_in_which_nothing_steers_says_so_and_still_saves(home: Path) -> None:
    arguments = ["run", RECIPE, "--output", str(home / "weak"), "--set", "track=false"]
    for setting in [*SMALL, "sweep.alphas=[0.001]", "sweep.layers=[0]"]:
        arguments += ["--set", setting]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "Nothing is recommended: no layer has an effect span above its random control's" in result.output
    assert json.loads((home / "weak" / "steered" / "steering_config.json").read_text())["alpha"] == 0.0
