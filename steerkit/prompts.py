"""What counts as a prompt: text, or a list of chat messages; anything else is refused before a model sees it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from steerkit.exceptions import PromptError

Prompt = str | list[dict[str, str]]


def is_conversation(prompt: object) -> bool:
    """Return whether a prompt is one list of chat messages."""
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(message, dict) for message in prompt)


def check_prompt(prompt: object, index: int) -> None:
    """Raise `PromptError` unless ``prompt`` is text, or chat messages with a role and text each."""
    if is_conversation(prompt):
        texts: list[Any] = []
        for message in prompt:  # type: ignore[attr-defined]
            if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise PromptError(
                    f"prompt {index} has a message without role and content; pass {{'role': 'user', 'content': text}}."
                )
            texts.append(message["content"])
    else:
        texts = [prompt]
        if isinstance(prompt, list) and prompt and all(isinstance(part, str) for part in prompt):
            raise PromptError(
                f"prompt {index} is a list of str; pass a (prompt, completion) pair as a tuple, or chat messages as "
                "{'role': 'user', 'content': text}."
            )
        if not isinstance(prompt, str):
            raise PromptError(
                f"prompt {index} is a {type(prompt).__name__}, text was expected; pass a str, or a list of chat "
                "messages."
            )
    if not any(text.strip() for text in texts):
        raise PromptError(f"prompt {index} is empty, text was expected; remove it or fill it.")


def check_prompts(prompts: object) -> list[Any]:
    """Return the prompts as a list, or raise `PromptError` for what is no sequence of prompts."""
    if isinstance(prompts, str | dict) or not hasattr(prompts, "__iter__"):
        raise PromptError(f"prompts is a {type(prompts).__name__}, a list of str was expected; put it in a list.")
    checked = [prompt.item() if isinstance(prompt, np.generic) else prompt for prompt in prompts]
    for index, prompt in enumerate(checked):
        check_prompt(prompt, index)
    return checked


def split_pairs(pairs: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Return the prompts and the completions of ``(prompt, completion)`` pairs, or raise `PromptError`."""
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], str) or not pair[1].strip():
            raise PromptError(f"prompt {index} is no (prompt, completion) pair with text in both; pass two str.")
    return check_prompts([prompt for prompt, _ in pairs]), [completion for _, completion in pairs]
