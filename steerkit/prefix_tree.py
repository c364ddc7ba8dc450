"""Token sequences as prefix trees: what several of them begin with stands once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """Sequences in one row of tokens, each of them a path that branches off from another.

    Attributes
    ----------
    tokens : list of int
    depths : list of int
        The position of each token in the sequences that it belongs to.
    paths : dict
        Index of a sequence → the places of its tokens in the row.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)

    def sees(self) -> Tensor:
        """Return which tokens, ``(to, from)``, a token comes after in a sequence, itself included."""
        seen = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool)
        for path in self.paths.values():
            places = torch.tensor(path)
            seen[places[:, None], places] |= torch.ones(len(path), len(path), dtype=torch.bool).tril()
        return seen


def grow(sequences: Sequence[list[int]], width: int) -> Iterator[Tree]:
    """Yield trees of at most ``width`` tokens that together hold all sequences; one that is longer has its own."""
    tree, before, path = Tree(), list[int](), list[int]()
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence = sequences[index]
        shared = _shared(before, sequence)
        if tree.tokens and len(tree.tokens) + len(sequence) - shared > width:
            yield tree
            tree, shared = Tree(), 0
        fresh = range(shared, len(sequence))
        path = path[:shared] + [len(tree.tokens) + place for place in range(len(fresh))]
        tree.tokens.extend(sequence[shared:])
        tree.depths.extend(fresh)
        tree.paths[index] = path
        before = sequence
    if tree.paths:
        yield tree


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return with how many equal tokens two sequences begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
