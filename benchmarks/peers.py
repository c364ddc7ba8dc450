"""Other libraries at the same work, in an environment of their own; `activations.py` talks to this over pipes.

``python -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/requirements.txt`` makes that environment.
Each line that comes in is ``{"peer": ..., "layers": [...]}``; each that goes out is ``{"seconds": ...}``.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gemma_shaped import contrast, transformers_model


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    model, tokenizer = transformers_model()
    prompts, labels = contrast()
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
        for p in prompts
    ]
    novices, experts = ([text for text, side in zip(texts, labels, strict=True) if side == wanted] for wanted in (0, 1))

    def steering_vectors(layers: list[int]) -> None:
        from steering_vectors.train_steering_vector import extract_activations

        extract_activations(model, tokenizer, list(zip(experts, novices, strict=True)), layers=layers, batch_size=16)

    def repeng(layers: list[int]) -> None:
        from repeng.extract import batched_get_hiddens

        with contextlib.redirect_stderr(Path(os.devnull).open("w")):
            batched_get_hiddens(model, tokenizer, texts, layers, 32)

    ways: dict[str, Callable[[list[int]], None]] = {"steering-vectors": steering_vectors, "repeng": repeng}
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        ways[asked["peer"]](asked["layers"])
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
