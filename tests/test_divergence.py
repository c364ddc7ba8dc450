"""What steering does to the next-token distributions of given text, against its definition."""

import re

import numpy as np
import pytest
import torch

from steerkit.calibration import calibrate
from steerkit.divergence import sweep_divergence
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError, PromptError
from steerkit.language_model import LanguageModel
from steerkit.reading import EffectReader
from steerkit.sweeps import sweep
from tests.models import LABELS, TEXTS, tiny


def log_probabilities(model: LanguageModel, sequence: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.model(input_ids=torch.tensor([sequence])).logits[0]
    return logits.float().log_softmax(dim=-1)


@pytest.mark.parametrize("pairs", [False, True])
def test_it_is_the_divergence_of_one_steered_pass_after_another(model: LanguageModel, pairs: bool) -> None:
    estimator = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    texts = [(TEXTS[0], "the star is light"), (TEXTS[1], "music")] if pairs else TEXTS[:2]
    table = sweep_divergence(estimator, texts, alphas=[-0.5, 0.5], layers=[1, 2], controls=["random"])
    assert len(table) == 2 * 2 * 2 * 2
    assert (table["kl"] >= 0).all()
    for row in table[table["direction"] == "fitted"].itertuples():
        text = texts[row.text]
        if isinstance(text, tuple):
            (sequence,), (head,) = model.encode([text[0]], [text[1]]), model.encode([text[0]])
            start = len(head)
        else:
            sequence, start = model.encode_text(text), 1
        bare = log_probabilities(model, sequence)[start - 1 : -1]
        with estimator.export(row.alpha, layer=row.layer).steering():
            moved = log_probabilities(model, sequence)[start - 1 : -1]
        assert row.kl == pytest.approx(float((bare.exp() * (bare - moved)).sum(-1).mean()), rel=1e-3, abs=1e-6)
        said = torch.tensor(sequence[start:])[:, None]
        assert row.nll_rise == pytest.approx(float((bare - moved).gather(1, said).mean()), rel=1e-3, abs=1e-5)


def test_next_to_no_steering_costs_next_to_nothing(fitted: SteeringEstimator) -> None:
    table = sweep_divergence(fitted, TEXTS[:2], alphas=[1e-4, 0.5, 1.0], controls=())
    means = table.groupby("alpha")["kl"].mean()
    assert means[1e-4] < 1e-6 < means[0.5] < means[1.0]


def test_a_text_needs_a_token_to_predict() -> None:
    model = tiny("gpt2")
    model.tokenizer.backend_tokenizer.post_processor = None  # nothing is put before the text, as in GPT-2
    estimator = SteeringEstimator(model, learner="mean-diff", cv=2).fit(TEXTS, LABELS)
    with pytest.raises(PromptError, match=r"^text 1 has no token to predict, one was expected; pass a longer text\.$"):
        sweep_divergence(estimator, [TEXTS[0], "star"], alphas=[1.0])


def test_what_is_no_text_is_refused(fitted: SteeringEstimator) -> None:
    with pytest.raises(PromptError, match="texts are plain texts or"):
        sweep_divergence(fitted, [], alphas=[1.0])
    with pytest.raises(PromptError, match=r"^text 0 has 201 tokens, the model takes at most 128; shorten it\.$"):
        sweep_divergence(fitted, ["a " * 200], alphas=[1.0])


def test_layers_are_compared_at_equal_divergence(fitted: SteeringEstimator) -> None:
    reader = EffectReader(LanguageModel.of(fitted.model), max_new_tokens=6).fit(TEXTS, LABELS)
    reader.accuracy_ = 1.0
    swept = sweep(fitted, TEXTS[:4], reader=reader, alphas=[-1.0, -0.5, 0.5, 1.0], max_new_tokens=6)
    swept.cells["effect"] = swept.cells["alpha"] * (swept.cells["direction"] == "fitted")  # planted
    swept.cells["preserved"] = 1.0
    table = sweep_divergence(fitted, TEXTS[:4], alphas=swept.alphas)
    means = table[table["direction"] == "fitted"].groupby(["layer", "alpha"])["kl"].mean()
    budget = float(np.median(means))
    found = calibrate(swept, preservation=None, perplexity=None, kl=budget, divergence=table).layers
    for layer, row in found.iterrows():
        for end, side in (("lower", -1), ("upper", 1)):
            inside = [a for a in (0.5, 1.0) if means[layer, side * a] <= budget]
            assert abs(row[end]) == (max(inside) if 0.5 in inside else 0.0)


def test_bounds_that_cannot_be_are_refused(fitted: SteeringEstimator) -> None:
    reader = EffectReader(LanguageModel.of(fitted.model), max_new_tokens=6).fit(TEXTS, LABELS)
    swept = sweep(fitted, TEXTS[:2], reader=reader, layers=[1], alphas=[0.5], max_new_tokens=6)
    table = sweep_divergence(fitted, TEXTS[:2], alphas=[0.25], layers=[1])
    for options, expected in (
        ({"kl": 0.1}, "kl=0.1 needs to be above 0, and divergence=sweep_divergence(...) beside it; pass both."),
        (
            {"kl": 0.1, "divergence": table},
            "divergence has layers [1] and alphas [0.25], those of the",
        ),
        (
            {"preservation": None, "perplexity": None},
            "no bound is left, so any alpha would be usable; pass",
        ),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(expected)):
            calibrate(swept, **options)
