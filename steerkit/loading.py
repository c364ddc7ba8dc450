"""Load a model and its tokenizer from the package, a folder or the Hugging Face hub, once per process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch

from steerkit.exceptions import ModelLoadError

BUILTIN = "builtin:"


class Loaded(NamedTuple):
    """A model in memory; the lock is held while it generates, since steering is a state of the model."""

    model: Any
    tokenizer: Any
    lock: threading.RLock


def builtin_names() -> Iterator[str]:
    """Yield the names of the models that are shipped with steerkit."""
    for folder in files("steerkit.builtin").iterdir():
        if folder.joinpath("config.json").is_file():
            yield BUILTIN + folder.name


@lru_cache(maxsize=1)  # a worker process that unpickles the handle for each task loads the weights once
def load(name: str, revision: str | None, dtype: str, device: str | None, options: tuple[Any, ...]) -> Loaded:
    """Load what `LanguageModel` describes; ``options`` are items for ``from_pretrained``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(files("steerkit.builtin").joinpath(name.removeprefix(BUILTIN))) if name.startswith(BUILTIN) else name
    if name.startswith(BUILTIN) and name not in set(builtin_names()):
        raise ModelLoadError(f"{name} is not shipped with steerkit; pass {', '.join(sorted(builtin_names()))}.")
    if Path(source).is_dir() and not Path(source, "config.json").is_file():
        raise ModelLoadError(
            f"{name} is no model: config.json is missing; pass a folder written by save_pretrained or a hub name."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        with _quiet() if name.startswith(BUILTIN) else nullcontext():
            model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype, **dict(options))
    except Exception as error:  # transformers, hub and safetensors each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(
            f"{name} cannot be loaded as a causal language model ({type(error).__name__}: {reason}); pass a folder "
            "written by save_pretrained, a name on the Hugging Face hub, or builtin:tutor."
        ) from error
    if "device_map" not in dict(options):
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Loaded(model.eval(), tokenizer, threading.RLock())


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress bar: a small model is loaded before one could be read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
