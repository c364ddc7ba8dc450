"""Alphas by measurement: doubled until the answers have collapsed, so that no range is assumed."""

from collections.abc import Callable

from steerkit.sweep_results import ROUNDING, Sweep

SMALLEST, LARGEST = 0.01, 2.56
FINE = 8
"""How much smaller than the first collapse the smallest alpha is."""


def bracketed_alphas(measure: Callable[[float], Sweep]) -> list[float]:
    """Return alphas of both signs, ascending, from next to nothing up to where all layers have collapsed on both sides.

    Parameters
    ----------
    measure : function
        Takes an alpha and returns a sweep over both of its signs.
    """
    tried, first = [SMALLEST], None
    collapsed = measure(SMALLEST).collapsed()
    while True:
        if first is None and collapsed.to_numpy().any():
            first = tried[-1]
        if tried[-1] >= LARGEST or collapsed.to_numpy().all():
            break
        tried.append(2 * tried[-1])
        now = measure(tried[-1]).collapsed()
        collapsed = collapsed.set_axis(now.columns, axis=1) | now
    smallest = (first or tried[-1]) / FINE
    # Those that were tried are measured already; two more lie between the largest, where most is lost.
    between = [0.375 * tried[-1], 0.75 * tried[-1]]
    sizes = sorted({round(alpha, 6) for alpha in [smallest, *tried, *between] if alpha >= smallest * (1 - ROUNDING)})
    return [-size for size in reversed(sizes)] + sizes
