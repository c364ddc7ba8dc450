"""`steerkit.autolog` where many fits are one, or at once: searches, folds, threads."""

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from steerkit.estimator import SteeringEstimator
from steerkit.mlflow_store import autologging_paused, store
from tests.models import LABELS, TEXTS
from tests.servers import MLFLOW_WARNS
from tests.test_autologging import runs, warned

pytestmark = MLFLOW_WARNS


def test_a_search_is_one_run_with_one_inside_for_each_candidate(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator
) -> None:
    autolog(log_models=False)
    candidates = {"learner": ["mean-diff", "pca"], "layer": [1, 2]}
    search = GridSearchCV(estimator, candidates, cv=2).fit(TEXTS, LABELS)
    found = runs(mlflow)
    (outer,) = (run for run in found if "mlflow.parentRunId" not in run.data.tags)
    assert outer.data.metrics["best_cv_score"] == search.best_score_
    assert outer.data.params["learner"] == search.best_params_["learner"]
    assert "probe_accuracy" in outer.data.metrics
    inner = [run for run in found if run.data.tags.get("mlflow.parentRunId") == outer.info.run_id]
    scores = {(run.data.params["layer"], run.data.params["learner"]): run.data.metrics for run in inner}
    expected = zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True)
    found_scores = {key: metrics["mean_test_score"] for key, metrics in scores.items()}
    assert found_scores == {(str(p["layer"]), p["learner"]): score for p, score in expected}


def test_a_search_that_scikit_learn_s_autologging_logs_is_left_to_it(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator
) -> None:
    autolog(log_models=False)
    mlflow.sklearn.autolog(log_models=False, log_datasets=False)
    try:
        GridSearchCV(estimator, {"layer": [1, 2]}, cv=2).fit(TEXTS, LABELS)
        estimator.fit(TEXTS, LABELS)
    finally:
        mlflow.sklearn.autolog(disable=True)
    by = [run.data.tags.get("mlflow.autologging") for run in runs(mlflow) if "mlflow.parentRunId" not in run.data.tags]
    assert by == ["sklearn", "steerkit"]
    assert sum("probe_accuracy" in run.data.metrics for run in runs(mlflow)) == 1


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_a_search_with_several_metrics_logs_its_data_and_every_finite_score(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator, capfd: pytest.CaptureFixture[str]
) -> None:
    autolog(log_models=False)
    scoring = {"good": "accuracy", "how (odd)": "balanced_accuracy", "endless": lambda *_: float("inf")}
    search = GridSearchCV(estimator, {"layer": [1, 2]}, cv=GroupKFold(2), scoring=scoring, refit="endless")
    with np.errstate(invalid="ignore"):
        search.fit(TEXTS, LABELS, groups=[0, 1] * 6)
    assert warned(capfd) == []
    (outer,) = (run for run in runs(mlflow) if "mlflow.parentRunId" not in run.data.tags)
    (entry,) = outer.inputs.dataset_inputs
    assert (entry.dataset.name, '"group"' in entry.dataset.schema) == ("train", True)
    assert "best_cv_score" not in outer.data.metrics
    inner = [run for run in runs(mlflow) if "mlflow.parentRunId" in run.data.tags]
    inner.sort(key=lambda run: str(run.data.params["layer"]))
    assert [run.data.params for run in inner] == [{"layer": "1"}, {"layer": "2"}]
    expected = {f"{kind}_test_{name}" for kind in ("mean", "std", "rank") for name in ("good", "how _odd_")}
    assert all({*run.data.metrics} == {*expected, "mean_fit_time", "rank_test_endless"} for run in inner)
    means = [run.data.metrics["mean_test_good"] for run in inner]
    assert means == search.cv_results_["mean_test_good"].tolist()


def test_a_search_in_threads_is_one_run_too(mlflow: Any, autolog: Any, estimator: SteeringEstimator) -> None:
    autolog(log_models=False, log_datasets=False)
    with joblib.parallel_config("threading", n_jobs=2):
        GridSearchCV(estimator, {"layer": [1, 2]}, cv=2).fit(TEXTS, LABELS)
    assert sum("mlflow.parentRunId" not in run.data.tags for run in runs(mlflow)) == 1
    assert len(runs(mlflow)) == 3


