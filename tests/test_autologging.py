"""`steerkit.autolog`: everything once, nothing lost, nothing left behind."""

import re
from pathlib import Path
from typing import Any

import pytest
from sklearn.model_selection import GridSearchCV

from steerkit import calibrate, sweep  # imported before autologging is on, as most scripts do
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import ContrastSetError, NothingSteersError
from steerkit.language_model import LanguageModel
from steerkit.reading import EffectReader
from tests.models import LABELS, TEXTS, planted_sweep
from tests.servers import MLFLOW_WARNS

pytestmark = MLFLOW_WARNS


def runs(mlflow: Any, **wanted: Any) -> list[Any]:
    """The runs of the test's own experiment, oldest first."""
    return list(mlflow.search_runs(order_by=["attributes.start_time ASC"], output_format="list", **wanted))


def warned(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if " WARNING " in line]


def test_a_fit_is_a_run_with_its_data_and_its_model(mlflow: Any, autolog: Any, estimator: SteeringEstimator) -> None:
    autolog()
    assert estimator.fit(TEXTS, LABELS) is estimator
    (run,) = runs(mlflow)
    assert mlflow.last_active_run().info.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "LlamaForCausalLM mean-diff"
    assert run.data.params["learner"] == "mean-diff"
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "probe_accuracy")
    assert [point.value for point in points] == estimator.accuracies_.tolist()
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["train"]
    loaded = mlflow.pyfunc.load_model(f"models:/{run.outputs.model_outputs[0].model_id}")
    expected = estimator.export().generate(TEXTS[:1], max_new_tokens=6)
    assert loaded.predict(TEXTS[:1], params={"max_new_tokens": 6}) == expected
    assert mlflow.active_run() is None


def test_a_sweep_and_its_calibration_go_on_with_the_run_of_the_fit(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator
) -> None:
    reader = EffectReader(LanguageModel.of(estimator.model), max_new_tokens=6).fit(TEXTS, LABELS)
    autolog(log_models=False, log_datasets=False)
    estimator.fit(TEXTS, LABELS)
    swept = sweep(estimator, TEXTS[:3], reader=reader, layers=[1, 2], alphas=[-1.0, 1.0], max_new_tokens=6)
    (run,) = runs(mlflow)
    assert (run.info.status, run.data.params["alphas"]) == ("FINISHED", "[-1.0, 1.0]")
    assert run.inputs.dataset_inputs[0].dataset.name == "steered prompts"
    assert not run.outputs or not run.outputs.model_outputs
    cells = mlflow.search_runs(experiment_names=[f"{mlflow.get_experiment(run.info.experiment_id).name}/cells"])
    assert len(cells) == 1 + 2 * 2 * 2
    with pytest.raises(NothingSteersError):  # of a model with random weights
        calibrate(sweep=swept)
    assert [run.info.status for run in runs(mlflow)] == ["FINISHED"]  # a refusal is a result

    sweep(estimator, TEXTS[:2], reader=reader, layers=[1], alphas=[1.0], max_new_tokens=6)
    _, second = runs(mlflow)  # the second sweep of one estimator has a run of its own, inside that of the fit
    assert second.info.run_name == "LlamaForCausalLM mean-diff sweep"
    assert second.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert mlflow.active_run() is None


def test_a_calibration_is_logged_even_of_a_loaded_sweep(mlflow: Any, autolog: Any) -> None:
    autolog()
    found = calibrate(sweep=planted_sweep(), preservation=0.8)
    (run,) = runs(mlflow)
    assert run.data.metrics["best_layer"] == found.layer
    assert run.data.params == {"preservation": "0.8", "perplexity": "2.0", "kl": "None"}


def test_called_twice_nothing_is_logged_twice_and_disabled_nothing_at_all(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator
) -> None:
    before = SteeringEstimator.fit, sweep.implementation, calibrate.implementation, GridSearchCV.fit  # type: ignore[attr-defined]
    autolog(log_models=False)
    autolog(log_models=False)
    estimator.fit(TEXTS, LABELS)
    assert len(runs(mlflow)) == 1
    assert len(mlflow.MlflowClient().get_metric_history(runs(mlflow)[0].info.run_id, "auc")) == 4
    autolog(disable=True)
    estimator.fit(TEXTS, LABELS)
    assert len(runs(mlflow)) == 1
    after = SteeringEstimator.fit, sweep.implementation, calibrate.implementation, GridSearchCV.fit  # type: ignore[attr-defined]
    assert after == before


