"""Extraction: pooled over real tokens only, the same however texts are batched."""

import re

import numpy as np
import pytest
import torch

from steerkit.activations import ActivationExtractor
from steerkit.exceptions import InvalidInputError, LayerError, NonFiniteError
from steerkit.language_model import LanguageModel
from tests.models import TEXTS, tiny


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_right_padding_gives_same_activations(model: LanguageModel, pooling: str) -> None:
    together = ActivationExtractor(model, pooling=pooling).fit(TEXTS).transform(TEXTS)
    alone = np.concatenate([ActivationExtractor(model, pooling=pooling).transform([text]) for text in TEXTS])
    assert together.shape == (12, 4, 32)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_left_padding_gives_same_activations_as_none(model: LanguageModel) -> None:
    """What generation sees of a left-padded row is what extraction reads."""
    sequences = model.encode(TEXTS)
    ids, mask = model.pad(sequences, side="left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        states = model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True
        ).hidden_states
    expected = ActivationExtractor(model).transform(TEXTS)
    for layer in range(3):
        np.testing.assert_allclose(states[layer + 1][:, -1].numpy(), expected[:, layer], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_batch_size_makes_no_difference(batch_size: int | str) -> None:
    model = tiny("gpt2", dtype=torch.float64)
    expected = ActivationExtractor(model, batch_size=12).transform(TEXTS)
    np.testing.assert_allclose(ActivationExtractor(model, batch_size=batch_size).transform(TEXTS), expected, rtol=1e-6)


def test_layers_select_columns() -> None:
    model = tiny("llama")
    everything = ActivationExtractor(model).transform(TEXTS)
    np.testing.assert_array_equal(ActivationExtractor(model, layers=[3, 1]).transform(TEXTS), everything[:, [1, 3]])
    np.testing.assert_array_equal(ActivationExtractor(model, layers=2).transform(TEXTS), everything[:, [2]])


def test_non_finite_activations_name_layer_and_prompt() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.get_input_embeddings().weight[model.tokenizer.convert_tokens_to_ids("music")] = float("inf")
    expected = (
        "the activation of prompt 1 at layer 0 holds NaN or Inf; load the model in a wider dtype (dtype='float32') or "
        "leave that prompt out."
    )
    with pytest.raises(NonFiniteError, match=re.escape(expected)):
        ActivationExtractor(model).transform(TEXTS[:3])


def test_bad_parameters_are_refused() -> None:
    model = tiny("llama")
    expected = "pooling='max' is not known; pass 'last', 'mean', 'last-4' or a token's index."
    with pytest.raises(InvalidInputError, match=f"^{re.escape(expected)}$"):
        ActivationExtractor(model, pooling="max").transform(TEXTS)
    with pytest.raises(
        InvalidInputError, match=r"^pooling=99 is outside a text of \d+ tokens; pass a smaller number\.$"
    ):
        ActivationExtractor(model, pooling=99).transform(TEXTS)
    with pytest.raises(InvalidInputError, match=re.escape("batch_size=0 is no positive number; pass 'auto' or an int")):
        ActivationExtractor(model, batch_size=0).transform(TEXTS)
    with pytest.raises(InvalidInputError, match=re.escape("layers='some' is not understood; pass 'all' or a list")):
        ActivationExtractor(model, layers="some").transform(TEXTS)
    with pytest.raises(LayerError, match=re.escape("layer=4 is outside 0..3 for the model;")):
        ActivationExtractor(model, layers=[0, 4]).transform(TEXTS)
