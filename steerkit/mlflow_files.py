"""The files of a saved MLflow model besides its directions: the weights where needed, and the environment."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from mlflow.utils.environment import _mlflow_conda_env, _process_conda_env, _process_pip_requirements, _PythonEnv

import steerkit
from steerkit.exceptions import InvalidInputError
from steerkit.language_model import LanguageModel
from steerkit.steered import SteeredModel

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
    """Save the base model, and return the steered model with its name in it."""
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
    return SteeredModel(named, steered.vectors, alpha=steered.alpha, operation=steered.operation, card=steered.card)


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
