"""Imports go down only, and heavy libraries come only when they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "steerkit"
FLOORS = [
    ["exceptions", "observed"],
    ["checks", "card", "mlflow_store"],
    [
        "operations",
        "hooks",
        "binary_classifier",
        "datasets",
        "batching",
        "prefix_tree",
        "lasso",
        "labels",
        "generation",
        "prompts",
        "fingerprint",
        "loading",
        "lightning_training",
        "autoencoder_files",
        "cell_store",
    ],
    ["language_model", "vectors", "resampling", "logistic_probe"],
    ["learners", "sparse_probe", "trunk"],
    ["layerwise", "decoding"],
    ["activations", "steered", "lint", "likelihood", "reliability", "unembedding", "mlflow_prompts"],
    ["sparse_autoencoder", "optimised_direction"],
    ["sparse_features", "fitted_directions", "reading"],
    ["estimator", "metrics"],
    ["mlflow_requests", "mlflow_files", "cells", "judges", "similarity"],
    ["sweep_results", "cell_runner", "controls", "mlflow_signature"],
    ["calibration", "references", "divergence", "bracketing", "mlflow_cells", "mlflow_fits", "mlflow"],
    ["sweeps"],
    ["neighbourhood"],
    ["plots", "report", "tracking", "mlflow_ui", "recipe"],
    ["experiment", "autologging"],
    ["cli"],
]
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
LAZY = [
    "mlflow",
    "mlflow_files",
    "mlflow_signature",
    "autologging",
    "lightning_training",
    "sparse_probe",
    "sparse_autoencoder",
    "sparse_features",
    "optimised_direction",
]
"""Modules about a heavy library, imported when they are used."""
HEAVY = ["lightning", "mlflow", "matplotlib", "gradio"]


def imports(name: str) -> set[str]:
    """The modules of steerkit that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steerkit."):
            found.add(str(node.module).removeprefix("steerkit."))
    return found


def test_every_module_has_a_floor() -> None:
    assert set(FLOOR) == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("name", FLOOR)
def test_imports_go_down_only(name: str) -> None:
    upwards = {other for other in imports(name) if FLOOR[other] > FLOOR[name]}
    assert not upwards, f"{name} imports {upwards} from above"


EAGER = [name for name in FLOOR if name not in LAZY]
FORKING = """
import os, sys
import joblib, pandas, pydantic, rich.progress, safetensors.torch, scipy.stats, torch, typer, yaml
import sklearn.covariance, sklearn.feature_extraction.text, sklearn.linear_model, sklearn.model_selection
import transformers.modeling_layers
for name in sys.argv[1:]:
    if os.fork() == 0:
        __import__(f"steerkit.{name}")
        print(name, *sys.modules, flush=True)
        os._exit(0)
    os.wait()
"""
"""Imports each module in a process that has imported no other of steerkit, only the libraries that any may."""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """What is in memory after the import of each module; a module that cannot be imported is missing."""
    command = [sys.executable, "-c", FORKING, *EAGER]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[0]: set(line.split()[1:]) for line in lines}


@pytest.mark.parametrize("name", EAGER)
def test_importing_a_module_loads_nothing_from_above_and_nothing_heavy(name: str, loaded: dict[str, set[str]]) -> None:
    mine = {module.removeprefix("steerkit.") for module in loaded[name] if module.startswith("steerkit.")}
    assert name in mine
    assert not {module for module in mine if FLOOR.get(module, -1) > FLOOR[name]}
    assert not loaded[name] & set(HEAVY)


def test_importing_steerkit_and_its_command_line_is_light() -> None:
    for module in ("steerkit", "steerkit.cli"):
        code = f"import {module}, sys; print(*sys.modules)"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not set(result.stdout.split()) & {*HEAVY, "torch", "transformers", "sklearn", "pandas", "pydantic"}


def test_one_home_for_hooks_mlflow_and_lightning() -> None:
    homes = {"register_forward": {"hooks"}, "import mlflow\n": {"mlflow", "autologging"}, "import lightning": set()}
    for words, expected in homes.items():
        assert {path.stem for path in PACKAGE.glob("*.py") if words in path.read_text()} == expected


def test_public_names_are_importable_and_listed() -> None:
    import steerkit

    assert steerkit.__all__ == sorted(dir(steerkit))
    assert all(getattr(steerkit, name) is not None for name in steerkit.__all__)
    with pytest.raises(AttributeError, match="module 'steerkit' has no attribute 'nothing'"):
        steerkit.nothing  # noqa: B018
