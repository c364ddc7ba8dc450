"""Draws of labelled samples: with replacement, and with labels that say nothing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerkit.binary_classifier import Integers


def resamples(
    codes: Integers, pairs: NDArray[Any] | None, number: int
) -> Iterator[tuple[Integers, NDArray[Any] | None]]:
    """Draw rows with replacement, whole pairs (numbered anew) or as many of each class as there are."""
    generator = np.random.default_rng(0)
    for _ in range(number):
        if pairs is not None:
            names = np.unique(pairs)
            parts = [np.flatnonzero(pairs == name) for name in generator.choice(names, len(names))]
            yield np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            continue
        drawn = [generator.choice(np.flatnonzero(codes == code), (codes == code).sum()) for code in np.unique(codes)]
        yield np.concatenate(drawn), None


def shuffled(codes: Integers) -> Integers:
    """Deal all labels out to the samples of each class in turn, so that they say nothing of it."""
    generator, dealt = np.random.default_rng(0), np.empty_like(codes)
    for code in np.unique(codes):
        mine = generator.permutation(np.flatnonzero(codes == code))
        dealt[mine] = np.arange(len(mine)) % (codes.max() + 1)
    return dealt
