"""One decoding of many rows gives what one generation per row gives, and is used wherever a model allows it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerkit.decoding import _branches, _is_plain, generate_rows, row_edits
from steerkit.hooks import edit
from steerkit.language_model import LanguageModel
from tests.models import TEXTS, tiny

PROMPTS = [TEXTS[0], TEXTS[3], TEXTS[5]]


def one_by_one(
    model: LanguageModel, sequences: Sequence[list[int]], layers: Sequence[int], steps: Sequence[Any], **generation: Any
) -> list[str]:
    texts = []
    for sequence, layer, step in zip(sequences, layers, steps, strict=True):
        with edit(model.blocks, row_edits([layer], [step], model.hidden_size)):
            texts += model.generate([sequence], **generation)
    return texts


def some_rows(model: LanguageModel, n_rows: int = 14) -> tuple[list[list[int]], list[int], list[Any]]:
    """Prompts of several lengths, each unsteered, and steered at every layer, in no order."""
    generator = np.random.default_rng(0)
    sequences = model.encode(PROMPTS)
    rows = [
        (
            sequences[generator.integers(len(sequences))],
            int(generator.integers(model.n_layers)),
            None if number % 4 == 0 else generator.normal(size=model.hidden_size).astype(np.float32),
        )
        for number in range(n_rows)
    ]
    asked, layers, steps = zip(*rows, strict=True)
    return list(asked), list(layers), list(steps)


def test_rows_decoded_together_are_those_decoded_alone(model: LanguageModel) -> None:
    assert _branches(model)
    assert _is_plain(model.generation_config(9, max_new_tokens=12), seeded=False)
    asked, layers, steps = some_rows(model)
    together = generate_rows(model, asked, layers, steps, max_new_tokens=12)
    assert together == one_by_one(model, asked, layers, steps, max_new_tokens=12)
    assert len({*together}) > 3


def test_rows_that_end_leave_and_the_others_go_on(model: LanguageModel) -> None:
    """Every word that is said somewhere as the fourth ends an answer, so that rows finish at different times."""
    asked, layers, steps = some_rows(model, 24)
    free = [text.split() for text in generate_rows(model, asked, layers, steps, max_new_tokens=10)]
    ends = model.tokenizer.convert_tokens_to_ids(sorted({word for words in free for word in words[3:4]}))
    options: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": [*ends[::2], 2]}
    together = generate_rows(model, asked, layers, steps, **options)
    assert together == one_by_one(model, asked, layers, steps, **options)
    assert len({len(text.split()) for text in together}) > 1


def test_seeded_rows_depend_on_their_seed_alone(model: LanguageModel) -> None:
    asked, layers, steps = some_rows(model, 9)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "temperature": 0.8}
    seeds = [number % 3 for number in range(9)]
    together = generate_rows(model, asked, layers, steps, seeds=seeds, **options)
    alone = [
        generate_rows(
            model, asked[row : row + 1], layers[row : row + 1], steps[row : row + 1], seeds=[seed], **options
        )[0]
        for row, seed in enumerate(seeds)
    ]
    assert together == alone


def test_settings_beyond_the_next_token_are_left_to_transformers() -> None:
    model = tiny("llama", dtype=torch.float64)
    asked, layers, steps = some_rows(model, 6)
    options: dict[str, Any] = {"max_new_tokens": 8, "repetition_penalty": 1.7}
    together = generate_rows(model, asked, layers, steps, **options)
    assert together == one_by_one(model, asked, layers, steps, **options)
    assert together != generate_rows(model, asked, layers, steps, max_new_tokens=8)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_any_mix_of_prompts_and_layers(rows: list[tuple[int, int, bool]]) -> None:
    model = MODEL
    sequences = model.encode(PROMPTS)
    step = np.linspace(-0.3, 0.3, model.hidden_size, dtype=np.float32)
    asked, layers = [sequences[prompt] for prompt, _, _ in rows], [layer for _, layer, _ in rows]
    steps = [step * np.float32(place + 1) if steered else None for place, (_, _, steered) in enumerate(rows)]
    assert generate_rows(model, asked, layers, steps, max_new_tokens=5) == one_by_one(
        model, asked, layers, steps, max_new_tokens=5
    )


def test_nothing_is_left_behind(model: LanguageModel) -> None:
    asked, layers, steps = some_rows(model)
    before = model.generate(asked[:2], max_new_tokens=8)
    generate_rows(model, asked, layers, steps, max_new_tokens=4)
    assert not any(block._forward_hooks for block in model.blocks)
    assert model.generate(asked[:2], max_new_tokens=8) == before


MODEL = tiny("gemma3", dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2])
def test_a_single_row_needs_no_branch(size: int) -> None:
    asked, layers, steps = some_rows(MODEL, size)
    assert generate_rows(MODEL, asked, layers, steps, max_new_tokens=6) == one_by_one(
        MODEL, asked, layers, steps, max_new_tokens=6
    )
