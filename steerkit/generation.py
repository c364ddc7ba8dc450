"""The settings of a generation: the model's own, with the caller's over them, checked before any token is made."""

import copy
from typing import Any

from steerkit.exceptions import InvalidInputError, PromptError

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


def generation_settings(defaults: Any, context_length: int, prompt_length: int, asked: dict[str, Any]) -> Any:
    """Return a ``GenerationConfig``: greedy unless ``asked`` samples, and no longer than the context has room for.

    Raises
    ------
    PromptError
        Prompt and answer do not fit in the context.
    InvalidInputError
        ``max_new_tokens`` is no positive int, or whole outputs are asked for.
    TypeError
        A setting that transformers does not know.
    """
    config = copy.deepcopy(defaults)
    room = context_length - prompt_length
    options = {"max_new_tokens": min(config.max_new_tokens or 200, room), "max_length": None, **asked}
    options.setdefault("do_sample", any(asked.get(name) is not None for name in SAMPLING))
    if options.pop("return_dict_in_generate", False):
        raise InvalidInputError("return_dict_in_generate=True is not supported; call the model in steering() instead.")
    n_new = options["max_new_tokens"]
    if isinstance(n_new, bool) or not isinstance(n_new, int) or n_new < 1 <= room:
        raise InvalidInputError(f"max_new_tokens={n_new!r} is no positive int; pass how many tokens may be added.")
    if n_new > room or room < 1:
        raise PromptError(
            f"a prompt of {prompt_length} tokens and max_new_tokens={n_new} do not fit in the context of "
            f"{context_length} tokens; shorten the prompt or ask for fewer."
        )
    if options.get("temperature") == 0:
        options["do_sample"] = False
    if not options["do_sample"]:
        options |= dict.fromkeys(SAMPLING)
    if unknown := config.update(**options):
        raise TypeError(
            f"{', '.join(map(repr, unknown))} is no generation setting; pass those of transformers' "
            "GenerationConfig, such as max_new_tokens, temperature or num_beams."
        )
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = (eos[0] if isinstance(eos, list) else eos) or 0
    return config
