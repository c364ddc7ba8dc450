"""What an MLflow user finds of an estimator, a sweep, a calibration and a steered model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import steerkit
from steerkit.calibration import calibrate
from steerkit.datasets import load_contrast
from steerkit.estimator import SteeringEstimator
from steerkit.language_model import LanguageModel
from steerkit.mlflow_cells import PARENT, cell_rows, log_row, log_rows
from steerkit.mlflow_store import experiment
from steerkit.tracking import log_calibration, log_estimator, log_figures, log_steered, log_sweep
from tests.models import LABELS, TEXTS, planted_sweep
from tests.servers import MLFLOW_WARNS

pytestmark = MLFLOW_WARNS


def curve(mlflow: Any, run: str, name: str) -> dict[int, float]:
    return {point.step: point.value for point in mlflow.MlflowClient().get_metric_history(run, name)}


def test_an_estimator_is_curves_parameters_and_where_it_comes_from(
    mlflow: Any, fitted: SteeringEstimator, tmp_path: Path
) -> None:
    pd.DataFrame({"text": TEXTS, "label": ["ab"[label] for label in LABELS]}).to_csv(tmp_path / "mood.csv")
    mood = load_contrast(tmp_path / "mood.csv")
    scores = fitted.layer_scores(TEXTS, LABELS)
    run = mlflow.get_run(log_estimator(fitted, train=mood, test=(TEXTS, LABELS), test_scores=scores))
    for name, values in {
        "probe_accuracy": fitted.accuracies_, "activation_norm": fitted.norms_, "test_accuracy": scores,
    }.items():  # fmt: skip
        assert curve(mlflow, run.info.run_id, name) == dict(zip(fitted.layers_, values, strict=True))
    assert run.data.metrics["accuracy"] == fitted.accuracies_[fitted.layer_]
    assert run.data.metrics["read_layer"] == fitted.layer_
    assert {"learner": "mean-diff", "cv": "3", "model": "LlamaForCausalLM", "texts": "12"}.items() <= {
        *run.data.params.items()
    }
    tags = run.data.tags
    assert tags["steerkit.fingerprint.architecture"] == "LlamaForCausalLM"
    assert len(tags["steerkit.fingerprint.weights"]) == 16
    assert tags["steerkit.version.transformers"].startswith("5.")
    assert len(tags["mlflow.source.git.commit"]) == 40
    train, test = (entry.dataset for entry in run.inputs.dataset_inputs)
    assert [train.name, test.name] == ["mood.csv", "test"]
    assert str(tmp_path / "mood.csv") in train.source
    assert train.digest != test.digest
    assert run.info.status == "FINISHED"
    assert mlflow.active_run() is None


def test_without_git_all_but_the_commit_is_told(
    mlflow: Any, fitted: SteeringEstimator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tags = mlflow.get_run(log_estimator(fitted)).data.tags
    assert tags["steerkit.version.steerkit-estimator"] == steerkit.__version__
    assert len(tags["steerkit.fingerprint.weights"]) == 16


def test_only_what_differs_differs_between_the_parameters_of_two_runs(mlflow: Any, fitted: SteeringEstimator) -> None:
    other = SteeringEstimator(LanguageModel.of(fitted.model), learner="mass-mean", cv=3).fit(TEXTS, LABELS)
    mine, theirs = (mlflow.get_run(log_estimator(estimator)).data.params for estimator in (fitted, other))
    assert {name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name)} == {"learner"}


def test_a_learner_that_is_an_object_has_its_parameters_beside_its_name(mlflow: Any, fitted: SteeringEstimator) -> None:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learner = make_pipeline(StandardScaler(), RidgeClassifier(alpha=3.0))
    estimator = SteeringEstimator(LanguageModel.of(fitted.model), learner=learner, cv=3).fit(TEXTS, LABELS)
    params = mlflow.get_run(log_estimator(estimator)).data.params
    assert (params["learner"], params["learner__ridgeclassifier__alpha"]) == ("Pipeline", "3.0")


def test_a_sweep_is_a_table_and_a_run_per_cell(mlflow: Any) -> None:
    swept = planted_sweep(n_prompts=2)
    run = log_sweep(swept)
    table = mlflow.load_table("generations.json", run_ids=[run])
    assert list(table)[:5] == ["prompt", "direction", "layer", "alpha", "text"]
    np.testing.assert_allclose(table["effect"], swept.cells["effect"], atol=1e-9)  # MLflow's tables have ten digits
    cells = mlflow.search_runs(experiment_names=[f"{mlflow.get_experiment(_home(mlflow, run)).name}/cells"])
    means = swept.means()
    assert len(cells) == len(means) == 1 + 2 * 3 * 6
    assert set(cells["status"]) == {"FINISHED"}
    assert set(cells[f"tags.{PARENT}"]) == set(cells["tags.mlflow.parentRunId"]) == {run}
    one = cells[(cells["params.direction"] == "fitted") & (cells["params.layer"] == "2")]
    found = dict(zip(one["params.alpha"].astype(float), one["metrics.effect"], strict=True))
    assert found == {alpha: pytest.approx(effect) for alpha, effect in swept.pivot("effect").loc[2].items() if alpha}


def test_cells_in_a_batch_are_the_runs_that_the_client_makes(mlflow: Any) -> None:
    rows = cell_rows(planted_sweep(n_prompts=2), "0" * 32, "someone")[:3]
    del rows[2]["metrics"]["effect"]
    places = [experiment(mlflow, f"cells made {how}") for how in ("at once", "one by one")]
    log_rows(mlflow, places[0], rows)
    for row in rows:
        log_row(mlflow, mlflow.MlflowClient(), places[1], row)
    at_once, one_by_one = (
        sorted(mlflow.search_runs([place], output_format="list"), key=lambda run: run.info.run_name) for place in places
    )
    assert [run.data.to_dictionary() for run in at_once] == [run.data.to_dictionary() for run in one_by_one]
    for mine, theirs in zip(at_once, one_by_one, strict=True):
        for name in ("status", "lifecycle_stage", "user_id", "run_name"):
            assert getattr(mine.info, name) == getattr(theirs.info, name), name
        (mine_at, theirs_at) = (run.info.artifact_uri.split("/")[-2:] for run in (mine, theirs))
        assert mine_at == [mine.info.run_id, theirs_at[1]]
    mlflow.MlflowClient().set_tag(at_once[0].info.run_id, "note", "still a run like any other")
    mlflow.delete_run(at_once[0].info.run_id)
    assert len(mlflow.search_runs([places[0]])) == 2


def test_a_calibration_is_curves_and_a_choice(mlflow: Any) -> None:
    found = calibrate(planted_sweep())
    run = log_calibration(found, preservation=0.9, divergence=pd.DataFrame())
    metrics = mlflow.get_run(run).data.metrics
    assert (metrics["best_layer"], metrics["alpha_lower"], metrics["alpha_upper"]) == (2, -0.4, 0.4)
    assert metrics["effect_span"] == found.span
    assert curve(mlflow, run, "steering_effect") == found.layers["span"].to_dict()
    assert curve(mlflow, run, "usable_alpha_upper") == found.layers["upper"].to_dict()
    assert mlflow.get_run(run).data.params == {"preservation": "0.9"}
    assert mlflow.artifacts.load_dict(f"runs:/{run}/calibration.json") == found.to_dict()


def test_a_steered_model_is_a_logged_model_with_its_card(mlflow: Any, fitted: SteeringEstimator) -> None:
    from matplotlib.figure import Figure

    steered = fitted.export(0.5)
    run = log_steered(steered)
    (model,) = mlflow.search_logged_models(
        [_home(mlflow, run)], filter_string=f"source_run_id = '{run}'", output_format="list"
    )
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    answers = loaded.predict(TEXTS[:2], params={"max_new_tokens": 6})
    assert answers == steered.generate(TEXTS[:2], max_new_tokens=6)
    assert steered.card is not None
    assert mlflow.artifacts.load_text(f"runs:/{run}/card.html") == steered.card.to_html()
    with mlflow.start_run() as active:
        log_figures({"nothing": Figure()})
        assert mlflow.MlflowClient().list_artifacts(active.info.run_id, "plots")[0].path == "plots/nothing.png"


def test_an_active_run_is_used_and_stays_open(mlflow: Any, fitted: SteeringEstimator) -> None:
    with mlflow.start_run() as outer, mlflow.start_run(nested=True) as inner:
        assert {log_estimator(fitted), log_sweep(planted_sweep(n_prompts=2), cells=False)} == {inner.info.run_id}
        assert mlflow.active_run().info.run_id == inner.info.run_id
    assert mlflow.get_run(outer.info.run_id).data.metrics == {}
    assert (
        mlflow.get_experiment_by_name(f"{mlflow.get_experiment(_home(mlflow, inner.info.run_id)).name}/cells") is None
    )


def test_what_is_not_finite_is_left_out(mlflow: Any) -> None:
    swept = planted_sweep(n_prompts=2)
    swept.cells.loc[swept.cells["layer"] == 1, "nll_rise"] = np.nan
    run = log_sweep(swept)
    cells = mlflow.search_runs(experiment_names=[f"{mlflow.get_experiment(_home(mlflow, run)).name}/cells"])
    assert cells.loc[cells["params.layer"] == "1", "metrics.nll_rise"].isna().all()
    assert cells.loc[cells["params.layer"] == "2", "metrics.nll_rise"].notna().all()


def _home(mlflow: Any, run: str) -> str:
    return str(mlflow.get_run(run).info.experiment_id)
