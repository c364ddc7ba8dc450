"""What of a fitted estimator goes into an MLflow run, part by part, so that one that fails costs no other."""

import getpass
import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from shutil import which
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from steerkit.estimator import SteeringEstimator
from steerkit.fingerprint import digest_weights
from steerkit.language_model import LanguageModel

PACKAGES = ("steerkit-estimator", "torch", "transformers", "scikit-learn", "numpy", "mlflow")
FORBIDDEN, LONGEST = r"[^\w\-. :]", 250
"""Of names in MLflow; the slash too, as it makes folders of them."""

Part = Callable[[Any, str], None]


def estimator_parts(
    estimator: SteeringEstimator, *, train: Any = None, test: Any = None, test_scores: Any = None
) -> dict[str, Part]:
    """Return, by what it is called, how to log each part to a run, given the mlflow module and the id of the run.

    The arguments are those of `steerkit.tracking.log_estimator`.
    """
    parts: dict[str, Part] = {
        "the parameters": lambda mlflow, _: mlflow.log_params(estimator_params(estimator)),
        "the tags": lambda mlflow, _: mlflow.set_tags(_origin(estimator)),
        "the curves": lambda mlflow, run: _log_scores(mlflow, run, estimator, test_scores),
    }
    for context, data in (("train", train), ("test", test)):
        if data is not None:
            parts[f"the {context} data"] = partial(_log_input, data=data, context=context)
    return parts


def _log_input(mlflow: Any, _: str, *, data: Any, context: str) -> None:
    log_data(mlflow, data, context)


def _log_scores(mlflow: Any, run: str, estimator: SteeringEstimator, test_scores: Any) -> None:
    curves = {
        "probe_accuracy": estimator.accuracies_,
        "activation_norm": estimator.norms_,
        "auc": estimator.aucs_,
        **({} if test_scores is None else {"test_accuracy": test_scores}),
    }
    place = estimator.layers_.index(estimator.layer_)
    log_finite(mlflow, {"accuracy": estimator.accuracies_[place], "read_layer": estimator.layer_})
    log_curves(mlflow, run, {name: zip(estimator.layers_, v, strict=True) for name, v in curves.items()})


def estimator_params(estimator: SteeringEstimator) -> dict[str, Any]:
    """Return the parameters of an estimator under its own names; a learner that is an object has ``learner__C`` etc.

    The model is its name; its revision and data type stand beside it.
    """
    params = {name: _said(value) for name, value in estimator.get_params(deep=False).items()}
    if isinstance(estimator.learner, BaseEstimator):
        deep = {k: v for k, v in estimator.learner.get_params(deep=True).items() if not isinstance(v, BaseEstimator)}
        params |= {param_name(f"learner__{name}"): value for name, value in deep.items()}
        params["learner"] = type(estimator.learner).__name__
    model = LanguageModel.of(estimator.model)
    named = {"model": model.name or type(model.model).__name__, "revision": model.revision, "dtype": model.dtype}
    return {**params, **named, "texts": sum(getattr(estimator, "n_samples_", []))}


def param_name(name: str) -> str:
    """Return a name as MLflow takes it: what it forbids, such as the brackets in the step of a pipeline, is ``_``."""
    return re.sub(FORBIDDEN, "_", name)[:LONGEST]


def log_data(mlflow: Any, data: Any, context: str) -> None:
    """Log a contrast set as an input of the active run; the source of one from a file is that file."""
    source = None
    if isinstance(data, Mapping):
        texts, labels, groups = data["data"], data["target"], data.get("groups")
        labels = np.asarray(data["target_names"])[labels] if "target_names" in data else labels
        name, source = str(data.get("DESCR", context)).partition(":")[0], data.get("filename")
    else:
        (texts, labels, *rest), name = data, context
        groups = rest[0] if rest else None
    table = pd.DataFrame({"text": [t if isinstance(t, str) else json.dumps(t) for t in texts], "label": labels})
    table["label"] = table["label"].astype(str)
    if groups is not None:
        table["group"] = np.asarray(groups).astype(str)
    mlflow.log_input(mlflow.data.from_pandas(table, source=source, name=name, targets="label"), context=context)


def _said(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else " ".join(str(value).split())


def _origin(estimator: SteeringEstimator) -> dict[str, str]:
    """Return tags that say what the numbers are of: the model, the packages, the commit."""
    model = LanguageModel.of(estimator.model)
    tags = {f"steerkit.fingerprint.{name}": str(value) for name, value in estimator.fingerprint_.to_dict().items()}
    tags["steerkit.fingerprint.weights"] = digest_weights(model.model)[:16]
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # mlflow-skinny, or steerkit from a folder
            tags[f"steerkit.version.{name}"] = version(name)
    if git := which("git"):
        head = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603
        tags |= {"mlflow.source.git.commit": head.stdout.strip()} if head.returncode == 0 else {}
    return tags


def user() -> str:
    """Return who logs."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def log_curves(mlflow: Any, run: str, curves: Mapping[str, Any]) -> None:
    """Log metrics with ``step = layer``, which the UI draws as curves over the layers."""
    now = time.time_ns() // 10**6
    points = [
        mlflow.entities.Metric(name, float(value), now, int(layer))
        for name, curve in curves.items()
        for layer, value in curve
        if np.ndim(value) == 0 and np.isfinite(value)
    ]
    client = mlflow.MlflowClient()
    for start in range(0, len(points), 1000):  # the most that a batch may hold
        client.log_batch(run, metrics=points[start : start + 1000])


def log_finite(mlflow: Any, metrics: Mapping[str, Any]) -> None:
    """Log the metrics that are finite numbers."""
    mlflow.log_metrics({name: float(value) for name, value in metrics.items() if np.isfinite(value)})
