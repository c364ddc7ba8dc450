"""The one way in which steerkit trains with Lightning: quietly, from a seed, without leaving files behind."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def train(
    module: LightningModule, batches: Any, *, max_epochs: int, accelerator: str = "cpu", devices: Any = 1,
    progress_bar: bool = False, callbacks: Sequence[Callback] = (), seed: int | None = None,
) -> Trainer:  # fmt: skip
    """Fit a module to an iterable of batches; return the trainer. Torch's own random state is left as it was."""
    with _quiet(), torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        fitted = Trainer(
            max_epochs=max_epochs, accelerator=accelerator, devices=devices, callbacks=list(callbacks), logger=False,
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=progress_bar,
        )  # fmt: skip
        fitted.fit(module, batches)
    return fitted


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of devices and data loaders; a progress bar still shows."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
