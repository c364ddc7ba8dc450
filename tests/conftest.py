"""Fixtures: tiny models in memory and on disk, and an estimator fitted on one of them."""

import os

for library in ("OMP", "OPENBLAS"):  # before anything imports them: tiny models are slower on two threads
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from steerkit.estimator import SteeringEstimator
from steerkit.language_model import LanguageModel
from tests.models import ARCHITECTURES, LABELS, TEXTS, tiny, tiny_model, tiny_tokenizer

# A busy machine is no failure: time is never asserted.
hypothesis.settings.register_profile("steerkit", deadline=None)
hypothesis.settings.load_profile("steerkit")


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """A tiny float64 model of each architecture, so that only mistakes, not rounding, make a difference."""
    return tiny(request.param, dtype=torch.float64)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a tiny model of an architecture as a user's folder, once, and return the folder."""
    root = tmp_path_factory.mktemp("models")

    def save(architecture: str) -> Path:
        folder = root / architecture
        if not folder.exists():
            tiny_model(architecture).save_pretrained(folder)
            tiny_tokenizer(chat=architecture != "gpt2").save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def fitted() -> SteeringEstimator:
    """An estimator fitted on a tiny Llama in memory."""
    return SteeringEstimator(tiny("llama", dtype=torch.float64), learner="mean-diff", cv=3).fit(TEXTS, LABELS)
