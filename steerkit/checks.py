"""The check of whole numbers among parameters."""

from numbers import Integral
from typing import Any

from steerkit.exceptions import InvalidInputError


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Return ``value`` if it is a whole number of at least ``least``, or raise `InvalidInputError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidInputError(f"{name}={value!r} is no whole number from {least} up; pass such a number.")
    return int(value)
