"""Claim: activations of 240 prompts come several times as fast as from the article's loop and from other libraries.

``python benchmarks/activations.py`` measures last-token activations, at all layers (A1) and at one in the middle (A2),
of a Gemma-3-shaped model on one thread: the article's loop (one prompt at a time, hooks, the whole model), libraries
from PyPI where ``STEERKIT_PEERS`` (default ``.venv-peers/bin/python``) names a Python that has them, and
`ActivationExtractor`. Steerkit's activations must equal the loop's.
"""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemma_shaped import contrast, language_model
from measure import gemm_rate, interleaved, one_thread, ratio, show

from steerkit import ActivationExtractor
from steerkit.trunk import passes

PEERS = ("steering-vectors", "repeng")
PYTHON = Path(os.environ.get("STEERKIT_PEERS", ".venv-peers/bin/python"))


@torch.no_grad()
def loop(model: Any, blocks: Any, sequences: Sequence[list[int]], layers: Sequence[int]) -> np.ndarray:
    """Read one prompt after the other, as the article does."""
    rows = []
    for sequence in sequences:
        cache: dict[int, torch.Tensor] = {}

        def hook(_module: Any, _inputs: Any, output: Any, *, layer: int, cache: Any = cache) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            cache[layer] = hidden[:, -1, :].detach().cpu().squeeze(0)

        handles = [blocks[layer].register_forward_hook(partial(hook, layer=layer)) for layer in layers]
        model(input_ids=torch.tensor([sequence]))
        for handle in handles:
            handle.remove()
        rows.append(torch.stack([cache[layer] for layer in layers]))
    return torch.stack(rows).numpy()


class Peers:
    """Another process that runs other libraries; none where its Python is missing."""

    def __init__(self) -> None:
        self.process: Any = None
        if PYTHON.exists():
            script = str(Path(__file__).with_name("peers.py"))
            self.process = subprocess.Popen([PYTHON, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        else:
            print(f"{PYTHON} is not there, so no other library is measured; see benchmarks/peers.py")

    def ways(self, layers: Sequence[int]) -> dict[str, Callable[[], float]]:
        """Return what each library takes, by its name."""
        return {peer: partial(self._seconds, peer, list(layers)) for peer in PEERS} if self.process else {}

    def _seconds(self, peer: str, layers: list[int]) -> float:
        self.process.stdin.write(json.dumps({"peer": peer, "layers": layers}) + "\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline())["seconds"])


def main() -> None:
    """Print what was measured."""
    one_thread()
    model, (prompts, _) = language_model(), contrast()
    sequences, everything = model.encode(prompts), list(range(model.n_layers))
    middle, peers = [model.n_layers // 2], Peers()
    computed = sum(one.inputs["input_ids"].numel() for one in passes(model, sequences))
    print(f"{len(prompts)} prompts of {sum(map(len, sequences))} tokens; {computed} go through the model")
    expected = loop(model.model, model.blocks, sequences[::4], everything)
    got = ActivationExtractor(model).transform(prompts)[::4]
    error = np.linalg.norm(got - expected, axis=2) / np.linalg.norm(expected, axis=2)
    print(f"largest difference from the loop, relative, float32: {error.max():.1e}")
    if not error.max() < 1e-4:
        raise SystemExit("the activations are not those of the loop")
    for row, layers, least, least_peer in (("A1 all layers", everything, 4, 3), ("A2 one layer", middle, 6.5, 5)):
        mine = partial(ActivationExtractor(model, layers=layers).transform, prompts)
        some = sequences[::4]  # every prompt takes the loop equally long
        ways = {"loop": partial(loop, model.model, model.blocks, some, layers), "steerkit": mine}
        times = interleaved(ways | peers.ways(layers), repetitions=3)
        times["loop"] = [seconds * len(sequences) / len(some) for seconds in times["loop"]]
        for peer in peers.ways(layers):
            print(f"{row}, the article's loop / {peer}: {ratio(times, 'loop', peer):.2f} x")
        share = _flop(model, computed, max(layers) + 1) / min(times["steerkit"]) / gemm_rate()
        print(f"{row}: {share:.0%} of the rate of a large matrix product, measured in the same run")
        if best := min((p for p in peers.ways(layers)), key=lambda p: ratio(times, p, "steerkit"), default=None):
            show(f"{row}, {best} / steerkit", ratio(times, best, "steerkit"), least_peer)
        show(f"{row}, the article's loop / steerkit", ratio(times, "loop", "steerkit"), least)


def _flop(model: Any, tokens: int, n_layers: int) -> float:
    """Two for each weight of the blocks and token; attention itself, small at these lengths, left out."""
    weights = sum(p.numel() for block in model.blocks[:n_layers] for p in block.parameters())
    return 2.0 * weights * tokens


if __name__ == "__main__":
    main()
