"""Many steered answers in one decoding: a prompt is read once for all its rows, and rows leave as they finish.

A row is steered after one layer, so up to there it is the unsteered prompt: rows branch off that one where they are
steered. Where a model does not take part in this, or a setting asks for more than the next token of each row, the
`generate` of transformers gives the same answers, only more slowly.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from steerkit.generation import SAMPLING, seeded_sampling
from steerkit.hooks import Edit, edit, has_hooks
from steerkit.language_model import LanguageModel
from steerkit.operations import add
from steerkit.trunk import close

Step = NDArray[np.float32] | None
PLAIN = {*SAMPLING, "max_new_tokens", "max_length", "do_sample", "use_cache", "transformers_version"}
PLAIN |= {"pad_token_id", "bos_token_id", "eos_token_id", "_from_model_config"}
"""The settings that a decoding knows."""
FINISHED = 1 / 8
"""The share of rows that must have finished for the others to be worth moving together."""


def generate_rows(
    model: LanguageModel,
    sequences: Sequence[list[int]],
    layers: Sequence[int],
    steps: Sequence[Step],
    *,
    seeds: Sequence[int] | None = None,
    **generation: Any,
) -> list[str]:
    """Answer each of several prompts, each under a step of its own.

    Parameters
    ----------
    sequences : sequence of list of int
        Token ids of the prompts.
    layers : sequence of int
    steps : sequence of ndarray of shape (hidden size,), or None
        What is added after each row's layer at every position; nothing for None.
    seeds : sequence of int, optional
        Each row's stream of chance, if ``generation`` asks to sample.
    """
    config = model.generation_config(max(map(len, sequences)), **generation)
    if not _is_plain(config, seeds is not None) or not _branches(model):
        with model.held(), edit(model.blocks, row_edits(layers, steps, model.hidden_size)):
            return model.generate(sequences, seeds=seeds, **generation)
    with model.held(), torch.inference_mode():
        decoding = _Decoding(model, sequences, layers, steps)
        tokens = decoding.run(config, None if seeds is None else [seeds[row] for row in decoding.rows])
    return model.decode(tokens)


def row_edits(layers: Sequence[int], steps: Sequence[Step], hidden_size: int) -> list[Edit]:
    """Return the edits of a batch in which each row has a layer and a step, ``(hidden size,)``, of its own, or none."""
    none = np.zeros(hidden_size, dtype=np.float32)
    edits: list[Edit] = []
    for here in sorted({layer for layer, step in zip(layers, steps, strict=True) if step is not None}):
        rows = [none if step is None or layer != here else step for layer, step in zip(layers, steps, strict=True)]
        added = torch.from_numpy(np.stack(rows))
        edits.append((here, partial(add, direction=added, amount=torch.tensor(1.0))))
    return edits


class _Decoding:
    """The state of the rows that are still going on: keys and values, what is added, and the latest logits.

    Attributes
    ----------
    rows : list of int
        The place of each live row in what the caller passed.
    logits : Tensor of shape (n_rows, vocabulary), float32
        Of the next token.
    """

    def __init__(
        self, model: LanguageModel, sequences: Sequence[list[int]], layers: Sequence[int], steps: Sequence[Step]
    ) -> None:
        self.model, self.bare, self.n_rows = model, model.model, len(sequences)
        depth = {row: -1 if steps[row] is None else layers[row] for row in range(self.n_rows)}
        self.rows = sorted(depth, key=lambda row: (sequences[row], depth[row]))
        asked = [(sequences[row], depth[row], steps[row]) for row in self.rows]
        prompts = [list(rows) for _, rows in groupby(asked, key=lambda row: row[0])]
        longest = max(map(len, sequences))
        caches, logits = zip(*(self._read(rows, longest) for rows in prompts), strict=True)
        from transformers import DynamicCache

        self.cache = DynamicCache()
        for layer, parts in enumerate(zip(*caches, strict=True)):
            self.cache.update(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)), layer)
        self.logits = torch.cat(logits)
        lengths = torch.tensor([len(sequence) for sequence, _, _ in asked])
        places = torch.arange(longest)
        self.mask = (places >= longest - lengths[:, None]).long().to(self.logits.device)
        self.positions = lengths.to(self.logits.device)
        self.added = {
            layer: torch.stack([self._tensor(step if at == layer else None) for _, at, step in asked])[:, None]
            for layer in {at for _, at, _ in asked if at >= 0}
        }

    def run(self, config: Any, seeds: Sequence[int] | None) -> list[list[int]]:
        """Return the new tokens of every row, in the caller's order."""
        choose = seeded_sampling(config, seeds) if seeds is not None else lambda _, logits: logits
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        said: list[list[int]] = [[] for _ in range(self.n_rows)]
        done = [False] * self.n_rows
        for left in reversed(range(config.max_new_tokens)):
            chosen = choose(None, self.logits).argmax(dim=-1)
            for row, token in zip(self.rows, chosen.tolist(), strict=True):
                if not done[row]:
                    said[row].append(token)
                    done[row] = token in ends
            live = [place for place, row in enumerate(self.rows) if not done[row]]
            if not live or not left:
                break
            if len(live) <= (1 - FINISHED) * len(self.rows) and seeds is None:  # a seed's stream counts its rows
                chosen = chosen[live]
                self.keep(live)
            self.advance(chosen)
        return said

    def advance(self, tokens: Tensor) -> None:
        """Append a token to each row."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        with edit(self.model.blocks, [(layer, self._adder(layer)) for layer in self.added]):
            output = self.bare(
                input_ids=tokens[:, None], attention_mask=self.mask, position_ids=self.positions[:, None],
                past_key_values=self.cache, use_cache=True,
            )  # fmt: skip
        self.logits, self.positions = output.logits[:, -1].float(), self.positions + 1

    def keep(self, places: Sequence[int]) -> None:
        """Go on with some of the rows only."""
        chosen = torch.tensor(places, device=self.positions.device)
        self.rows = [self.rows[place] for place in places]
        self.mask, self.positions, self.logits = self.mask[chosen], self.positions[chosen], self.logits[chosen]
        self.added = {layer: added[chosen] for layer, added in self.added.items()}
        self.cache.batch_select_indices(chosen)

    def _adder(self, layer: int) -> Callable[[Tensor], Tensor]:
        added = self.added[layer]
        return lambda hidden: hidden + added.to(hidden.device)

    def _read(self, rows: list[tuple[list[int], int, Step]], width: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Read a prompt for all rows that ask it: keys and values per layer, ``width`` long, and the last logits."""
        from transformers import DynamicCache

        steered = [(layer, step) for _, layer, step in rows if layer >= 0]
        branches = {
            layer: torch.stack([self._tensor(step) for _, step in group])
            for layer, group in groupby(steered, key=lambda row: row[0])
        }
        ids, mask = self.model.pad([rows[0][0]])
        cache = DynamicCache()
        with edit(self.model.blocks, [(layer, partial(_branch, added=added)) for layer, added in branches.items()]):
            output = self.bare(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        n_bare = len(rows) - len(steered)
        places = torch.tensor([0] * n_bare + list(range(1, len(steered) + 1)), device=ids.device)
        missing = width - ids.shape[1]
        kept = []
        for layer in cache.layers:  # rows that branch off later are, up to there, the unsteered one
            here = places.where(places < len(layer.keys), torch.zeros_like(places))
            keys, values = (pad(t[here.to(t.device)], (0, 0, missing, 0)) for t in (layer.keys, layer.values))
            kept.append((keys, values))
        return kept, torch.as_tensor(output.logits)[places, -1].float()

    def _tensor(self, step: Step) -> Tensor:
        size, dtype, device = self.model.hidden_size, self.bare.dtype, self.bare.device
        return torch.zeros(size, dtype=dtype, device=device) if step is None else torch.tensor(step).to(device, dtype)


def _is_plain(config: Any, seeded: bool) -> bool:
    """Whether the settings ask for no more than the likeliest next token, or one drawn from a row's own stream."""
    set_ones = {name for name, value in config.to_diff_dict().items() if value is not None and value is not False}
    return set_ones <= PLAIN and (seeded or not config.do_sample)


def _branch(hidden: Tensor, added: Tensor) -> Tensor:
    """Append to the rows, of which the first is unsteered, those that branch off it here."""
    return torch.cat([hidden, hidden[:1] + added.to(hidden.device)[:, None]])


def _branches(model: LanguageModel) -> bool:
    """Whether the model takes part in a decoding: tried out, once."""
    key = ("branches", model.model.config.get_text_config(decoder=True)._attn_implementation, model.blocks_path)
    findings = model.load().findings
    with model.held() as bare:
        if has_hooks(bare):
            return False
        if key not in findings:
            findings[key] = _try_branching(model)
        return bool(findings[key])


@torch.inference_mode()
def _try_branching(model: LanguageModel) -> bool:
    size = model.model.config.get_text_config(decoder=True).vocab_size
    tokens = [(7 * place + 3) % size for place in range(12)]
    step, inner = np.ones(model.hidden_size, dtype=np.float32), model.n_layers - 2
    rows = [(tokens[:9], 0, None), (tokens[:9], 0, step), (tokens[:6], 0, step), (tokens[:9], max(inner, 0), step)]
    try:
        decoding = _Decoding(model, *zip(*rows, strict=True))
        first = dict(zip(decoding.rows, decoding.logits, strict=True))
        decoding.keep([place for place, row in enumerate(decoding.rows) if row])
        decoding.advance(torch.tensor([tokens[9]] * 3, device=decoding.positions.device))
        second = dict(zip(decoding.rows, decoding.logits, strict=True))
        for row, (sequence, layer, added) in enumerate(rows):
            ids, mask = model.pad([[*sequence, tokens[9]]])
            with edit(model.blocks, row_edits([layer], [added], model.hidden_size)):
                expected = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
            if not close(first[row], expected[-2]) or (row and not close(second[row], expected[-1])):
                return False
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError):
        return False  # no cache of keys and values, or masks or positions that are not for this model
    return True
