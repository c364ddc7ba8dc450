"""Functions whose calls others may watch, such as autologging, without the functions knowing of them."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def observable(function: Function) -> Function:
    """Return a function that calls its attribute ``implementation``, which is ``function`` until somebody replaces it.

    Unlike a replaced name in a module, a replaced implementation is also called by those who imported the name before.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return call.implementation(*args, **kwargs)  # type: ignore[attr-defined]

    call.implementation = function  # type: ignore[attr-defined]
    return cast("Function", call)
