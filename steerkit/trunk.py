"""Passes of token sequences through the trunk of a model, the unembedding left out, shared prefixes computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerkit.batching import batches
from steerkit.hooks import has_hooks
from steerkit.language_model import LanguageModel
from steerkit.prefix_tree import Tree, grow

TOKENS_PER_BATCH, TOKENS_ON_CPU = 4096, 1024
"""Most tokens of a pass: on a CPU, no more than its caches hold the activations of an MLP for."""
WIDTH = 256
"""Most tokens of a tree: in a wider one, attention to other sequences, masked but computed, outweighs what is saved."""
SAVED = 0.1
"""The share of tokens that trees must save to be worth their masks."""


@dataclass(frozen=True)
class Pass:
    """The arguments of one forward pass of the trunk, and where the sequences stand in it."""

    inputs: dict[str, Any]
    paths: dict[int, Tensor]
    """Index of a sequence → the places of its tokens in the pass, rows flattened."""


def passes(
    model: LanguageModel, sequences: Sequence[list[int]], *, batch_size: int | None = None, tokens: int | None = None
) -> Iterator[Pass]:
    """Yield passes that together hold every sequence.

    Parameters
    ----------
    model : LanguageModel
        To be held by the caller.
    sequences : sequence of list of int
        Token ids, none of them empty.
    batch_size : int, optional
        Sequences per pass, one a row; else the tokens of a pass are bounded, and shared prefixes stand once where the
        model honours that.
    tokens : int, optional
        That bound, if it is to be lower than usual.
    """
    most = tokens_per_batch(model)
    room = min(most, tokens or most)
    trees = [] if batch_size else list(grow(sequences, WIDTH))
    total = sum(map(len, sequences))
    if trees and sum(len(t.tokens) for t in trees) <= (1 - SAVED) * total and _shares(model, max(map(len, sequences))):
        for rows in batches([len(tree.tokens) for tree in trees], tokens=room):
            yield _branching(model, [trees[row] for row in rows])
        return
    lengths = [len(sequence) for sequence in sequences]
    for rows in batches(lengths, tokens=2**62, rows=batch_size) if batch_size else batches(lengths, tokens=room):
        ids, mask = model.pad([sequences[row] for row in rows])
        paths = {
            row: place * ids.shape[1] + torch.arange(len(sequences[row]), device=ids.device)
            for place, row in enumerate(rows)
        }
        yield Pass({"input_ids": ids, "attention_mask": mask, "use_cache": False}, paths)


def tokens_per_batch(model: LanguageModel) -> int:
    """Return the most tokens, padding included, that a pass should have where the model is."""
    return TOKENS_ON_CPU if model.model.device.type == "cpu" else TOKENS_PER_BATCH


def _branching(model: LanguageModel, trees: Sequence[Tree]) -> Pass:
    """Return a pass with a tree a row."""
    ids, _ = model.pad([tree.tokens for tree in trees])
    width = ids.shape[1]
    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself, lest there be NaN
    depths = torch.zeros(ids.shape, dtype=torch.long)
    paths: dict[int, Tensor] = {}
    for row, tree in enumerate(trees):
        size = len(tree.tokens)
        seen[row, :size, :size], depths[row, :size] = tree.sees(), torch.tensor(tree.depths)
        paths |= {index: (row * width + torch.tensor(path)).to(ids.device) for index, path in tree.paths.items()}
    masks = _masks(model, seen.to(ids.device), depths.to(ids.device))
    inputs = {"input_ids": ids, "attention_mask": masks, "position_ids": depths.to(ids.device), "use_cache": False}
    return Pass(inputs, paths)


def _masks(model: LanguageModel, seen: Tensor, depths: Tensor) -> Any:
    """Return the attention masks as the layers of the model take them: one, or one for each kind of layer."""
    config = model.model.config.get_text_config(decoder=True)
    window, dtype = getattr(config, "sliding_window", None), model.model.dtype
    distances = depths[:, :, None] - depths[:, None]
    allowed = {"full_attention": seen, "sliding_attention": seen if window is None else seen & (distances < window)}
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    masks = {
        kind: torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        .masked_fill(~allowed[kind], torch.finfo(dtype).min)
        .unsqueeze(1)
        for kind in kinds
    }
    return masks if len(masks) > 1 else masks.popitem()[1]


def _shares(model: LanguageModel, longest: int) -> bool:
    """Whether the model computes a tree as it computes its sequences apart: tried out, once, since few say so."""
    config = model.model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None) or 0
    if 48 < window < longest or has_hooks(model.model):
        return False  # what a longer window hides would take long to try out
    key = ("shares", config._attn_implementation, model.blocks_path)
    if key not in model.load().findings:
        model.load().findings[key] = _try_sharing(model, 12 + (window if window <= 48 else 0), config.vocab_size)
    return bool(model.load().findings[key])


@torch.inference_mode()
def _try_sharing(model: LanguageModel, length: int, vocab_size: int) -> bool:
    tokens = [(7 * place + 3) % vocab_size for place in range(2 * length)]
    sequences = [tokens[:length], tokens[: length // 2] + tokens[length:], tokens[: length - 2]]
    (tree,) = grow(sequences, 10**6)
    try:
        branching = _branching(model, [tree])
        together = model.model(**branching.inputs).logits.flatten(0, 1)
        for index, sequence in enumerate(sequences):
            ids, mask = model.pad([sequence])
            apart = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
            if not close(together[branching.paths[index]], apart):
                return False
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError):
        return False  # positions, masks of that shape or that kind of layer are not for this model
    return True


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by no more than rounding."""
    error = (one.double() - other.double()).norm() / other.double().norm()
    return bool(error < (1e-3 if torch.finfo(other.dtype).bits >= 32 else 5e-2))
