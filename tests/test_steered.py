"""Laws of a steered model."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerkit.activations import ActivationExtractor
from steerkit.exceptions import (
    CorruptFileError,
    FingerprintError,
    InvalidInputError,
    NonFiniteError,
    OutputExistsError,
    PromptError,
    SteeringActiveError,
)
from steerkit.hooks import capture
from steerkit.language_model import LanguageModel
from steerkit.likelihood import log_likelihoods
from steerkit.reading import generate
from steerkit.steered import SteeredModel
from steerkit.vectors import SteeringVector
from tests.models import TEXTS, tiny


def vector_for(model: LanguageModel, *, layer: int = 2, seed: int = 0) -> SteeringVector:
    direction = np.random.default_rng(seed).normal(size=model.hidden_size).astype(np.float32)
    direction /= np.linalg.norm(direction)
    return SteeringVector(direction, layer, 10.0, 0.5, ("novice", "expert"), model.fingerprint)


def logits(model: LanguageModel) -> torch.Tensor:
    ids, mask = model.pad(model.encode(TEXTS))
    with torch.inference_mode():
        result: torch.Tensor = model.model(input_ids=ids, attention_mask=mask).logits
    return result


def n_hooks(model: LanguageModel) -> int:
    return sum(len(block._forward_hooks) for block in model.blocks)


def test_alpha_zero_is_identity(model: LanguageModel) -> None:
    steered = SteeredModel(model, vector_for(model))
    bare = logits(model)
    with steered.steering(0.0):
        assert torch.equal(logits(model), bare)
    assert steered.generate(TEXTS, alpha=0.0, max_new_tokens=8) == generate(
        model, model.encode(TEXTS), max_new_tokens=8
    )


def test_a_row_of_alpha_zero_among_others_is_identity(model: LanguageModel) -> None:
    alone = generate(model, model.encode(TEXTS[:1]), max_new_tokens=8)
    mixed = SteeredModel(model, vector_for(model)).generate(TEXTS[:3], alpha=[0.0, 2.0, -2.0], max_new_tokens=8)
    assert mixed[:1] == alone


def test_after_the_context_nothing_is_left(model: LanguageModel) -> None:
    steered, bare, before = SteeredModel(model, vector_for(model)), logits(model), n_hooks(model)
    with steered.steering(1.0):
        assert not torch.equal(logits(model), bare)
    with pytest.raises(RuntimeError, match="inside"), steered.steering(1.0):
        raise RuntimeError("inside")
    steered.generate(TEXTS, alpha=1.0, max_new_tokens=2)
    assert torch.equal(logits(model), bare)
    assert n_hooks(model) == before


def test_alpha_times_norm_times_direction_is_what_is_added(model: LanguageModel) -> None:
    steered = SteeredModel(model, vector_for(model))
    with capture(model.blocks, [2], lambda hidden: hidden) as bare:
        logits(model)
    with steered.steering(0.3), capture(model.blocks, [2], lambda hidden: hidden) as moved:
        logits(model)
    expected = torch.from_numpy(steered.vectors[0].direction.copy()).double() * 3.0
    torch.testing.assert_close(moved[2] - bare[2], expected.expand_as(bare[2]), rtol=1e-6, atol=1e-6)


def test_per_row_alphas_equal_single_calls(model: LanguageModel) -> None:
    steered = SteeredModel(model, vector_for(model))
    alphas = np.linspace(-1, 1, len(TEXTS))
    together = steered.generate(TEXTS, alpha=alphas, max_new_tokens=8)
    alone = [steered.generate(text, alpha=alpha, max_new_tokens=8) for text, alpha in zip(TEXTS, alphas, strict=True)]
    assert together == alone
    assert len(set(together)) > 3


def test_steered_padding_makes_no_difference(model: LanguageModel) -> None:
    """Pad positions are edited too, but no real token may see it."""
    steered = SteeredModel(model, vector_for(model))
    sequences = model.encode(TEXTS)
    with steered.steering(0.7):
        together = logits(model)
        for row, sequence in enumerate(sequences):
            with torch.inference_mode():
                alone = model.model(input_ids=torch.tensor([sequence])).logits[0]
            torch.testing.assert_close(together[row, : len(sequence)], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_repeat_the_alpha_of_their_row(model: LanguageModel, options: dict[str, int]) -> None:
    steered = SteeredModel(model, vector_for(model))
    together = steered.generate(TEXTS[:3], alpha=[-1.0, 0.0, 1.0], max_new_tokens=5, **options)
    alone: list[str] = []
    for text, alpha in zip(TEXTS, [-1.0, 0.0, 1.0], strict=False):
        answer = steered.generate(text, alpha=alpha, max_new_tokens=5, **options)
        alone += [answer] if isinstance(answer, str) else answer
    assert together == alone


def test_several_vectors_apply_each_at_its_layer(model: LanguageModel) -> None:
    steered = SteeredModel(model, [vector_for(model, layer=1), vector_for(model, layer=3, seed=1)])
    with capture(model.blocks, [1, 3], lambda hidden: hidden) as bare:
        logits(model)
    with steered.steering(0.5), capture(model.blocks, [1, 3], lambda hidden: hidden) as moved:
        logits(model)
    assert not torch.equal(moved[1], bare[1])
    assert not torch.equal(moved[3], bare[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steering_keeps_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = tiny("gemma3", dtype=dtype)
    with SteeredModel(model, vector_for(model)).steering(0.5):
        assert logits(model).dtype == dtype


@pytest.mark.parametrize("operation", ["add", "ablate", "clamp"])
def test_a_vector_that_alpha_does_not_name_does_nothing(model: LanguageModel, operation: str) -> None:
    one, other = vector_for(model, layer=1), vector_for(model, layer=3, seed=1)
    other = replace(other, classes=("calm", "angry"))
    both = SteeredModel(model, [one, other], alpha={"expert": 0.5}, operation=operation)
    assert both.alpha == {"expert": 0.5}
    with both.steering():
        together = logits(model)
    with SteeredModel(model, one, alpha=0.5, operation=operation).steering():
        torch.testing.assert_close(together, logits(model), rtol=0, atol=0)


def test_the_repr_names_all_layers(model: LanguageModel) -> None:
    one, other = vector_for(model, layer=1), vector_for(model, layer=3, seed=1)
    assert "layer=[1, 3]," in repr(SteeredModel(model, [one, other]))
    assert "layer=1," in repr(SteeredModel(model, one))


def test_clamp_and_ablate_reach_the_projection_they_name(model: LanguageModel) -> None:
    vector = vector_for(model)
    direction = torch.from_numpy(vector.direction.copy()).double()
    for operation, alpha, expected in (("clamp", 0.4, 0.4 * 10.0 + 0.5), ("ablate", 1.0, 0.0)):
        steered = SteeredModel(model, vector, operation=operation)
        with steered.steering(alpha), capture(model.blocks, [2], lambda hidden: hidden) as kept:
            logits(model)
        projection = kept[2] @ direction
        torch.testing.assert_close(projection, torch.full_like(projection, expected), rtol=0, atol=1e-5)


def test_streamed_text_is_the_generated_text() -> None:
    model = tiny("llama", dtype=torch.float64)
    steered = SteeredModel(model, vector_for(model))
    whole = steered.generate(TEXTS[0], alpha=0.5, max_new_tokens=12)
    assert "".join(steered.stream(TEXTS[0], alpha=0.5, max_new_tokens=12)) == whole


def test_a_stream_closed_early_leaves_the_model_unsteered() -> None:
    model = tiny("llama", dtype=torch.float64)
    steered, bare = SteeredModel(model, vector_for(model)), logits(model)
    stream = steered.stream(TEXTS[0], alpha=2.0, max_new_tokens=100)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    assert n_hooks(model) == 0
    assert torch.equal(logits(model), bare)


def test_an_error_while_streaming_reaches_the_caller() -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(SteeredModel(model, vector_for(model)).stream(TEXTS[0], max_new_tokens=-5))


def test_one_text_in_is_one_text_out_and_a_list_is_a_list() -> None:
    model = tiny("llama")
    steered = SteeredModel(model, vector_for(model))
    assert isinstance(steered.generate(TEXTS[0], max_new_tokens=2), str)
    assert len(steered.generate(TEXTS[:1], max_new_tokens=2)) == 1
    assert len(steered.generate(TEXTS[0], max_new_tokens=2, num_return_sequences=2, do_sample=True)) == 2


def test_a_saved_steered_model_answers_the_same(saved: Callable[[str], Path], tmp_path: Path) -> None:
    model = LanguageModel(str(saved("gemma3")))
    steered = SteeredModel(model, vector_for(model), alpha=0.8, operation="add")
    steered.save_pretrained(tmp_path / "steered")
    loaded = SteeredModel.from_pretrained(tmp_path / "steered")
    assert (loaded.alpha, loaded.operation, loaded.model.name) == (0.8, "add", str(saved("gemma3")))
    np.testing.assert_array_equal(loaded.vectors[0].direction, steered.vectors[0].direction)
    assert loaded.generate(TEXTS, max_new_tokens=8) == steered.generate(TEXTS, max_new_tokens=8)


def test_an_existing_folder_is_not_overwritten(saved: Callable[[str], Path], tmp_path: Path) -> None:
    model = LanguageModel(str(saved("llama")))
    steered = SteeredModel(model, vector_for(model))
    steered.save_pretrained(tmp_path / "steered")
    expected = f"{tmp_path / 'steered'} exists; pass overwrite=True (--overwrite) to replace it, or another path."
    with pytest.raises(OutputExistsError, match=re.escape(expected)):
        steered.save_pretrained(tmp_path / "steered")
    steered.save_pretrained(tmp_path / "steered", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["steered"]


def test_a_model_in_memory_is_not_saved_by_a_name_it_has_not() -> None:
    model = tiny("llama")
    with pytest.raises(
        InvalidInputError, match="the model exists only in memory; save it with its own save_pretrained"
    ):
        SteeredModel(model, vector_for(model)).save_pretrained("nowhere")


def test_a_vector_for_another_model_is_refused() -> None:
    llama, gpt2 = tiny("llama"), tiny("gpt2")
    expected = (
        "architecture of the model is GPT2LMHeadModel, but the direction was made for LlamaForCausalLM; load the model "
        "that it was made for, or fit a new direction."
    )
    with pytest.raises(FingerprintError, match=f"^{re.escape(expected)}$"):
        SteeredModel(gpt2, vector_for(llama))
    with pytest.raises(FingerprintError, match="n layers of the model is 3, but the direction was made for 4;"):
        SteeredModel(tiny("llama", num_hidden_layers=3), vector_for(llama))


@pytest.mark.parametrize(
    ("alpha", "error", "expected"),
    [
        (float("nan"), NonFiniteError, "alpha=NaN is not finite; pass a fraction such as 0.07."),
        ([0.1, float("inf")], NonFiniteError, "alpha=[0.1, Infinity] is not finite; pass a fraction such as 0.07."),
        ([0.1], PromptError, "alpha has shape (1,) for 2 prompts; pass one number, or one for each prompt."),
        (1e300, NonFiniteError, "alpha=1e+300 is not finite; pass a fraction such as 0.07."),
        ("high", InvalidInputError, "alpha='high' is no number; pass a fraction of the norm such as 0.07."),
    ],
)
def test_a_bad_alpha_is_refused(alpha: Any, error: type[Exception], expected: str) -> None:
    model = tiny("llama")
    with pytest.raises(error, match=f"^{re.escape(expected)}$"):
        SteeredModel(model, vector_for(model)).generate(TEXTS[:2], alpha=alpha)


def test_a_single_string_is_no_list_of_prompts() -> None:
    model = tiny("llama")
    with pytest.raises(PromptError, match=re.escape("prompts is a int, a list of str was expected; put it in a list.")):
        SteeredModel(model, vector_for(model)).generate(3)  # type: ignore[call-overload]
    with pytest.raises(
        InvalidInputError, match=re.escape("operation='double' is not known; pass one of 'add', 'ablate'")
    ):
        SteeredModel(model, vector_for(model), operation="double")
    with pytest.raises(InvalidInputError, match=re.escape("vectors is empty; pass at least one SteeringVector.")):
        SteeredModel(model, [])


def test_a_model_that_is_being_steered_answers_nothing_else(model: LanguageModel) -> None:
    """Nested steering, streams inside of it and readings under the hook would all be silently wrong."""
    steered = SteeredModel(model, vector_for(model))
    expected = "the model is being steered by a context around this call; leave it first, or put all vectors"
    calls: list[Callable[[], Any]] = [
        lambda: steered.generate(TEXTS[0], alpha=0),
        lambda: list(steered.stream(TEXTS[0], max_new_tokens=2)),
        lambda: steered.steering(0.1).__enter__(),
        lambda: ActivationExtractor(model).transform(TEXTS[:1]),
        lambda: log_likelihoods(model, TEXTS[:1], ["star"]),
    ]
    with steered.steering(0.5):
        for call in calls:
            with pytest.raises(SteeringActiveError, match=f"^{re.escape(expected)}"):
                call()
    assert n_hooks(model) == 0


def test_threads_wait_for_each_other(model: LanguageModel) -> None:
    steered = SteeredModel(model, vector_for(model))
    alphas = [-2.0, 0.0, 2.0, 0.5] * 3
    expected = [steered.generate(TEXTS[0], alpha=alpha, max_new_tokens=4) for alpha in alphas]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda alpha: steered.generate(TEXTS[0], alpha=alpha, max_new_tokens=4), alphas))
    assert answers == expected


def test_how_the_model_is_loaded_is_saved_too(saved: Callable[[str], Path], tmp_path: Path) -> None:
    model = LanguageModel(saved("gemma3"), chat=False, dtype="float64", blocks="model.layers")
    SteeredModel(model, vector_for(model)).save_pretrained(tmp_path / "steered")
    loaded = SteeredModel.from_pretrained(tmp_path / "steered").model
    assert (loaded.uses_chat, loaded.model.dtype, loaded.blocks_path) == (False, torch.float64, "model.layers")


def test_settings_that_could_run_code_are_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    from steerkit.vectors import save_vectors

    model = {"name": str(saved("llama")), "trust_remote_code": True}
    save_vectors(tmp_path, [vector_for(LanguageModel(saved("llama")))], model=model, alpha=0.1, operation="add")
    with pytest.raises(CorruptFileError, match="unknown settings of the model: \\['trust_remote_code'\\]"):
        SteeredModel.from_pretrained(tmp_path)


def test_a_conversation_is_one_prompt() -> None:
    model = tiny("llama", chat=True, dtype=torch.float64)
    steered = SteeredModel(model, vector_for(model))
    conversation = [{"role": "user", "content": TEXTS[0]}]
    assert steered.generate(conversation, max_new_tokens=4) == steered.generate(TEXTS[0], max_new_tokens=4)
    assert steered.generate([conversation] * 2, max_new_tokens=4) == steered.generate(TEXTS[:1] * 2, max_new_tokens=4)
    with pytest.raises(PromptError, match="prompts is a dict, a list of str was expected; put it in a list"):
        steered.generate(conversation[0])  # type: ignore[call-overload]


def test_temperature_zero_is_greedy() -> None:
    model = tiny("llama", dtype=torch.float64)
    steered = SteeredModel(model, vector_for(model))
    greedy = steered.generate(TEXTS[0], max_new_tokens=8)
    assert steered.generate(TEXTS[0], max_new_tokens=8, temperature=0) == greedy
    with pytest.raises(
        InvalidInputError, match="max_new_tokens=0 is no positive int; pass how many tokens may be added"
    ):
        steered.generate(TEXTS[0], max_new_tokens=0)
