"""The prompts of a request to a served model, in any of MLflow's and OpenAI's shapes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from steerkit.exceptions import PromptError
from steerkit.prompts import is_conversation

PARAMS = ("alpha", "max_new_tokens", "temperature", "layer")
"""The parameters of a request."""
PROMPT = "prompt"
COLUMNS = (PROMPT, "messages", "inputs", "input")
"""Names under which prompts may come, in a column or a key; the last ones are those of OpenAI's bodies."""


def prompts_of(data: Any) -> list[Any]:
    """Return the prompts of a request: one or many, texts or conversations, in a list, an array, a table or a body.

    Raises
    ------
    PromptError
        It is none of these.
    """
    if isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == 1:  # a column
        data = data[:, 0]
    data = _plain(data)
    if isinstance(data, str) or (is_conversation(data) and all("role" in message for message in data)):
        return [data]
    if isinstance(data, pd.DataFrame):
        if not len(data):
            return []
        column = next((name for name in COLUMNS if name in data), data.columns[0] if data.shape[1] == 1 else None)
        if column is None:
            raise PromptError(
                f"the table has the columns {', '.join(map(repr, data.columns))}, 'prompt' was expected; name the "
                "column of the prompts so."
            )
        return prompts_of(data[column].tolist())
    if isinstance(data, Mapping):
        return _of_body(data)
    if not isinstance(data, list | tuple):
        raise PromptError(f"the input is a {type(data).__name__}; pass text, chat messages, or a list of either.")
    records = bool(data) and all(isinstance(record, Mapping) for record in data)
    return [prompt for record in data for prompt in _of_body(record)] if records else list(data)


def _plain(data: Any) -> Any:
    """Return Python's own values: MLflow makes arrays of the lists, and even of the words, of a JSON body."""
    if isinstance(data, list | tuple):
        return [_plain(item) for item in data]
    if isinstance(data, Mapping):
        plain = {key: _plain(value) for key, value in data.items()}
        return {**plain, "content": _text(plain["content"])} if isinstance(plain.get("content"), list) else plain
    return _plain(data.tolist()) if hasattr(data, "tolist") else data


def _text(parts: list[Any]) -> str:
    """Return the text of a message that comes in parts, as in OpenAI's bodies."""
    for part in parts:
        if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise PromptError(
                f"a message has a part of the type {kind!r}, 'text' was expected; pass {{'type': 'text', 'text': ...}}."
            )
    return "".join(part["text"] for part in parts)


def _of_body(body: Mapping[str, Any]) -> list[Any]:
    """Return the prompts of a JSON object."""
    names = [name for name in COLUMNS if name in body]
    if unknown := [name for name in body if name not in COLUMNS]:
        raise PromptError(
            f"{', '.join(map(repr, unknown))} is neither a prompt nor a parameter; pass 'prompt' or 'messages', and "
            f"some of {', '.join(PARAMS)}."
        )
    if len(names) != 1:
        raise PromptError(f"the input has {len(names)} of the keys {', '.join(COLUMNS)}; pass one of them.")
    return prompts_of(body[names[0]])
