"""Find the residual blocks of a transformers model; read and edit what they put out. The only forward hooks here."""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from steerkit.exceptions import BlocksNotFoundError

Read = Callable[[Tensor], Tensor]
Edit = tuple[int, Callable[[Tensor], Tensor]]


class _EnoughError(Exception):
    """Leaves a forward pass of which the rest is not needed."""


def find_blocks(model: Any, path: str | None = None) -> nn.ModuleList:
    """Return the decoder blocks whose outputs are the residual stream.

    Parameters
    ----------
    model : PreTrainedModel
        Any causal language model of transformers, bare or wrapped.
    path : str, optional
        Dotted path to the ``nn.ModuleList`` of blocks, for a model in which they cannot be found.

    Raises
    ------
    BlocksNotFoundError
        No, or more than one, list of as many blocks as the configuration counts layers.
    """
    kind = type(model).__name__
    if path is not None:
        try:
            blocks = model.get_submodule(path)
        except AttributeError:
            blocks = None
        if not isinstance(blocks, nn.ModuleList):
            raise BlocksNotFoundError(
                f"blocks={path!r} is no nn.ModuleList of {kind}; pass the dotted path of its list of decoder blocks."
            )
        return blocks
    try:
        n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
        decoder = model.get_decoder()
    except AttributeError:
        n_layers, decoder = 0, nn.Module()
    found = [
        module
        for module in decoder.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and all(isinstance(block, GradientCheckpointingLayer) for block in module)
    ]
    if len(found) != 1:
        raise BlocksNotFoundError(
            f"{kind} has {len(found)} lists of {n_layers} decoder blocks where one was expected; "
            "pass LanguageModel(..., blocks='dotted.path.of.the.list')."
        )
    return found[0]


@contextmanager
def capture(
    blocks: nn.ModuleList, layers: Iterable[int], read: Read, *, only: bool = False
) -> Iterator[dict[int, Tensor]]:
    """Read the residual stream after each of ``layers`` during the forward passes inside the context.

    Parameters
    ----------
    read : callable
        ``(batch, sequence, hidden size)`` to what is to be kept, so that only that is kept.
    only : bool
        Leave the context after the deepest of the layers, without computing what follows it. Not where accelerate
        moves weights in and out: it would lose track of them.

    Yields
    ------
    dict
        layer → the value of ``read`` in the latest forward pass.
    """
    kept: dict[int, Tensor] = {}
    layers = list(layers)
    last = max(layers) if only and not any(hasattr(block, "_hf_hook") for block in blocks) else None

    def reader(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            kept[layer] = read(output if isinstance(output, Tensor) else output[0]).detach()
            if layer == last:
                raise _EnoughError

        return hook

    handles = [blocks[layer].register_forward_hook(reader(layer)) for layer in layers]
    try:
        with _eagerly():
            yield kept
    except _EnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def edit(blocks: nn.ModuleList, edits: Iterable[Edit], *, eagerly: bool = True) -> Iterator[None]:
    """Edit the residual stream after each named layer, at every position, in the order given.

    The hooks go first in line, so that every reader of the stream, transformers' own included, sees the edit.
    ``eagerly=False`` leaves compiled code compiled; it is for models of which only the inside of blocks is.
    """
    by_layer: dict[int, list[Callable[[Tensor], Tensor]]] = defaultdict(list)
    for layer, function in edits:
        by_layer[layer].append(function)

    def editor(functions: list[Callable[[Tensor], Tensor]]) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            for function in functions:
                hidden = function(hidden)
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        hook.edits = True  # type: ignore[attr-defined]
        return hook

    handles = [blocks[layer].register_forward_hook(editor(fs), prepend=True) for layer, fs in by_layer.items()]
    try:
        with _eagerly() if eagerly else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _eagerly() -> AbstractContextManager[Any]:
    """Run compiled modules uncompiled: what torch compiled without a hook takes no notice of one."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def is_edited(blocks: nn.ModuleList) -> bool:
    """Return whether an `edit` is active on any of the blocks."""
    return any(getattr(hook, "edits", False) for block in blocks for hook in block._forward_hooks.values())


def has_hooks(model: nn.Module) -> bool:
    """Return whether anybody's hooks are on a model: what they do may depend on how texts are put to it."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
