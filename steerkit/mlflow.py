"""The MLflow flavor of steered models: safetensors and JSON, no pickle, alpha per request.

It has the functions of MLflow's own flavors: `save_model`, `log_model`, `load_model`, and `_load_pyfunc` for
``mlflow.pyfunc.load_model`` and ``mlflow models serve``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import mlflow
except ModuleNotFoundError as error:
    from steerkit.exceptions import MissingExtraError
    from steerkit.mlflow_store import MISSING

    raise MissingExtraError(MISSING) from error
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.models.utils import _save_example
from mlflow.tracking._model_registry import DEFAULT_AWAIT_MAX_SLEEP_SECONDS
from mlflow.utils.environment import _validate_env_arguments
from mlflow.utils.model_utils import (
    _add_code_from_conf_to_system_path,
    _get_flavor_configuration,
    _validate_and_copy_code_paths,
    _validate_and_prepare_target_save_path,
)

import steerkit
from steerkit.card import Card
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError
from steerkit.language_model import LanguageModel
from steerkit.mlflow_files import (
    FLAVOR_NAME,
    by_value,
    emptied,
    fetch,
    get_default_conda_env,
    get_default_pip_requirements,
    read,
    save_environment,
    save_weights,
)
from steerkit.mlflow_requests import Served, check_requests, layer_vectors
from steerkit.mlflow_signature import example_of, metadata_of, signature_of
from steerkit.mlflow_store import store
from steerkit.steered import SteeredModel
from steerkit.vectors import SteeringVector, load_vectors, save_vectors

__all__ = [
    "FLAVOR_NAME",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "load_card",
    "load_model",
    "log_model",
    "save_model",
]
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

    ``mlflow models serve`` takes JSON for it, with the parameters under ``params`` unless the body has ``messages`` or
    ``prompt``; elsewhere MLflow drops them. It takes no CSV, as prompts may be texts or chats.

    Parameters
    ----------
    steered_model : SteeredModel or fitted SteeringEstimator
        Of an estimator, what ``export()`` returns, with the directions of all its layers as ``vectors``.
    path : str or Path
        A folder that is new or empty.
    conda_env, code_paths, mlflow_model, signature, input_example, pip_requirements, extra_pip_requirements, metadata
        As in MLflow's own flavors. The default requirements are pinned to what is installed; what ``metadata`` says
        comes before what is told of the model unasked, such as its ``base_model``.
    vectors : sequence of SteeringVector
        Directions at other layers, which a request may choose with the parameter ``layer``.
    save_pretrained : bool, optional
        Whether to save the weights of the base model, as in ``mlflow.transformers``. Default: only where a reference
        would lead nowhere else, which is a folder or a model in memory, of at most 2 GiB. Otherwise the name, the
        revision and the fingerprint are saved.

    Raises
    ------
    InvalidInputError
        The model exists only in memory and is large, or ``save_pretrained`` is false. Whatever fails, nothing is left
        in the folder.
    """
    _validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    steered, vectors = _exported(steered_model, vectors)
    weighty = by_value(steered.model, save_pretrained)
    example, mine = example_of(steered) if input_example is None else input_example, signature_of(steered)
    folder, existed = Path(path), Path(path).exists()
    _validate_and_prepare_target_save_path(str(folder))
    mlflow_model = Model() if mlflow_model is None else mlflow_model
    with emptied(folder, remove=not existed):
        code = _validate_and_copy_code_paths(code_paths, str(folder))
        _save_example(mlflow_model, example, str(folder))
        mlflow_model.signature = mine if signature is None else signature
        mlflow_model.metadata = {**metadata_of(steered), **(metadata or {})}
        _write(mlflow_model, folder, steered, vectors, weighty=weighty, code=code)
        save_environment(folder, conda_env, pip_requirements, extra_pip_requirements)


def _write(
    mlflow_model: Model, folder: Path, steered: SteeredModel, vectors: Sequence[SteeringVector], *, weighty: bool,
    code: str | None,
) -> None:  # fmt: skip
    """Write the directions, the weights if they are asked for, and the file that says where they are."""
    named = save_weights(steered, folder / WEIGHTS) if weighty else steered
    named.save_pretrained(folder / STEERED)
    if vectors:
        (folder / LAYERS).mkdir()
        save_vectors(folder / LAYERS, vectors)
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
    folder, conf = fetch(model_uri, dst_path)
    _add_code_from_conf_to_system_path(str(folder), conf)
    return read(folder, conf, model)


def load_card(model_uri: str | Path) -> Card:
    """Load the reliability card alone of a steered model, from where `load_model` would load that."""
    folder, conf = fetch(model_uri)
    return Card.load(folder / conf["data"])


def _load_pyfunc(path: str) -> Served:
    """Load what answers the requests to a served model; called by MLflow."""
    conf = _get_flavor_configuration(model_path=path, flavor_name=FLAVOR_NAME)
    steered = read(Path(path), conf)
    check_requests(pyfunc.PyFuncModel, mlflow.exceptions.MlflowException)
    vectors = load_vectors(Path(path, conf["layers"]))[0] if conf.get("layers") else []
    return Served(steered, vectors)


def _this() -> Any:
    return steerkit.mlflow


def _exported(
    model: SteeredModel | SteeringEstimator, vectors: Sequence[SteeringVector]
) -> tuple[SteeredModel, list[SteeringVector]]:
    vectors = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
    if wrong := [type(vector).__name__ for vector in vectors if not isinstance(vector, SteeringVector)]:
        raise InvalidInputError(
            f"vectors holds a {wrong[0]}, SteeringVector was expected; pass what SteeringEstimator.vector returns."
        )
    if isinstance(model, SteeringEstimator):
        return model.export(), vectors or layer_vectors(model)
    if not isinstance(model, SteeredModel):
        raise InvalidInputError(
            f"steered_model is a {type(model).__name__}, a SteeredModel or a fitted SteeringEstimator was expected; "
            "pass what export returns."
        )
    return model, vectors
