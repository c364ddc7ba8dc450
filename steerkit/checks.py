"""The checks of numbers among parameters."""

import math
from numbers import Integral, Real
from typing import Any

from steerkit.exceptions import InvalidInputError


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Return ``value`` if it is a whole number of at least ``least``, or raise `InvalidInputError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidInputError(f"{name}={value!r} is no whole number from {least} up; pass such a number.")
    return int(value)


def check_positive(name: str, value: Any, *, zero: bool = False) -> float:
    """Return ``value`` if it is a finite number above 0, or 0 where that is allowed, or raise `InvalidInputError`."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise InvalidInputError(
            f"{name}={value!r} is no number {'from 0 up' if zero else 'above 0'}; pass such a number."
        )
    return float(value)
