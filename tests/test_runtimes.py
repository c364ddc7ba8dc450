"""Steering works, or is refused, however the model is run: compiled, with a static cache, checkpointed, offloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerkit.estimator import SteeringEstimator
from steerkit.language_model import LanguageModel
from steerkit.steered import SteeredModel
from tests.models import LABELS, TEXTS, tiny_model, tiny_tokenizer

Saved = Callable[[str], Path]


@pytest.fixture
def bare() -> Any:
    return tiny_model("llama")


def steer(model: Any) -> SteeredModel:
    handle = LanguageModel.wrap(model, tiny_tokenizer())
    return SteeringEstimator(handle, learner="mean-diff", cv=2, layer=1).fit(TEXTS, LABELS).export(2.0)


def test_a_static_cache_gives_the_same_text(bare: Any) -> None:
    steered = steer(bare)
    expected = steered.generate(TEXTS[:2], alpha=[2.0, 0.0], max_new_tokens=6)
    assert steered.generate(TEXTS[:2], alpha=[2.0, 0.0], max_new_tokens=6, cache_implementation="static") == expected


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_steered_though_it_was_compiled_before(bare: Any, in_place: bool) -> None:
    """Torch leaves hooks out of what it compiled without them, and says nothing."""
    expected = steer(bare)
    ids, mask = expected.model.pad(expected.model.encode(TEXTS[:1]))

    def logits(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=mask).logits

    with expected.steering() as model:
        wanted = logits(model)
    if in_place:
        bare.compile(backend="eager")
    compiled = bare if in_place else torch.compile(bare, backend="eager")
    before = logits(compiled)
    steered = steer(compiled)
    with steered.steering() as model:
        torch.testing.assert_close(logits(model), wanted)
    torch.testing.assert_close(logits(compiled), before)
    assert steered.generate(TEXTS[0], max_new_tokens=6) == expected.generate(TEXTS[0], max_new_tokens=6)


def test_checkpointed_activations_make_no_difference(bare: Any) -> None:
    expected = steer(bare).generate(TEXTS[:2], max_new_tokens=6)
    enable = getattr(bare, "activation_checkpointing_enable", None) or bare.gradient_checkpointing_enable
    enable()
    assert steer(bare).generate(TEXTS[:2], max_new_tokens=6) == expected


def test_offloaded_layers_are_read_and_steered(saved: Saved, tmp_path: Path) -> None:
    folder = saved("llama")
    places = dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.layers.3", "model.norm", "lm_head"], "cpu")
    places |= {"model.rotary_emb": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    offloaded = LanguageModel(folder, device_map=places, offload_folder=str(tmp_path))
    whole, parts = (
        SteeringEstimator(model, learner="mean-diff", cv=2, layer=1).fit(TEXTS, LABELS)
        for model in (LanguageModel(folder), offloaded)
    )
    np.testing.assert_array_equal(whole.directions_, parts.directions_)
    expected = whole.export(2.0).generate(TEXTS[:2], max_new_tokens=6)
    assert parts.export(2.0).generate(TEXTS[:2], max_new_tokens=6) == expected


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's, of transformers
def test_adapters_are_read_and_steered_and_switching_them_off_forgets(bare: Any) -> None:
    from peft import LoraConfig, get_peft_model

    plain = SteeringEstimator(LanguageModel.wrap(bare, tiny_tokenizer()), cv=2, layer=1).fit(TEXTS, LABELS)
    adapted = get_peft_model(bare, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    handle = LanguageModel.wrap(adapted, tiny_tokenizer())
    with_it = SteeringEstimator(handle, cv=2, layer=1).fit(TEXTS, LABELS)
    with adapted.disable_adapter():
        without = SteeringEstimator(handle, cv=2, layer=1).fit(TEXTS, LABELS)
    np.testing.assert_allclose(without.directions_, plain.directions_, atol=1e-5)
    assert np.abs(with_it.directions_ - plain.directions_).max() > 0.01
    steered = with_it.export(2.0)
    assert steered.generate(TEXTS[0], max_new_tokens=6) != steered.generate(TEXTS[0], alpha=0.0, max_new_tokens=6)
