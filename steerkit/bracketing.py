"""Alphas by measurement: doubled until the answers have collapsed, so that no range is assumed."""

from collections.abc import Callable

from steerkit.sweep_results import Sweep

SMALLEST, LARGEST = 0.01, 2.56
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Of the alpha at which everything has collapsed: most of them those that were tried on the way there."""


def bracketed_alphas(measure: Callable[[float], Sweep]) -> list[float]:
    """Return alphas of both signs, ascending, from next to nothing up to where all layers have collapsed on both sides.

    Parameters
    ----------
    measure : function
        Takes an alpha and returns a sweep over both of its signs.
    """
    alpha, collapsed = SMALLEST, measure(SMALLEST).collapsed()
    while alpha < LARGEST and not collapsed.to_numpy().all():
        alpha *= 2
        now = measure(alpha).collapsed()
        collapsed = collapsed.set_axis(now.columns, axis=1) | now
    sizes = [round(alpha * fraction, 6) for fraction in FRACTIONS]
    return [-size for size in reversed(sizes)] + sizes
