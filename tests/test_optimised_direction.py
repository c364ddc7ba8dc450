"""An optimised direction does what it was optimised for, and leaves the model as it was."""

import re

import numpy as np
import pytest
import torch

from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import ContrastSetError, InvalidInputError, PromptError
from steerkit.language_model import LanguageModel
from steerkit.optimised_direction import OptimisedDirection
from tests.models import TEXTS, tiny

PAIRS = [(text, completion) for text in TEXTS[:6] for completion in ("rock rock", "star star")]
SIDES = [0, 1] * 6


def likelihood(model: LanguageModel, prompt: str, word: str, step: torch.Tensor, layer: int) -> float:
    ids, mask = model.pad(model.encode([prompt]))
    handle = model.blocks[layer].register_forward_hook(
        lambda _module, _args, output: (
            output + step if isinstance(output, torch.Tensor) else (output[0] + step, *output[1:])
        )
    )
    with torch.inference_mode():
        logits = model.model(input_ids=ids, attention_mask=mask).logits[0, -1]
    handle.remove()
    (token,) = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    return float(logits.log_softmax(-1)[token])


@pytest.mark.parametrize("architecture", ["gemma3", "llama", "gpt2"])
def test_it_raises_what_it_should_and_lowers_what_it_should(architecture: str) -> None:
    model = tiny(architecture)
    before = [parameter.clone() for parameter in model.model.parameters()]
    learner = OptimisedDirection(max_epochs=40, learning_rate=0.05)
    estimator = SteeringEstimator(model, learner=learner, layers=[1], layer=1, pooling="mean").fit(PAIRS, SIDES)
    vector = estimator.vector()
    unseen = TEXTS[8:]
    for word, sign in (("star", 1), ("rock", -1)):
        by_alpha = [
            np.mean(
                [
                    likelihood(model, text, word, torch.tensor(vector.direction * vector.norm * alpha), 1)
                    for text in unseen
                ]
            )
            for alpha in (-0.5 * sign, 0.0, 0.5 * sign)
        ]
        assert by_alpha[0] < by_alpha[2]
    assert np.isnan(estimator.accuracies_).all()
    for parameter, old in zip(model.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.requires_grad
        assert parameter.grad is None


def test_it_repeats_and_a_name_is_enough() -> None:
    model = tiny("llama")
    fit = [
        SteeringEstimator(model, learner="optimised", layers=[1, 2], layer=1, pooling="mean")
        .fit(PAIRS, SIDES)
        .directions_
        for _ in range(2)
    ]
    np.testing.assert_array_equal(fit[0], fit[1])
    np.testing.assert_allclose(np.linalg.norm(fit[0], axis=1), 1, rtol=1e-5)


def test_it_needs_completions_of_two_classes() -> None:
    expected = "an optimised direction needs what is to become likelier; pass (prompt, completion) pairs as texts."
    with pytest.raises(PromptError, match=f"^{re.escape(expected)}$"):
        SteeringEstimator(tiny("llama"), learner="optimised").fit(TEXTS, [0, 1] * 6)
    with pytest.raises(ContrastSetError, match=r"^y has 3 classes, an optimised direction takes two; pass two\.$"):
        SteeringEstimator(tiny("llama"), learner="optimised").fit(PAIRS, [0, 1, 2] * 4)


@pytest.mark.parametrize("setting", ["beta", "learning_rate", "weight_decay"])
def test_senseless_settings_are_refused(setting: str) -> None:
    least = "from 0 up" if setting == "weight_decay" else "above 0"
    with pytest.raises(InvalidInputError, match=rf"^{setting}=nan is no number {least}; pass such a number\.$"):
        learner = OptimisedDirection().set_params(**{setting: float("nan")})
        SteeringEstimator(tiny("llama"), learner=learner).fit([("who", "it"), ("who", "a")], [0, 1])
