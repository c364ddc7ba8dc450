"""Blocks, extraction, steering and the laws of the design over every family of models that people steer."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from steerkit.activations import pooled_activations
from steerkit.estimator import SteeringEstimator
from steerkit.hooks import find_blocks
from steerkit.language_model import LanguageModel
from tests.models import LABELS, NEOX, SIZES, TEXTS, WORDS, tiny_tokenizer

VOCABULARY = len(WORDS) + 6
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gemma3_multimodal() -> Any:
    text = transformers.Gemma3TextConfig(
        **SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention"] * 2
    )
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=5, **SPECIAL
    )
    return transformers.Gemma3ForConditionalGeneration(config)


CONFIGS: dict[str, Any] = {
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, sliding_window=4),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, sliding_window=4),
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**NEOX, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES),
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
    ),
    "phi3": lambda: transformers.Phi3Config(**NEOX, num_key_value_heads=2),
    "olmo2": lambda: transformers.Olmo2Config(**NEOX, num_key_value_heads=2),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=128, **SPECIAL
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**NEOX),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=64, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32, **SPECIAL,
    ),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, **SPECIAL
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=4, n_head=4, **SPECIAL),
    "mpt": lambda: transformers.MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_layers=4, n_heads=4, max_seq_len=128, **SPECIAL
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, state_size=4, **SPECIAL
    ),
}  # fmt: skip
FAMILIES = [*CONFIGS, "gemma3_multimodal"]
# transformers itself has no float64 there: a mask overflows in softmax, or grouped matrix products lack the type.
SINGLE = {"gemma2", "bloom", "mpt", "mixtral", "qwen3_moe"}


def build(family: str, dtype: torch.dtype = torch.float64) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "gemma3_multimodal":
            model = gemma3_multimodal()
        else:
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def handle(request: pytest.FixtureRequest) -> LanguageModel:
    dtype = torch.float32 if request.param in SINGLE else torch.float64
    return LanguageModel.wrap(build(request.param, dtype), tiny_tokenizer())


def test_the_blocks_are_those_of_the_decoder(handle: LanguageModel) -> None:
    assert len(find_blocks(handle.model)) == 4
    assert (handle.n_layers, handle.hidden_size) == (4, 32)


def test_the_captured_stream_is_what_transformers_reports(handle: LanguageModel) -> None:
    """Inner layers only: at the last one transformers reports the stream after the final norm."""
    sequence = handle.encode(TEXTS[:1])
    ids, mask = handle.pad(sequence)
    with torch.inference_mode():
        reported = handle.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    mine = pooled_activations(handle, sequence, layers=[0, 1, 2])
    first = 0 if handle.model.config.model_type == "mamba" else 1  # the others report the embedding, too
    for layer in range(3):
        np.testing.assert_allclose(mine[0, layer], reported[layer + first][0, -1].float().numpy(), rtol=1e-4, atol=1e-5)


def test_padding_makes_no_difference(handle: LanguageModel) -> None:
    sequences = handle.encode(TEXTS)
    together = pooled_activations(handle, sequences, layers=[0, 3])
    alone = pooled_activations(handle, sequences, layers=[0, 3], batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_alpha_zero_is_identity_and_steering_leaves_nothing_behind(handle: LanguageModel) -> None:
    steered = SteeringEstimator(handle, learner="mean-diff", cv=2, layer=1).fit(TEXTS, LABELS).export()
    before = handle.generate(handle.encode(TEXTS[:3]), max_new_tokens=8)
    assert steered.generate(TEXTS[:3], alpha=0.0, max_new_tokens=8) == before
    assert steered.generate(TEXTS[:3], alpha=3.0, max_new_tokens=8) != before
    assert handle.generate(handle.encode(TEXTS[:3]), max_new_tokens=8) == before


def test_alphas_in_one_batch_are_those_of_single_calls(handle: LanguageModel) -> None:
    steered = SteeringEstimator(handle, learner="mean-diff", cv=2, layer=2).fit(TEXTS, LABELS).export()
    alphas = [-1.0, 0.0, 1.0]
    together = steered.generate(TEXTS[:3], alpha=alphas, max_new_tokens=8)
    alone = [steered.generate(text, alpha=a, max_new_tokens=8) for text, a in zip(TEXTS[:3], alphas, strict=True)]
    assert together == alone


def test_the_vocabulary_that_a_direction_promotes_is_read(handle: LanguageModel) -> None:
    estimator = SteeringEstimator(handle, learner="mean-diff", cv=2, layer=3).fit(TEXTS, LABELS)
    promoted, suppressed = estimator.nearest_tokens(3), estimator.nearest_tokens(-3)
    assert promoted[0][1] >= promoted[-1][1] > suppressed[-1][1] >= suppressed[0][1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_and_statistics_are_float32(family: str, dtype: torch.dtype) -> None:
    handle = LanguageModel.wrap(build(family, dtype), tiny_tokenizer())
    estimator = SteeringEstimator(handle, learner="mean-diff", cv=2, layer=1).fit(TEXTS, LABELS)
    assert estimator.directions_.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(estimator.directions_, axis=1), 1, rtol=1e-5)
    ids, mask = handle.pad(handle.encode(TEXTS[:1]))
    with torch.inference_mode():
        before = handle.model(input_ids=ids, attention_mask=mask).logits
        with estimator.export().steering(0.5) as model:
            steered = model(input_ids=ids, attention_mask=mask).logits
    assert steered.dtype == before.dtype
    assert {parameter.dtype for parameter in handle.model.parameters()} == {dtype}
