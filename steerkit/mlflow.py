"""The MLflow flavor of steered models: safetensors and JSON, no pickle, alpha per request.

It has the functions of MLflow's own flavors: `save_model`, `log_model`, `load_model`, and `_load_pyfunc` for
``mlflow.pyfunc.load_model`` and ``mlflow models serve``.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlflow
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.models.utils import _save_example
from mlflow.tracking._model_registry import DEFAULT_AWAIT_MAX_SLEEP_SECONDS
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Object, Property
from mlflow.utils.environment import _validate_env_arguments
from mlflow.utils.model_utils import (
    _add_code_from_conf_to_system_path,
    _get_flavor_configuration,
    _validate_and_copy_code_paths,
    _validate_and_prepare_target_save_path,
)

import steerkit
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError
from steerkit.language_model import LanguageModel
from steerkit.mlflow_files import (
    by_value,
    get_default_conda_env,
    get_default_pip_requirements,
    save_environment,
    save_weights,
)
from steerkit.mlflow_requests import PROMPT, Served, check_requests, layer_vectors
from steerkit.mlflow_store import check_store, chosen_store, store
from steerkit.steered import SteeredModel
from steerkit.vectors import SteeringVector, load_vectors, save_vectors

__all__ = [
    "FLAVOR_NAME",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "load_model",
    "log_model",
    "save_model",
]
FLAVOR_NAME = "steerkit"
STEERED, WEIGHTS, LAYERS = "steered", "model", "layers"


def save_model(
    steered_model: SteeredModel | SteeringEstimator,
    path: str | Path,
    conda_env: Any = None,
    code_paths: list[str] | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    pip_requirements: Any = None,
    extra_pip_requirements: Any = None,
    metadata: dict[str, Any] | None = None,
    *,
    vectors: Sequence[SteeringVector] = (),
    save_pretrained: bool | None = None,
) -> None:
    """Save a steered model as an MLflow model.

    Parameters
    ----------
    steered_model : SteeredModel or fitted SteeringEstimator
        Of an estimator, what ``export()`` returns, with the directions of all its layers as ``vectors``.
    path : str or Path
        A folder that is new or empty.
    conda_env, code_paths, mlflow_model, signature, input_example, pip_requirements, extra_pip_requirements, metadata
        As in MLflow's own flavors. The default requirements are pinned to what is installed.
    vectors : sequence of SteeringVector
        Directions at other layers, which a request may choose with the parameter ``layer``.
    save_pretrained : bool, optional
        Whether to save the weights of the base model, as in ``mlflow.transformers``. Default: only where a reference
        would lead nowhere else, which is a folder or a model in memory, of at most 2 GiB. Otherwise the name, the
        revision and the fingerprint are saved.

    Raises
    ------
    InvalidInputError
        The model exists only in memory and is large, or ``save_pretrained`` is false.
    """
    _validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    steered, vectors = _exported(steered_model, vectors)
    weighty = by_value(steered.model, save_pretrained)
    folder = Path(path)
    _validate_and_prepare_target_save_path(str(folder))
    code = _validate_and_copy_code_paths(code_paths, str(folder))
    mlflow_model = Model() if mlflow_model is None else mlflow_model
    named = save_weights(steered, folder / WEIGHTS) if weighty else steered
    named.save_pretrained(folder / STEERED)
    if vectors:
        (folder / LAYERS).mkdir()
        save_vectors(folder / LAYERS, vectors)
    _save_example(mlflow_model, _example(steered) if input_example is None else input_example, str(folder))
    mlflow_model.signature = _signature(steered) if signature is None else signature
    mlflow_model.metadata = {**(metadata or {}), **_about(steered)}
    pyfunc.add_to_model(
        mlflow_model, loader_module="steerkit.mlflow", conda_env="conda.yaml", python_env="python_env.yaml", code=code
    )
    mlflow_model.add_flavor(
        FLAVOR_NAME, steerkit_version=steerkit.__version__, data=STEERED, code=code,
        source_model_name=steered.model.name or None, source_model_revision=steered.model.revision,
        model_binary=WEIGHTS if weighty else None, layers=LAYERS if vectors else None,
    )  # fmt: skip
    mlflow_model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    mlflow_model.save(str(folder / MLMODEL_FILE_NAME))
    save_environment(folder, conda_env, pip_requirements, extra_pip_requirements)


def log_model(
    steered_model: SteeredModel | SteeringEstimator,
    artifact_path: str | None = None,
    conda_env: Any = None,
    code_paths: list[str] | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    await_registration_for: int = DEFAULT_AWAIT_MAX_SLEEP_SECONDS,
    pip_requirements: Any = None,
    extra_pip_requirements: Any = None,
    metadata: dict[str, Any] | None = None,
    name: str | None = None,
    params: dict[str, Any] | None = None,
    tags: dict[str, Any] | None = None,
    model_type: str | None = None,
    step: int = 0,
    model_id: str | None = None,
    **saving: Any,
) -> Any:
    """Log a steered model to the active run, or to a new one; the parameters are those of MLflow's own flavors.

    ``**saving`` may be ``vectors`` and ``save_pretrained``, as in `save_model`.

    Returns
    -------
    mlflow.models.model.ModelInfo
    """
    with store():
        return Model.log(
            artifact_path=artifact_path, name=name, flavor=_this(), steered_model=steered_model, conda_env=conda_env,
            code_paths=code_paths, registered_model_name=registered_model_name, signature=signature,
            input_example=input_example, await_registration_for=await_registration_for,
            pip_requirements=pip_requirements, extra_pip_requirements=extra_pip_requirements, metadata=metadata,
            params=params, tags=tags, model_type=model_type, step=step, model_id=model_id, **saving,
        )  # fmt: skip


def load_model(
    model_uri: str | Path, dst_path: str | None = None, *, model: str | LanguageModel | None = None
) -> SteeredModel:
    """Load a steered model from a folder, a run, a logged model or the registry.

    Parameters
    ----------
    model_uri : str or Path
        Such as ``"models:/expert-tutor@champion"``, ``"models:/expert-tutor/2"`` or ``"runs:/<run id>/model"``.
    dst_path : str, optional
        Existing folder to download to.
    model : str or LanguageModel, optional
        As in `SteeredModel.from_pretrained`.

    Raises
    ------
    InvalidInputError
        There is no such model, or it is none of steerkit's.
    """
    local = Path(model_uri).is_dir()
    if not local:
        check_store(chosen_store())
    with nullcontext(mlflow) if local else store() as tracked:
        try:
            folder = tracked.artifacts.download_artifacts(artifact_uri=str(model_uri), dst_path=dst_path)
            conf = _get_flavor_configuration(model_path=folder, flavor_name=FLAVOR_NAME)
        except (tracked.exceptions.MlflowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise InvalidInputError(
                f"{model_uri} cannot be loaded from {tracked.get_tracking_uri()} as a steered model ({reason}); pass "
                "the URI of a model that steerkit.mlflow.log_model wrote, and set MLFLOW_TRACKING_URI to its store."
            ) from error
        _add_code_from_conf_to_system_path(folder, conf)
    return _load(Path(folder), conf, model)


def _load(folder: Path, conf: Mapping[str, Any], model: str | LanguageModel | None = None) -> SteeredModel:
    binary = conf.get("model_binary")
    if model is None and binary:
        settings = load_vectors(folder / conf["data"])[1]["model"]
        model = LanguageModel(folder / binary, **{key: settings[key] for key in ("dtype", "chat", "blocks")})
    return SteeredModel.from_pretrained(folder / conf["data"], model=model)


def _load_pyfunc(path: str) -> Served:
    """Load what answers the requests to a served model; called by MLflow."""
    conf = _get_flavor_configuration(model_path=path, flavor_name=FLAVOR_NAME)
    steered = _load(Path(path), conf)
    check_requests(pyfunc.PyFuncModel, mlflow.exceptions.MlflowException)
    vectors = load_vectors(Path(path, conf["layers"]))[0] if conf.get("layers") else []
    return Served(steered, vectors)


def _this() -> Any:
    return steerkit.mlflow


def _exported(
    model: SteeredModel | SteeringEstimator, vectors: Sequence[SteeringVector]
) -> tuple[SteeredModel, list[SteeringVector]]:
    if isinstance(model, SteeringEstimator):
        return model.export(), list(vectors) or layer_vectors(model)
    if not isinstance(model, SteeredModel):
        raise InvalidInputError(
            f"steered_model is a {type(model).__name__}, a SteeredModel or a fitted SteeringEstimator was expected; "
            "pass what export returns."
        )
    return model, list(vectors)


def _signature(steered: SteeredModel) -> ModelSignature:
    """Return the signature: prompts (text or chat messages) to answers, alpha and its like as parameters."""
    alpha: Any = DataType.double
    if isinstance(steered.alpha, dict):
        names = [vector.classes[1] for vector in steered.vectors]
        alpha = Object([Property(name, DataType.double, required=False) for name in names])
    layer = steered.vectors[0].layer if len(steered.vectors) == 1 else None
    params = [
        ParamSpec("alpha", alpha, steered.alpha),
        ParamSpec("max_new_tokens", DataType.long, None),
        ParamSpec("temperature", DataType.double, None),
        ParamSpec("layer", DataType.long, layer),
    ]
    prompts = Schema([ColSpec(AnyType(), PROMPT)])
    return ModelSignature(inputs=prompts, outputs=Schema([ColSpec(DataType.string)]), params=ParamSchema(params))


def _example(steered: SteeredModel) -> Any:
    return ["What is a neutron star?"], {"alpha": steered.alpha, "max_new_tokens": 64}


def _about(steered: SteeredModel) -> dict[str, Any]:
    """Return what the registry shows of a model besides its signature."""
    return {
        "base_model": steered.model.name or type(steered.model.model).__name__,
        "fingerprint": steered.model.fingerprint.to_dict(),
        "layers": [vector.layer for vector in steered.vectors],
        "classes": [list(vector.classes) for vector in steered.vectors],
        "operation": steered.operation,
    }
