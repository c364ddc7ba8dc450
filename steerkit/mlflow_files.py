"""The files of a saved MLflow model besides its directions: the weights where needed, and the environment."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from mlflow.exceptions import MlflowException
from mlflow.utils.environment import _mlflow_conda_env, _process_conda_env, _process_pip_requirements, _PythonEnv
from mlflow.utils.model_utils import _get_flavor_configuration

import steerkit
from steerkit.exceptions import InvalidInputError
from steerkit.language_model import LanguageModel
from steerkit.mlflow_store import check_store, chosen_store, in_mlflow, load, store
from steerkit.steered import SteeredModel
from steerkit.vectors import load_vectors

FLAVOR_NAME = "steerkit"
SMALL = 2 * 2**30
"""Bytes of weights up to which a model that only this machine has is saved by value."""
REQUIRED = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def get_default_pip_requirements() -> list[str]:
    """Return what a logged model needs to answer, at the versions that are installed."""
    pinned = [f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED]
    return [f"steerkit-estimator=={steerkit.__version__}", *pinned]


def get_default_conda_env() -> Any:
    """Return the conda environment of `get_default_pip_requirements`."""
    return _mlflow_conda_env(additional_pip_deps=get_default_pip_requirements())


def by_value(model: LanguageModel, asked: bool | None) -> bool:
    """Return whether the weights go into the artifact."""
    if model.name and not Path(model.name).is_dir():
        return bool(asked)
    size = sum(tensor.nbytes for tensor in model.model.state_dict().values())
    by_value = size <= SMALL if asked is None else asked
    if not (by_value or model.name):
        raise InvalidInputError(
            f"the model exists only in memory and has {size} bytes, at most {SMALL} are saved unasked; pass "
            "save_pretrained=True, or save it with its own save_pretrained and load it by that folder."
        )
    return by_value


def save_weights(steered: SteeredModel, folder: Path) -> SteeredModel:
    """Save the base model, and return the steered model with the way to it, from the folder beside, as its name."""
    model = steered.model
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    if not (folder / "config.json").is_file():
        shutil.rmtree(folder)
        raise InvalidInputError(
            f"{model!r} saves an adapter without its base model; merge it first, with merge_and_unload."
        )
    (folder / "training_args.bin").unlink(missing_ok=True)
    named = LanguageModel(folder, dtype=model.dtype, chat=model.chat, blocks=model.blocks_path)
    saved = SteeredModel(named, steered.vectors, alpha=steered.alpha, operation=steered.operation, card=steered.card)
    named.name = f"../{folder.name}"  # now that it is loaded: both may move
    return saved


def save_environment(folder: Path, conda_env: Any, pip_requirements: Any, extra_pip_requirements: Any) -> None:
    """Write what the model needs to run, as MLflow's own flavors do."""
    if conda_env is None:
        default = get_default_pip_requirements() if pip_requirements is None else None
        conda_env, pip, constraints = _process_pip_requirements(default, pip_requirements, extra_pip_requirements)
    else:
        conda_env, pip, constraints = _process_conda_env(conda_env)
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda_env, sort_keys=False), encoding="utf-8")
    if constraints:
        (folder / "constraints.txt").write_text("\n".join(constraints), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(pip), encoding="utf-8")
    _PythonEnv.current().to_yaml(str(folder / "python_env.yaml"))


@contextmanager
def emptied(folder: Path, *, remove: bool) -> Iterator[None]:
    """Leave nothing in a folder, and if it shall be removed no folder either, if what is done inside fails."""
    try:
        yield
    except BaseException:
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if remove:
            folder.rmdir()
        raise


def fetch(model_uri: str | Path, dst_path: str | None = None) -> tuple[Path, Mapping[str, Any]]:
    """Return the local folder of a model and what its flavor says; only what is in MLflow asks the store."""
    stored = in_mlflow(model_uri)
    if stored:
        check_store(chosen_store())
    elif "://" not in str(model_uri) and not Path(model_uri).is_dir():
        raise InvalidInputError(
            f"{model_uri} is no folder; pass one that steerkit.mlflow.save_model wrote, or a URI such as "
            "models:/expert-tutor@champion."
        )
    with store() if stored else nullcontext(load()) as tracked:
        try:
            folder = tracked.artifacts.download_artifacts(artifact_uri=str(model_uri), dst_path=dst_path)
            return Path(folder), _get_flavor_configuration(model_path=folder, flavor_name=FLAVOR_NAME)
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())
            place = f" from {tracked.get_tracking_uri()}" if stored else ""
            how = ", and set MLFLOW_TRACKING_URI to its store" if stored else ""
            raise InvalidInputError(
                f"{model_uri} cannot be loaded{place} as a steered model ({reason}); pass the URI of a model that "
                f"steerkit.mlflow.log_model wrote{how}."
            ) from error


def read(folder: Path, conf: Mapping[str, Any], model: str | LanguageModel | None = None) -> SteeredModel:
    """Load a steered model from its folder, with the weights that lie in it unless another model is given."""
    binary = conf.get("model_binary")
    if model is None and binary:
        settings = load_vectors(folder / conf["data"])[1]["model"]
        model = LanguageModel(folder / binary, **{key: settings[key] for key in ("dtype", "chat", "blocks")})
    return SteeredModel.from_pretrained(folder / conf["data"], model=model)
