"""Sequences that begin alike go through the model once, with the activations they have alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerkit.activations import pooled_activations
from steerkit.language_model import LanguageModel
from steerkit.likelihood import log_likelihoods
from steerkit.prefix_tree import grow
from steerkit.trunk import _shares, passes
from tests.models import TEXTS, tiny, tiny_tokenizer
from tests.test_families import build

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=12)


@given(SEQUENCES, st.integers(1, 40))
def test_a_tree_holds_every_sequence_once(sequences: list[list[int]], width: int) -> None:
    trees = list(grow(sequences, width))
    found = {index: [tree.tokens[place] for place in path] for tree in trees for index, path in tree.paths.items()}
    assert found == dict(enumerate(sequences))
    for tree in trees:
        assert len(tree.tokens) <= max(width, len(tree.paths) == 1 and len(tree.tokens))
        assert all([tree.depths[place] for place in path] == list(range(len(path))) for path in tree.paths.values())


@given(SEQUENCES)
def test_a_token_sees_what_comes_before_it_in_its_own_sequence_and_nothing_else(sequences: list[list[int]]) -> None:
    (tree,) = grow(sequences, 10**6)
    seen = tree.sees()
    for path in tree.paths.values():
        for end, place in enumerate(path):
            assert seen[place].nonzero()[:, 0].tolist() == path[: end + 1]
    assert len(tree.tokens) == len(
        {tuple(sequence[:end]) for sequence in sequences for end in range(1, 1 + len(sequence))}
    )


def shared_prompts() -> list[str]:
    starts = ["i am new to the star , what is it ? please explain", "i teach the law of star light , what is it ?"]
    return [f"{start} {end}" for start in starts for end in ("the beat", "the beat of music", "water", "heat . why ?")]


@pytest.mark.parametrize("pooling", ["last", "mean", "last-3", 2])
def test_shared_prefixes_give_the_activations_of_each_prompt_alone(model: LanguageModel, pooling: str | int) -> None:
    assert _shares(model, 30)
    sequences = [*model.encode(shared_prompts()), model.encode(shared_prompts())[0]]
    assert sum(one.inputs["input_ids"].numel() for one in passes(model, sequences)) < sum(map(len, sequences)) / 2
    together = pooled_activations(model, sequences, layers=[0, 2, 3], pooling=pooling)
    alone = [pooled_activations(model, [s], layers=[0, 2, 3], pooling=pooling, batch_size=1)[0] for s in sequences]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_shared_prefixes_give_the_likelihoods_of_each_answer_alone(model: LanguageModel) -> None:
    prompts = [prompt for prompt in shared_prompts() for _ in range(3)]
    answers = ["the star is new .", "the star is not new .", "water"] * (len(prompts) // 3)
    together, counts = log_likelihoods(model, prompts, answers)
    alone = [log_likelihoods(model, [p], [a])[0][0] for p, a in zip(prompts, answers, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert counts.tolist() == [5, 6, 1] * (len(prompts) // 3)


def test_a_model_that_cannot_branch_reads_its_prompts_apart() -> None:

    model = LanguageModel.wrap(build("mamba"), tiny_tokenizer())
    assert not _shares(model, 30)
    sequences = model.encode(shared_prompts())
    assert all(one.inputs["attention_mask"].ndim == 2 for one in passes(model, sequences))


def test_nothing_after_the_deepest_layer_is_computed() -> None:
    model, ran = tiny("llama", dtype=torch.float64), list[int]()
    for place, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, place=place: ran.append(place))
    pooled_activations(model, model.encode(TEXTS[:2]), layers=[1, 2])
    assert ran == [0, 1, 2]
    assert not any(block._forward_hooks for block in model.blocks)


def test_under_hooks_of_the_callers_own_prompts_are_read_apart() -> None:
    model = tiny("llama", dtype=torch.float64)
    assert _shares(model, 30)
    handle = model.blocks[1].register_forward_hook(lambda *_: None)
    assert not _shares(model, 30)
    handle.remove()
    assert _shares(model, 30)
