"""Cut work of unequal lengths into batches of like length and bounded size."""

from collections.abc import Iterator, Sequence
from typing import Any


def batches(
    lengths: Sequence[int], *, tokens: int, rows: int = 64, kinds: Sequence[Any] | None = None
) -> Iterator[list[int]]:
    """Yield the indices of the items, longest first, at most ``rows`` and ``tokens`` (padding included) together.

    Longest first, so that a batch that does not fit in memory fails at once and not at the end. Of equally long items,
    those of a kind stand together.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], kinds[index] if kinds else 0))
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        size = max(1, min(rows, tokens // longest))
        yield order[start : start + size]
        start += size
