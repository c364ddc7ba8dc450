"""Load a model and its tokenizer from the package, a folder or the Hugging Face hub, once per process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from cachetools import LRUCache

from steerkit.exceptions import ModelLoadError

BUILTIN = "builtin:"
REMEMBERED = 512 * 2**20
"""Bytes of activations to remember for each model in memory."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory; the lock is held while it generates, since steering is a state of the model."""

    model: Any
    tokenizer: Any
    lock: threading.RLock = field(default_factory=threading.RLock)
    activations: LRUCache[Any, Any] = field(
        default_factory=lambda: LRUCache(REMEMBERED, getsizeof=lambda array: array.nbytes)
    )
    """What `steerkit.activations.remembered_activations` has computed with it."""
    findings: dict[Any, Any] = field(default_factory=dict)
    """What was tried out on it, once."""


def builtin_names() -> Iterator[str]:
    """Yield the names of the models that are shipped with steerkit."""
    for folder in files("steerkit.builtin").iterdir():
        if folder.joinpath("config.json").is_file():
            yield BUILTIN + folder.name


def load(name: str, revision: str | None, dtype: str, device: str | None, options: dict[str, Any]) -> Loaded:
    """Load what `LanguageModel` describes; ``options`` are for ``from_pretrained``.

    The latest model is kept, so that a worker that unpickles its handle for each task loads the weights once.
    """
    key = repr((name, revision, dtype, device, sorted(options.items())))
    if key not in _latest:
        loaded = _load(name, revision, dtype, device, options)
        _latest.clear()
        _latest[key] = loaded
    return _latest[key]


_latest: dict[str, Loaded] = {}
FOR_TOKENIZER = ("cache_dir", "force_download", "local_files_only", "subfolder", "token", "trust_remote_code")


def _load(name: str, revision: str | None, dtype: str, device: str | None, options: dict[str, Any]) -> Loaded:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(files("steerkit.builtin").joinpath(name.removeprefix(BUILTIN))) if name.startswith(BUILTIN) else name
    if name.startswith(BUILTIN) and name not in set(builtin_names()):
        raise ModelLoadError(f"{name} is not shipped with steerkit; pass {', '.join(sorted(builtin_names()))}.")
    if Path(source).is_dir() and not Path(source, "config.json").is_file():
        raise ModelLoadError(
            f"{name} is no model: config.json is missing; pass a folder written by save_pretrained or a hub name."
        )
    try:
        with _quiet() if name.startswith(BUILTIN) else nullcontext():
            shared = {key: value for key, value in options.items() if key in FOR_TOKENIZER}
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, **shared)
            model, report = AutoModelForCausalLM.from_pretrained(
                source, revision=revision, dtype=dtype, output_loading_info=True, **options
            )
        if "device_map" not in options:
            model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as error:  # transformers, hub, safetensors and torch each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise ModelLoadError(
            f"{name} cannot be loaded as a causal language model ({type(error).__name__}: {reason}); pass a folder "
            "written by save_pretrained, a name on the Hugging Face hub, or builtin:tutor, and a device that is there."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"{name} lacks {len(missing)} of its weights ({missing[0]} first), which would be random; get it again."
        )
    return Loaded(model.eval(), tokenizer)


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
