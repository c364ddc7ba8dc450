"""What a saved model says of itself, one that cannot be saved leaves nothing, and what is no model says so."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import steerkit.mlflow
from steerkit.cli import app
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError
from steerkit.language_model import LanguageModel
from steerkit.steered import SteeredModel
from tests.models import LABELS, TEXTS, tiny
from tests.servers import MLFLOW_WARNS

pytestmark = MLFLOW_WARNS
CHAT = [{"role": "user", "content": "what is light ?"}]
SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def three() -> SteeringEstimator:
    """An estimator of three classes."""
    return SteeringEstimator(tiny("llama"), learner="mean-diff", cv=2).fit(TEXTS, ["a", "b", "c"] * 4)


def served(model: Any, folder: Path, **saving: Any) -> Any:
    import mlflow

    steerkit.mlflow.save_model(model, folder, **saving)
    return mlflow.pyfunc.load_model(str(folder))


@pytest.mark.parametrize("operation", ["add", "ablate", "clamp"])
def test_an_estimator_of_three_classes_is_saved_and_steers_to_those_that_are_named(
    three: SteeringEstimator, tmp_path: Path, operation: str
) -> None:
    steered = three.export(operation=operation)
    model = served(three if operation == "add" else steered, tmp_path / "model")
    assert model.predict(TEXTS[:2], params=SHORT) == steered.generate(TEXTS[:2], max_new_tokens=6)
    expected = steered.generate(TEXTS[:2], alpha={"b": 1.0}, max_new_tokens=6)
    assert model.predict(TEXTS[:2], params={"alpha": {"b": 1.0}, **SHORT}) == expected
    everywhere = steered.generate(TEXTS[:2], alpha=0.5, max_new_tokens=6)
    assert model.predict(TEXTS[:2], params={"alpha": 0.5, **SHORT}) == everywhere
    example = json.loads((tmp_path / "model" / "serving_input_example.json").read_text())
    assert example["params"] == {"alpha": {"c": 0.07}, "max_new_tokens": 64}
    assert len(model.predict(example["inputs"], params=example["params"])) == 1


def test_directions_at_two_layers_share_their_name_and_take_a_number_or_a_dict(
    fitted: SteeringEstimator, tmp_path: Path
) -> None:
    steered = SteeredModel(LanguageModel.of(fitted.model), [fitted.vector(1), fitted.vector(2)], alpha=0.5)
    model = served(steered, tmp_path / "model")
    assert model.predict(TEXTS[:2], params=SHORT) == steered.generate(TEXTS[:2], max_new_tokens=6)
    expected = steered.generate(TEXTS[:2], alpha=-1.0, max_new_tokens=6)
    for alpha in (-1.0, {"1": -1.0}):
        assert model.predict(TEXTS[:2], params={"alpha": alpha, **SHORT}) == expected


@pytest.mark.parametrize("default", [0.5, {"1": 0.5}])
def test_a_single_direction_takes_a_number_or_the_dict_of_its_name(
    fitted: SteeringEstimator, tmp_path: Path, default: Any
) -> None:
    import mlflow

    steered = SteeredModel(LanguageModel.of(fitted.model), fitted.vector(1), alpha=default)
    model = served(steered, tmp_path / "model", vectors=fitted.vector(2))
    assert model.predict(TEXTS[:2], params=SHORT) == steered.generate(TEXTS[:2], max_new_tokens=6)
    expected = steered.generate(TEXTS[:2], alpha=-1.0, max_new_tokens=6)
    for alpha in (-1.0, {"1": -1.0}):
        assert model.predict(TEXTS[:2], params={"alpha": alpha, **SHORT}) == expected
    other = SteeredModel(steered.model, fitted.vector(2), alpha=0.5).generate(TEXTS[:2], max_new_tokens=6)
    assert model.predict(TEXTS[:2], params={"layer": 2, **SHORT}) == other
    message = "alpha={} names no strength; pass a number, or {'1': 0.07}."
    with pytest.raises(mlflow.exceptions.MlflowException, match=f"^{re.escape(message)}$"):
        model.predict(TEXTS[:2], params={"alpha": {}})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"temperature": 1e-310},
            "temperature=1e-310 is too small to divide by; pass 0 for the likeliest answer, or at least 1e-09.",
        ),
        (
            {"alpha": 10**400},
            "alpha=100000000000000000...0000000000000000000 is a int, a finite number was expected; pass one such as "
            "0.07.",
        ),
    ],
)
def test_numbers_beyond_all_measure_are_refused(
    fitted: SteeringEstimator, params: dict[str, Any], message: str
) -> None:
    from steerkit.mlflow_requests import Served

    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        Served(fitted.export()).predict(TEXTS[:1], params)


def test_columns_nothing_and_parts_of_messages_are_prompts() -> None:
    from steerkit.mlflow_prompts import prompts_of

    assert prompts_of(np.array([["a"], ["b"]])) == ["a", "b"]
    assert prompts_of(pd.DataFrame()) == []
    parts = [{"role": "user", "content": [{"type": "text", "text": "what is "}, {"type": "text", "text": "light ?"}]}]
    assert prompts_of(parts) == prompts_of({"messages": parts}) == [CHAT]
    message = "a message has a part of the type 'image_url', 'text' was expected; pass {'type': 'text', 'text': ...}."
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        prompts_of([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


@pytest.mark.parametrize("exists", [False, True])
def test_a_save_that_fails_leaves_nothing(fitted: SteeringEstimator, tmp_path: Path, exists: bool) -> None:
    import mlflow

    if exists:
        (tmp_path / "model").mkdir()
    with pytest.raises(Exception, match=r".+"):
        steerkit.mlflow.save_model(fitted, tmp_path / "model", input_example=object())
    assert [*tmp_path.rglob("*")] == ([tmp_path / "model"] if exists else [])
    steerkit.mlflow.save_model(fitted, tmp_path / "model", metadata={"base_model": "mine", "owner": "me"})
    metadata = mlflow.models.Model.load(str(tmp_path / "model")).metadata
    assert (metadata["base_model"], metadata["owner"], metadata["operation"]) == ("mine", "me", "add")


def test_what_is_no_vector_is_refused(fitted: SteeringEstimator, tmp_path: Path) -> None:
    message = "vectors holds a str, SteeringVector was expected; pass what SteeringEstimator.vector returns."
    with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
        steerkit.mlflow.save_model(fitted, tmp_path / "model", vectors=["x"])  # type: ignore[list-item]
    assert [*tmp_path.iterdir()] == []


def test_a_saved_folder_is_a_steered_model_wherever_it_lies(fitted: SteeringEstimator, tmp_path: Path) -> None:
    steered = fitted.export(0.5)
    steerkit.mlflow.save_model(steered, tmp_path / "first" / "model")
    expected = steered.generate(TEXTS[:2], max_new_tokens=6)
    shutil.move(tmp_path / "first" / "model", tmp_path / "moved")
    assert str(tmp_path) not in (tmp_path / "moved" / "steered" / "steering_config.json").read_text()
    for folder in (tmp_path / "moved", tmp_path / "moved" / "steered"):
        assert SteeredModel.from_pretrained(folder).generate(TEXTS[:2], max_new_tokens=6) == expected
    result = CliRunner().invoke(app, ["generate", str(tmp_path / "moved"), TEXTS[0], "--max-new-tokens", "6"])
    assert (result.exit_code, result.output) == (0, f"{expected[0]}\n")


def test_a_folder_that_is_none_or_holds_no_model_blames_no_store(folder: Path, tmp_path: Path) -> None:
    for name in ("nowhere", str(folder / "MLmodel")):
        message = (
            f"{name} is no folder; pass one that steerkit.mlflow.save_model wrote, or a URI such as "
            "models:/expert-tutor@champion."
        )
        with pytest.raises(InvalidInputError, match=f"^{re.escape(message)}$"):
            steerkit.mlflow.load_model(name)
    with pytest.raises(InvalidInputError, match=r"^\S+ cannot be loaded as a steered model \(.+\); pass the URI of"):
        steerkit.mlflow.load_model(tmp_path)


@pytest.fixture(scope="module")
def folder(fitted: SteeringEstimator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saving") / "model"
    steerkit.mlflow.save_model(fitted, path)
    return path


def test_the_card_of_a_saved_and_of_a_registered_model_is_printed(
    mlflow: Any, folder: Path, fitted: SteeringEstimator
) -> None:
    card = fitted.export().card
    assert card is not None
    with mlflow.start_run():
        uri = steerkit.mlflow.log_model(fitted, name="model").model_uri
    for name in (str(folder), uri):
        result = CliRunner().invoke(app, ["card", name])
        assert (result.exit_code, result.output) == (0, card.to_markdown())


WITHOUT = """
import sys
sys.modules["mlflow"] = None
import steerkit
from steerkit import autolog
from steerkit import *
print(hasattr(steerkit, "mlflow"), callable(autolog))
for ask in (
    lambda: autolog(log_models=False), lambda: steerkit.mlflow, lambda: __import__("steerkit.mlflow"),
    lambda: __import__("steerkit.autologging"), lambda: SteeredModel.from_pretrained("models:/tutor@champion"),
):
    try:
        ask()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_without_mlflow_every_way_to_it_says_how_to_install_it() -> None:
    printed = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True).stdout
    needed = "tracking needs MLflow, which is not installed; pip install 'steerkit-estimator[tracking]'."
    kinds = ["MissingExtraError", "AttributeError", *["MissingExtraError"] * 3]
    assert printed.splitlines() == ["False True", *(f"{kind} {needed}" for kind in kinds)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_command_line_prints_brackets_and_colons_as_they_are(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pd.DataFrame({"text": TEXTS, "label": [("[a]", "[/b]")[label] for label in LABELS]})
    data.to_csv(tmp_path / "train.csv", index=False)
    recipe = {
        "name": "brackets",
        "model": {"name": str(saved("llama"))},
        "data": {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "train.csv"), "labels": ["[a]", "[/b]"]},
        "estimator": {"learner": "mean-diff"},
        "sweep": {"prompts": TEXTS[:2], "layers": [1], "alphas": [0.5], "max_new_tokens": 4},
        "show": "what [is] a :star: ?",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    arguments = ["run", str(tmp_path / "recipe.yaml"), "--output"]
    monkeypatch.setitem(sys.modules, "mlflow", None)
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    how = "pip install 'steerkit-estimator[tracking]' to log the run."
    for said in (how, "what [is] a :star: ?", "(minus: [a], plus: [/b])"):
        assert said in result.output
    monkeypatch.undo()
    (tmp_path / "[").mkdir()
    (tmp_path / "[" / "x].db").mkdir()
    store = f"sqlite:///{tmp_path}/[/x].db"
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "again"), "--store", store], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    assert f"Not logged to MLflow (InvalidInputError: {store} cannot be opened as a database" in result.output
