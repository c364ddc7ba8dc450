"""The settings of a generation: the model's own, with the caller's over them, checked before any token is made."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerkit.exceptions import InvalidInputError, PromptError

TOP_K = 50
"""Where ``top_k`` is not given, as in transformers."""
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


def seeded_sampling(config: Any, seeds: Sequence[int]) -> Any:
    """Return processors that sample by noise of each row's own, and make ``config`` greedy, which then draws the token.

    The highest of logits with Gumbel noise is a sample from their softmax; so a row's answer depends on its seed, not
    on the rows beside it.

    Raises
    ------
    InvalidInputError
        Beams, or several sequences per row, are asked for.
    """
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    if config.num_beams not in (None, 1) or config.num_return_sequences not in (None, 1):
        raise InvalidInputError("rows with seeds of their own have one beam and one answer; pass no num_beams.")
    if other := [name for name in ("top_h", "epsilon_cutoff", "eta_cutoff") if getattr(config, name, None)]:
        raise InvalidInputError(
            f"{', '.join(other)} cannot be used where each row has a seed; pass some of {', '.join(SAMPLING)}."
        )
    warpers: dict[str, tuple[Any, float]] = {  # in the order of transformers, each with the value that changes nothing
        "temperature": (TemperatureLogitsWarper, 1.0),
        "top_k": (TopKLogitsWarper, 0),
        "top_p": (TopPLogitsWarper, 1.0),
        "min_p": (MinPLogitsWarper, 0.0),
        "typical_p": (TypicalLogitsWarper, 1.0),
    }
    values = {name: getattr(config, name, None) for name in warpers}
    values["top_k"] = TOP_K if values["top_k"] is None else values["top_k"]
    chosen = [
        make(value)
        for name, (make, neutral) in warpers.items()
        if (value := values[name]) is not None and value != neutral
    ]
    config.update(do_sample=False, **dict.fromkeys(SAMPLING))
    streams: list[torch.Generator] = []

    def draw(_ids: Tensor, logits: Tensor) -> Tensor:
        if not streams:
            streams.extend(torch.Generator(logits.device).manual_seed(seed) for seed in seeds)
        waits = [
            torch.empty_like(row, dtype=torch.float64).exponential_(generator=stream)
            for row, stream in zip(logits, streams, strict=True)
        ]
        return logits.double() - torch.stack(waits).log()

    return LogitsProcessorList([*chosen, draw])
