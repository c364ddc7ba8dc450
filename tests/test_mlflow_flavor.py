"""A steered model is an MLflow model like any other, without a pickle in it."""

import json
import re
import shutil
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
from steerkit.mlflow_files import REQUIRED
from steerkit.mlflow_requests import check_requests
from steerkit.steered import SteeredModel
from tests.models import LABELS, TEXTS, tiny
from tests.servers import MLFLOW_WARNS

pytestmark = MLFLOW_WARNS
CHAT = [{"role": "user", "content": "what is light ?"}]
SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(fitted: SteeringEstimator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow model of a tiny model in memory."""
    path = tmp_path_factory.mktemp("flavor") / "model"
    steerkit.mlflow.save_model(fitted, path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(str(folder))


def test_a_loaded_model_answers_as_the_steered_model(loaded: Any, fitted: SteeringEstimator) -> None:
    steered = fitted.export()
    assert loaded.predict(TEXTS[:3], params=SHORT) == steered.generate(TEXTS[:3], max_new_tokens=6)
    for alpha in (-1.0, 0.0, 0.1, 1):
        params = {"alpha": alpha, "max_new_tokens": 6}
        assert loaded.predict(TEXTS[:3], params=params) == steered.generate(TEXTS[:3], alpha=alpha, max_new_tokens=6)
    assert len({*map(tuple, (loaded.predict(TEXTS[:3], params={"alpha": a, **SHORT}) for a in (-2.0, 0.0, 2.0)))}) == 3


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        (TEXTS[0], TEXTS[:1]),
        ([], []),
        (CHAT, [CHAT]),
        ([CHAT, TEXTS[0], [*CHAT, *CHAT]], [CHAT, TEXTS[0], [*CHAT, *CHAT]]),
        ({"messages": CHAT}, [CHAT]),
        ({"prompt": TEXTS[:2]}, TEXTS[:2]),
        ([{"prompt": TEXTS[0]}, {"messages": CHAT}], [TEXTS[0], CHAT]),
        (pd.DataFrame({"id": [7, 8], "prompt": TEXTS[:2]}), TEXTS[:2]),
        (pd.DataFrame({"any name": TEXTS[:2]}), TEXTS[:2]),
        (pd.DataFrame({"prompt": []}), []),
        (pd.Series(TEXTS[:2]), TEXTS[:2]),
        (np.array(TEXTS[:2]), TEXTS[:2]),
    ],
)
def test_prompts_come_in_any_shape(loaded: Any, fitted: SteeringEstimator, data: Any, prompts: list[Any]) -> None:
    assert loaded.predict(data, params=SHORT) == fitted.export().generate(prompts, max_new_tokens=6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"alfa": 0.1},
            "'alfa' is no parameter of this model; pass some of alpha, max_new_tokens, temperature, layer.",
        ),
        ({"alpha": True}, "alpha=True is a bool, a finite number was expected; pass one such as 0.07."),
        ({"alpha": "strong"}, "alpha='strong' is a str, a finite number was expected; pass one such as 0.07."),
        ({"alpha": float("nan")}, "alpha=nan is a float, a finite number was expected; pass one such as 0.07."),
        ({"alpha": [0.1]}, "alpha=[0.1] is a list, a finite number was expected; pass one such as 0.07."),
        ({"alpha": 1e300}, "alpha=1e+300 is not finite; pass a fraction such as 0.07."),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5 is a float, a whole number was expected; pass one such as 8."),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is no positive int; pass how many tokens may be added."),
        ({"temperature": -1}, "temperature=-1 is below 0; pass 0 for the likeliest answer, or more to sample."),
        ({"layer": 9}, "layer=9 has no direction in this model; pass one of its layers (0, 1, 2, 3)."),
        ([1], "params is a list, an object was expected; pass {'alpha': 0.07} or the like."),
    ],
)
def test_bad_parameters_are_refused_in_a_sentence(loaded: Any, params: Any, message: str) -> None:
    import mlflow

    with pytest.raises(mlflow.exceptions.MlflowException, match=f"^{re.escape(message)}$") as caught:
        loaded.predict(TEXTS[:1], params=params)
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "prompt 0 is empty, text was expected; remove it or fill it."),
        (3, "the input is a int; pass text, chat messages, or a list of either."),
        ([3.5], "prompt 0 is a float, text was expected; pass a str, or a list of chat messages."),
        (
            pd.DataFrame({"a": ["x"], "b": ["y"]}),
            "the table has the columns 'a', 'b', 'prompt' was expected; name the column of the prompts so.",
        ),
        (
            {"messages": CHAT, "alfa": 1},
            "'alfa' is neither a prompt nor a parameter; pass 'prompt' or 'messages', and some of alpha, "
            "max_new_tokens, temperature, layer.",
        ),
        ({}, "the input has 0 of the keys prompt, messages, inputs, input; pass one of them."),
        ("star " * 200, "prompt 0 has 201 tokens, the model takes at most 128; shorten it."),
    ],
)
def test_bad_prompts_are_refused_in_a_sentence(loaded: Any, data: Any, message: str) -> None:
    import mlflow

    message = message.replace("the model takes", f"{loaded._model_impl.steered.model.name} takes")
    with pytest.raises(mlflow.exceptions.MlflowException, match=f"^{re.escape(message)}$"):
        loaded.predict(data)


def test_a_request_may_choose_the_layer_and_sample(loaded: Any, fitted: SteeringEstimator) -> None:
    for layer in fitted.layers_:
        alone = fitted.export(2.0, layer=layer).generate(TEXTS[:2], max_new_tokens=6)
        assert loaded.predict(TEXTS[:2], params={"layer": layer, "alpha": 2.0, **SHORT}) == alone
    assert loaded.predict(TEXTS[:2], params={"temperature": 0, **SHORT}) == loaded.predict(TEXTS[:2], params=SHORT)
    assert len({loaded.predict(TEXTS[0], params={"temperature": 5.0, **SHORT})[0] for _ in range(8)}) > 1


def test_several_directions_are_steered_by_name(tmp_path: Path) -> None:
    import mlflow

    labels = ["a", "b", "c"] * 4
    estimator = SteeringEstimator(tiny("llama"), learner="mean-diff", cv=2).fit(TEXTS, labels)
    steered = estimator.export({"a": 0.5})
    steerkit.mlflow.save_model(steered, tmp_path / "model")
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert served.predict(TEXTS[:2], params=SHORT) == steered.generate(TEXTS[:2], max_new_tokens=6)
    strengths = {"a": -2.0, "c": 1.0}
    expected = steered.generate(TEXTS[:2], alpha=strengths, max_new_tokens=6)
    assert served.predict(TEXTS[:2], params={"alpha": strengths, **SHORT}) == expected
    everywhere = steered.generate(TEXTS[:2], alpha=-1.0, max_new_tokens=6)
    assert served.predict(TEXTS[:2], params={"alpha": -1.0, **SHORT}) == everywhere
    message = "alpha names 'd'; the vectors lead to 'a', 'b', 'c', pass these."
    with pytest.raises(mlflow.exceptions.MlflowException, match=f"^{re.escape(message)}$"):
        served.predict(TEXTS[:2], params={"alpha": {"d": 1.0}})


def test_no_pickle_is_in_a_saved_model(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".yaml", ".txt", ".md", ".html", ".jinja", ""}
    assert [path.name for path in files if not path.suffix] == ["MLmodel"]
    for path in files:
        content = path.read_bytes()
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04"))
        if path.suffix != ".safetensors":
            assert "pickle" not in content.decode("utf-8")


def test_the_model_says_what_it_takes_gives_and_needs(folder: Path, fitted: SteeringEstimator) -> None:
    import mlflow

    info = mlflow.models.get_model_info(str(folder))
    params = {param.name: (param.dtype.name, param.default) for param in info.signature.params.params}
    assert params == {
        "alpha": ("double", 0.07),
        "max_new_tokens": ("long", None),
        "temperature": ("double", None),
        "layer": ("long", fitted.layer_),
    }
    assert info.metadata["fingerprint"] == fitted.fingerprint_.to_dict()
    assert set(info.flavors) == {"python_function", "steerkit"}
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert {line.partition("==")[0] for line in lines} == {"mlflow", "steerkit-estimator", *REQUIRED}
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines)
    example = json.loads((folder / "serving_input_example.json").read_text())
    answers = mlflow.pyfunc.load_model(str(folder)).predict(example["inputs"], params=example["params"])
    assert answers == fitted.export().generate(example["inputs"], max_new_tokens=64)


def test_a_local_model_travels_by_value_and_one_from_elsewhere_by_reference(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    import mlflow

    shutil.copytree(saved("llama"), tmp_path / "mine")
    estimator = SteeringEstimator(str(tmp_path / "mine"), learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    steered = estimator.export(1.0)
    expected = steered.generate(TEXTS[:2], max_new_tokens=6)
    steerkit.mlflow.save_model(steered, tmp_path / "by value")
    steerkit.mlflow.save_model(steered, tmp_path / "by reference", save_pretrained=False)
    assert not (tmp_path / "by reference" / "model").exists()
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "by value").rename(tmp_path / "moved")
    moved = steerkit.mlflow.load_model(tmp_path / "moved")
    assert moved.generate(TEXTS[:2], max_new_tokens=6) == expected

    tutor = SteeringEstimator("builtin:tutor", learner="mean-diff", cv=2, layers=[5]).fit(TEXTS, LABELS)
    steerkit.mlflow.save_model(tutor, tmp_path / "tutor")
    assert not (tmp_path / "tutor" / "model").exists()
    flavor = mlflow.models.Model.load(str(tmp_path / "tutor")).flavors["steerkit"]
    assert (flavor["source_model_name"], flavor["model_binary"]) == ("builtin:tutor", None)


def test_a_model_in_memory_cannot_be_a_reference(fitted: SteeringEstimator, tmp_path: Path) -> None:
    message = r"^the model exists only in memory and has \d+ bytes, at most 2147483648 are saved unasked; pass .*\.$"
    with pytest.raises(InvalidInputError, match=message):
        steerkit.mlflow.save_model(fitted, tmp_path / "model", save_pretrained=False)
    with pytest.raises(InvalidInputError, match=r"^steered_model is a str, a SteeredModel or a fitted Steering"):
        steerkit.mlflow.save_model("model", tmp_path / "model")  # type: ignore[arg-type]
    assert not (tmp_path / "model").exists()


def test_a_registered_version_loads_by_its_alias_everywhere(mlflow: Any, fitted: SteeringEstimator) -> None:
    steered = fitted.export(1.0)
    info = steerkit.mlflow.log_model(steered, name="model", registered_model_name="expert-tutor")
    mlflow.MlflowClient().set_registered_model_alias("expert-tutor", "champion", info.registered_model_version)
    expected = steered.generate(TEXTS[0], max_new_tokens=6)
    for uri in ("models:/expert-tutor@champion", "models:/expert-tutor/1", info.model_uri):
        assert SteeredModel.from_pretrained(uri).generate(TEXTS[0], max_new_tokens=6) == expected
    arguments = ["generate", "models:/expert-tutor@champion", TEXTS[0], "--max-new-tokens", "6"]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.output) == (0, f"{expected}\n")
    other = LanguageModel.of(fitted.model)
    assert SteeredModel.from_pretrained("models:/expert-tutor@champion", model=other).model is other

    result = CliRunner().invoke(app, ["generate", "models:/expert-tutor@nobody", TEXTS[0]])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: models:/expert-tutor@nobody cannot be loaded from sqlite:///")
    assert result.stderr.endswith("log_model wrote, and set MLFLOW_TRACKING_URI to its store.\n")


def test_to_look_for_a_model_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InvalidInputError, match=r"^sqlite:///.*/mlruns/mlflow\.db does not exist yet; run"):
        SteeredModel.from_pretrained("models:/expert-tutor@champion")
    assert list(tmp_path.iterdir()) == []


def test_models_of_other_flavors_are_served_as_ever() -> None:
    import mlflow

    class Echo:
        def predict(self, data: Any) -> Any:
            return data

    check_requests(mlflow.pyfunc.PyFuncModel, mlflow.exceptions.MlflowException)
    check_requests(mlflow.pyfunc.PyFuncModel, mlflow.exceptions.MlflowException)
    other = mlflow.pyfunc.PyFuncModel(mlflow.models.Model(), Echo())
    assert other.predict({"alfa": 1}) == {"alfa": 1}