def test_an_active_run_is_used_and_a_second_fit_is_a_run_inside_it(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator
) -> None:
    autolog(log_models=False)
    with mlflow.start_run() as mine:
        estimator.fit(TEXTS, LABELS)
        assert mlflow.active_run().info.run_id == mine.info.run_id
        estimator.set_params(learner="pca").fit(TEXTS, LABELS)
        assert mlflow.active_run().info.run_id == mine.info.run_id
    first, second = runs(mlflow)
    assert (first.info.run_id, first.data.params["learner"]) == (mine.info.run_id, "mean-diff")
    assert (second.data.tags["mlflow.parentRunId"], second.data.params["learner"]) == (mine.info.run_id, "pca")
    assert {first.info.status, second.info.status} == {"FINISHED"}
    autolog(exclusive=True)
    with mlflow.start_run():
        estimator.fit(TEXTS, LABELS)
    assert [run.data.params for run in runs(mlflow)][2:] == [{}]


def test_a_failing_fit_raises_as_ever_and_its_run_says_so(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator
) -> None:
    autolog()
    with pytest.raises(ContrastSetError, match=r"^X has 1 texts, y has 12 labels; pass one of each per text\.$"):
        estimator.fit(TEXTS[:1], LABELS)
    assert [run.info.status for run in runs(mlflow)] == ["FAILED"]
    assert mlflow.active_run() is None


def test_a_store_that_cannot_be_written_costs_a_warning_and_no_fit(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    autolog()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
    estimator.fit(TEXTS, LABELS)
    assert estimator.predict(TEXTS[:1]).shape == (1,)
    (line,) = warned(capfd)
    assert re.search(
        r"unexpected error during steerkit autologging: sqlite:///.*/file/mlflow\.db cannot be written \(.+\); pass "
        r"another store, or set MLFLOW_TRACKING_URI\.",
        line,
    )
    assert mlflow.active_run() is None


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_database_is_said_at_once(
    mlflow: Any,
    autolog: Any,
    estimator: SteeringEstimator,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:  # fmt: skip
    place = tmp_path / "mlflow.db"
    if kind == "file":
        place.write_text("no database " * 500)
    else:
        place.mkdir()
    autolog()
    mlflow.set_tracking_uri(f"sqlite:///{place}")
    estimator.fit(TEXTS, LABELS)
    (line,) = warned(capfd)
    why = {"file": "file is not a database", "folder": "unable to open database file"}[kind]
    assert line.endswith(
        f"sqlite:///{place} cannot be opened as a database ({why}); pass another store, or set MLFLOW_TRACKING_URI."
    )


def test_a_read_only_store_costs_a_warning_and_no_fit(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator, store_uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    autolog()
    before = len(mlflow.search_runs(search_all_experiments=True))
    mlflow.set_tracking_uri(f"sqlite:///file:{store_uri.removeprefix('sqlite:///')}?mode=ro&uri=true")
    estimator.fit(TEXTS, LABELS)
    assert estimator.predict(TEXTS[:1]).shape == (1,)
    said = capfd.readouterr().err
    assert "Encountered unexpected error during steerkit autologging" in said
    assert "attempt to write a readonly database" in said
    mlflow.set_tracking_uri(store_uri)
    assert len(mlflow.search_runs(search_all_experiments=True)) == before


def test_a_part_that_cannot_be_logged_costs_that_part_only(
    mlflow: Any, autolog: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    autolog()
    with mlflow.start_run() as run:
        mlflow.log_param("preservation", "a thing of the user's")
        found = calibrate(planted_sweep(), preservation=0.8)
    (line,) = warned(capfd)
    said = "steerkit could not log the calibration of this run (MlflowException: Changing param values is not allowed"
    assert said in line
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
    assert found.layer == 2


def test_without_a_store_of_yours_it_is_the_project_s_and_mlflow_is_told(
    mlflow: Any, autolog: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow.tracking.fluent._active_experiment_id = None
    mlflow.set_tracking_uri(None)
    autolog()
    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    assert not (tmp_path / "mlruns").exists()  # until something is logged
