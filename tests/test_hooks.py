"""Where the residual stream is found, read and edited."""

import re
from typing import Any

import pytest
import torch

from steerkit.exceptions import BlocksNotFoundError
from steerkit.hooks import capture, edit, find_blocks
from steerkit.language_model import LanguageModel
from tests.models import TEXTS, tiny


def forward(model: LanguageModel, **options: Any) -> Any:
    ids, mask = model.pad(model.encode(TEXTS[:1]))
    with torch.inference_mode():
        return model.model(input_ids=ids, attention_mask=mask, **options)


def n_hooks(model: LanguageModel) -> int:
    return sum(len(block._forward_hooks) for block in model.blocks)


def test_captured_layers_are_transformers_hidden_states(model: LanguageModel) -> None:
    with capture(model.blocks, range(4), lambda hidden: hidden) as kept:
        states = forward(model, output_hidden_states=True).hidden_states
    for layer in range(3):  # transformers' last entry is after the final norm, so it is not layer 3
        torch.testing.assert_close(kept[layer], states[layer + 1], rtol=0, atol=0)
    assert not torch.equal(kept[3], states[4])


def test_transformers_own_hidden_states_show_the_edit(model: LanguageModel) -> None:
    bare = forward(model, output_hidden_states=True).hidden_states
    with edit(model.blocks, [(1, lambda hidden: hidden + 1)]):
        edited = forward(model, output_hidden_states=True).hidden_states
    torch.testing.assert_close(edited[2], bare[2] + 1)
    assert torch.equal(edited[1], bare[1])


def test_edits_of_one_layer_apply_in_the_order_given(model: LanguageModel) -> None:
    with capture(model.blocks, [2], lambda hidden: hidden) as bare:
        forward(model)
    double, increment = (2, lambda hidden: hidden * 2), (2, lambda hidden: hidden + 1)
    for edits, expected in (([double, increment], bare[2] * 2 + 1), ([increment, double], (bare[2] + 1) * 2)):
        with edit(model.blocks, edits), capture(model.blocks, [2], lambda hidden: hidden) as kept:
            forward(model)
        torch.testing.assert_close(kept[2], expected)


def test_an_exception_leaves_no_hook_and_no_state(model: LanguageModel) -> None:
    before, bare = n_hooks(model), forward(model).logits
    with pytest.raises(RuntimeError, match="inside"), edit(model.blocks, [(0, lambda hidden: hidden + 1)]):
        assert n_hooks(model) == before + 1
        raise RuntimeError("inside")
    with pytest.raises(RuntimeError, match="inside"), capture(model.blocks, [0], lambda hidden: hidden):
        raise RuntimeError("inside")
    assert n_hooks(model) == before
    assert torch.equal(forward(model).logits, bare)


def test_a_model_without_blocks_is_refused_with_the_override() -> None:
    expected = (
        "Linear has 0 lists of 0 decoder blocks where one was expected; "
        "pass LanguageModel(..., blocks='dotted.path.of.the.list')."
    )
    with pytest.raises(BlocksNotFoundError, match=re.escape(expected)):
        find_blocks(torch.nn.Linear(2, 2))


def test_blocks_can_be_named() -> None:
    model = tiny("llama").model
    assert find_blocks(model, "model.layers") is find_blocks(model)
    expected = (
        "blocks='model.norm' is no nn.ModuleList of LlamaForCausalLM; pass the dotted path of its list of decoder"
    )
    with pytest.raises(BlocksNotFoundError, match=re.escape(expected)):
        find_blocks(model, "model.norm")
