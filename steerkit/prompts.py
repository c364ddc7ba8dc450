"""What counts as a prompt: text, or a list of chat messages; anything else is refused before a model sees it."""

from steerkit.exceptions import PromptError

Prompt = str | list[dict[str, str]]


def check_prompt(prompt: object, index: int) -> None:
    """Raise `PromptError` unless ``prompt`` is text or chat messages with text in them."""
    messages = prompt if isinstance(prompt, list) else [prompt]
    texts = [message.get("content") if isinstance(message, dict) else message for message in messages]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise PromptError(f"prompt {index} is a {type(prompt).__name__}, text was expected; pass a str.")
    if not any(str(text).strip() for text in texts):
        raise PromptError(f"prompt {index} is empty, text was expected; remove it or fill it.")


def check_prompts(prompts: object) -> list[Prompt]:
    """Return the prompts as a list, or raise `PromptError` for what is no sequence of texts."""
    if isinstance(prompts, str) or not hasattr(prompts, "__iter__"):
        raise PromptError(f"prompts is a {type(prompts).__name__}, a list of str was expected; put it in a list.")
    checked = [prompt.item() if hasattr(prompt, "item") else prompt for prompt in prompts]
    for index, prompt in enumerate(checked):
        check_prompt(prompt, index)
    return checked