def test_names_that_mlflow_forbids_cost_nothing(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator, capfd: pytest.CaptureFixture[str]
) -> None:
    autolog(log_models=False)
    learner = Pipeline([("my (scaler)", StandardScaler()), ("reader", LogisticRegression(C=2.0))])
    estimator.set_params(learner=learner).fit(TEXTS, LABELS)
    assert warned(capfd) == []
    (run,) = runs(mlflow)
    assert run.data.params["learner__my _scaler___with_mean"] == "True"
    assert run.data.params["learner__reader__C"] == "2.0"
    assert run.data.metrics["accuracy"] == estimator.accuracies_[estimator.layer_]


def test_data_that_cannot_be_logged_costs_the_data_only(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    autolog(log_models=False)
    monkeypatch.delattr(mlflow.data, "from_pandas")
    estimator.fit(TEXTS, LABELS)
    (line,) = warned(capfd)
    assert "steerkit could not log the train data of this run (AttributeError: " in line
    (run,) = runs(mlflow)
    assert (run.data.params["learner"], "probe_accuracy" in run.data.metrics) == ("mean-diff", True)


def test_fits_in_threads_are_a_run_each_and_autologging_stays_on(
    mlflow: Any, autolog: Any, estimator: SteeringEstimator
) -> None:
    autolog(log_models=False, log_datasets=False)
    uri = mlflow.get_tracking_uri()
    name = mlflow.get_experiment(mlflow.tracking.fluent._active_experiment_id).name
    together = threading.Barrier(4)

    def fit(layer: int) -> None:
        mlflow.set_experiment(name)
        mine = SteeringEstimator(estimator.model, learner="mean-diff", cv=3, layers=[layer])
        together.wait()
        mine.fit(TEXTS, LABELS)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fit, range(4)))
    assert sorted(run.data.params["layers"] for run in runs(mlflow)) == ["[0]", "[1]", "[2]", "[3]"]
    assert {run.info.status for run in runs(mlflow)} == {"FINISHED"}
    estimator.fit(TEXTS, LABELS)
    assert len(runs(mlflow)) == 5
    assert mlflow.get_tracking_uri() == uri


def test_a_pause_is_of_one_thread_and_ends_in_any_order(mlflow: Any, autolog: Any) -> None:
    from mlflow.utils import autologging_utils as utils

    autolog()
    first, second = autologging_paused(), autologging_paused()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        seen = lambda: bool(utils._AUTOLOGGING_GLOBALLY_DISABLED)  # noqa: E731
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        assert [pool.submit(seen).result() for pool in (one, other)] == [True, True]
        one.submit(first.__exit__, None, None, None).result()
        assert [pool.submit(seen).result() for pool in (one, other)] == [False, True]
        other.submit(second.__exit__, None, None, None).result()
        assert [pool.submit(seen).result() for pool in (one, other)] == [False, False]
        assert not seen()


def test_two_threads_in_two_stores_each_have_their_own_and_leave_all_as_it_was(mlflow: Any, tmp_path: Any) -> None:
    before = os.environ["MLFLOW_TRACKING_URI"], logging.getLogger("mlflow").level, logging.getLogger("alembic").level
    uris = [f"sqlite:///{tmp_path / name}" for name in ("a.db", "b.db")]
    entered, leave = threading.Event(), threading.Event()

    def work(number: int) -> list[str]:
        with store(uris[number]) as inside:
            seen = [inside.get_tracking_uri()]
            if number == 0:
                entered.set()
                leave.wait(10)
            with store():
                return [*seen, inside.get_tracking_uri()]

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(work, 0)
        entered.wait(60)
        second = pool.submit(work, 1)
        leave.set()
        assert (first.result(), second.result()) == ([uris[0]] * 2, [uris[1]] * 2)
    after = os.environ["MLFLOW_TRACKING_URI"], logging.getLogger("mlflow").level, logging.getLogger("alembic").level
    assert after == before
