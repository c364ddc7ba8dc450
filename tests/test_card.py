"""A card says what was measured, survives its files, and cannot be broken by the texts in it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from steerkit.calibration import Calibration
from steerkit.card import Card, Section, facts
from steerkit.divergence import sweep_divergence
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import CorruptFileError
from steerkit.language_model import LanguageModel
from steerkit.reading import EffectReader
from steerkit.reliability import controls_section, side_effects_section
from steerkit.steered import SteeredModel
from steerkit.sweeps import sweep
from tests.models import LABELS, TEXTS, planted_sweep

CARD = Card(
    "Steered: a | b",
    [
        Section("What", facts(alpha=(-0.4, 0.4), layer=np.int64(3), odd_text="x | <b>\ny", none=float("nan")), "Note."),
        Section("Nothing", []),
    ],
)


def test_a_card_is_the_same_after_its_files(tmp_path: Path) -> None:
    CARD.save(tmp_path)
    loaded = Card.load(tmp_path)
    assert loaded.to_markdown() == CARD.to_markdown() == (tmp_path / "README.md").read_text()
    assert loaded.to_html() == (tmp_path / "card.html").read_text()


def test_texts_cannot_break_a_card() -> None:
    assert "| odd text | x \\| &lt;b> y |" in CARD.to_markdown()
    assert "<td>x | &lt;b&gt;\ny</td>" in CARD.to_html()
    assert "| none | – |" in CARD.to_markdown()
    assert "| alpha | -0.4 … 0.4 |" in CARD.to_markdown()


def test_no_card_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"title": "x"}))
    with pytest.raises(
        CorruptFileError, match=re.escape(f"{tmp_path} holds no readable card ('sections'); export and")
    ):
        Card.load(tmp_path)


def test_every_exported_model_is_saved_with_its_card(saved: Callable[[str], Path], tmp_path: Path) -> None:
    estimator = SteeringEstimator(str(saved("llama")), learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    estimator.export(0.3, layer=2).save_pretrained(tmp_path / "steered")
    card = SteeredModel.from_pretrained(tmp_path / "steered").card
    assert card is not None
    text = card.to_markdown()
    assert f"| 2 | {estimator.accuracies_[2]:.3g} |" in text
    assert "| texts | 6 0, 6 1 |" in text
    assert "No sweep was calibrated" in text


def test_a_damaged_card_costs_no_model(saved: Callable[[str], Path], tmp_path: Path) -> None:
    estimator = SteeringEstimator(str(saved("llama")), learner="mean-diff").fit(TEXTS[:2], [0, 1])
    estimator.export(0.3, layer=2, operation="ablate").save_pretrained(tmp_path / "steered")
    content = json.loads((tmp_path / "steered" / "card.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert {"what": "operation", "value": "ablate"} in content["sections"][0]["rows"]
    assert {"what": "alpha", "value": 0.3} in content["sections"][0]["rows"]
    (tmp_path / "steered" / "card.json").write_text("{")
    with pytest.warns(UserWarning, match="the model is loaded without its card: .* holds no readable card"):
        assert SteeredModel.from_pretrained(tmp_path / "steered").card is None


def test_a_calibration_stands_on_the_card(fitted: SteeringEstimator) -> None:
    table = planted_sweep().slopes(2)
    layers = (
        table.to_frame().iloc[:0].assign(control_span=0.0, collapse_lower=0.0, collapse_upper=0.0, anti_steerable=0.0)
    )
    layers.loc[2] = {"control_span": 0.01, "collapse_lower": -0.6, "collapse_upper": np.nan, "anti_steerable": 0.25}
    found = Calibration(2, (-0.4, 0.2), ((-0.4, -0.2), (0.0, 0.2)), 0.8, (0.7, 0.9), 12, layers)
    card = fitted.export(calibration=found).card
    assert card is not None
    text = card.to_markdown()
    other = fitted.export(2.0, layer=1, calibration=found).card
    assert other is not None
    assert "The model is saved at another layer or alpha than these." in other.to_markdown()
    assert "The model is saved at another" not in text
    for line in (
        "| alphas | -0.4 … 0.2 |",
        "| interval of the upper end | 0 … 0.2 |",
        "| share of prompts that move the wrong way | 0.25 |",
        "| collapse | -0.6 … – |",
    ):
        assert line in text


def test_controls_and_side_effects_are_rows(fitted: SteeringEstimator) -> None:
    reader = EffectReader(LanguageModel.of(fitted.model), max_new_tokens=6).fit(TEXTS, LABELS)
    swept = sweep(
        fitted, TEXTS[:3], reader=reader, layers=[2], alphas=[-0.5, 0.5], controls=["random", "shuffled"],
        prompting={"glad": "be glad : {prompt}"}, max_new_tokens=6,
    )  # fmt: skip
    found = Calibration(2, (-0.5, 0.5), ((-0.5, -0.5), (0.5, 0.5)), 0.8, (0.7, 0.9), 3, swept.means())
    rows = controls_section(swept, found).rows
    assert [(row["direction"], row["alpha"]) for row in rows] == [
        ("unsteered", 0.0),
        *[(kind, alpha) for kind in ("fitted", "random", "shuffled") for alpha in (-0.5, 0.5)][:2],
        ("prompted glad", 0.0),
        *[(kind, alpha) for kind in ("random", "shuffled") for alpha in (-0.5, 0.5)],
    ]
    effect = swept.pivot("effect").loc[2]
    assert [row["effect"] for row in rows[1:3]] == pytest.approx([effect[-0.5], effect[0.5]])
    moved = side_effects_section(sweep_divergence(fitted, TEXTS[:2], alphas=[0.5], layers=[2]), "these texts")
    assert [row["direction"] for row in moved.rows] == ["fitted", "random"]
    assert all(row["KL"] > 0 for row in moved.rows)
