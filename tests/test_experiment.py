"""The one flow of every recipe, broken off and taken up again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerkit.experiment import run
from steerkit.language_model import LanguageModel
from steerkit.recipe import Recipe
from tests.models import LABELS, TEXTS


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_run_that_was_broken_off_goes_on(saved: Callable[[str], Path], tmp_path: Path) -> None:
    data = pd.DataFrame({"text": TEXTS, "label": ["ab"[label] for label in LABELS]})
    data.to_csv(tmp_path / "train.csv", index=False)
    settings: dict[str, Any] = {
        "name": "small",
        "model": {"name": str(saved("llama"))},
        "data": {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "train.csv"), "labels": ["a", "b"]},
        "sweep": {"prompts": TEXTS[:3], "layers": [1, 2], "alphas": [-0.5, 0.5], "max_new_tokens": 6},
        "references": {TEXTS[0]: {"a": "one thing", "b": "another"}, "not swept": {"a": "one", "b": "two"}},
        "show": TEXTS[0],
    }
    passes: list[int] = []
    LanguageModel(str(saved("llama"))).model.register_forward_hook(lambda *_: passes.append(1))

    def interrupt(message: str) -> None:
        if message == "Logging to MLflow":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Recipe.model_validate(settings), output=tmp_path / "out", say=interrupt)
    assert (tmp_path / ".out.cells").is_dir()
    broken_off = len(passes)
    resumed = run(Recipe.model_validate({**settings, "track": False}), output=tmp_path / "out", overwrite=True)
    assert 0 < len(passes) - broken_off < broken_off
    assert not (tmp_path / ".out.cells").exists()
    assert len(resumed.sweep.cells) == 3 + 2 * 2 * 2 * 3
    assert set(pd.read_csv(tmp_path / "out" / "references.csv")["prompt"]) == {TEXTS[0]}
    assert (tmp_path / "out" / "plots" / "references.png").stat().st_size
