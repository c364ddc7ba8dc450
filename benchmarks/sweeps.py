"""Claim: a sweep costs a fraction of one generation per cell, and gives the same answers.

``python benchmarks/sweeps.py`` answers 5 prompts at 9 alphas and 4 layers, 48 tokens each, on one thread (row D): in
the article's way (a hook, one call of ``generate`` for each of the 180 cells) and in batches of rows with a layer and
an alpha of their own. In float64 the answers must be equal to the letter; those that differ in float32, where the order
of a sum decides between tokens of almost equal logits, are counted.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gemma_shaped import contrast, language_model
from measure import gemm_rate, interleaved, one_thread, ratio, show

from steerkit import LanguageModel, SteeringEstimator, load_expertise
from steerkit.batching import batches
from steerkit.decoding import generate_rows

QUESTIONS = [
    "What is a neutron star?", "How does a vaccine work?", "What is friction?", "What is an isotope?",
    "Why does a river form a delta?",
]  # fmt: skip
ALPHAS = np.linspace(-0.4, 0.4, 9)
TOKENS = 48

Rows = Sequence[tuple[list[int], int, np.ndarray | None]]


def grid(model: LanguageModel, texts: Sequence[str], labels: Sequence[int], layers: Sequence[int]) -> Rows:
    """Return prompt, layer and step of each cell."""
    estimator = SteeringEstimator(model, learner="mean-diff", cv=2).fit(texts, labels)
    vectors = {layer: estimator.vector(layer) for layer in layers}
    return [
        (sequence, layer, (alpha * vectors[layer].norm * vectors[layer].direction).astype(np.float32))
        for sequence in model.encode(QUESTIONS)
        for layer in layers
        for alpha in ALPHAS
    ]


def loop(model: LanguageModel, rows: Rows) -> list[str]:
    """Answer one cell after the other, as the article does."""
    texts = []
    for sequence, layer, step in rows:
        added = torch.tensor(step)

        def hook(_module: Any, _inputs: Any, output: Any, added: torch.Tensor = added) -> Any:
            if isinstance(output, tuple):
                return (output[0] + added.to(output[0].dtype), *output[1:])
            return output + added.to(output.dtype)

        handle = model.blocks[layer].register_forward_hook(hook)
        ids = torch.tensor([sequence])
        with torch.no_grad():
            output = model.model.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False)
        handle.remove()
        texts.append(model.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def together(model: LanguageModel, rows: Rows) -> list[str]:
    """Answer in batches, as a sweep does: unsteered cells of a prompt are one cell."""
    keys = [(tuple(sequence), layer if step.any() else -1, step.tobytes()) for sequence, layer, step in rows]
    unique = list(dict(zip(keys, rows, strict=True)).values())
    first = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    texts = [""] * len(unique)
    lengths = [len(sequence) for sequence, _, _ in unique]
    for batch in batches(lengths, tokens=2**20, rows=64, kinds=[sequence for sequence, _, _ in unique]):
        sequences, layers, steps = zip(*[unique[place] for place in batch], strict=True)
        steps = [step if step.any() else None for step in steps]
        for place, text in zip(
            batch, generate_rows(model, sequences, layers, steps, max_new_tokens=TOKENS), strict=True
        ):
            texts[place] = text
    return [texts[first[key]] for key in keys]


def measure(name: str, model: LanguageModel, rows: Rows, every: int) -> dict[str, list[float]]:
    """Time both ways; the loop on some of the cells, evenly drawn, since each takes equally long."""
    some = rows[::every]
    differ = sum(a != b for a, b in zip(loop(model, some), together(model, rows)[::every], strict=True))
    print(f"{name}, float32: {differ} of {len(some)} answers differ")
    times = interleaved({"loop": partial(loop, model, some), "steerkit": partial(together, model, rows)}, repetitions=2)
    times["loop"] = [seconds * len(rows) / len(some) for seconds in times["loop"]]
    print(f"{name}, the article's loop / steerkit: {ratio(times, 'loop', 'steerkit'):.1f} x")
    return times


def main() -> None:
    """Print what was measured."""
    one_thread()
    tutor, train = LanguageModel("builtin:tutor", dtype="float64"), load_expertise(subset="train")
    rows = grid(tutor, train.data, train.target, [3, 4, 6, 8])
    one_by_one, at_once = loop(tutor, rows), together(tutor, rows)
    different = sum(a != b for a, b in zip(one_by_one, at_once, strict=True))
    print(f"built-in model, float64: {len(rows)} answers, {len({*at_once})} of them distinct, {different} differ")
    if different:
        raise SystemExit("the batch gives other answers than the loop")
    tutor = LanguageModel("builtin:tutor")
    rows = grid(tutor, train.data, train.target, [3, 4, 6, 8])
    measure("built-in model", tutor, rows, 9)
    model, (texts, labels) = language_model(), contrast()
    rows = grid(model, texts[::6], labels[::6], [4, 7, 10, 13])
    times = measure("Gemma-3-shaped model", model, rows, 36)
    weights = sum(p.numel() for p in model.model.parameters())
    share = 2 * weights * TOKENS * (len(rows) - 32 - 3) / min(times["steerkit"]) / gemm_rate()
    print(f"decoding alone comes to {share:.0%} of the rate of a large matrix product, measured in the same run")
    show("D sweep, the article's loop / steerkit", ratio(times, "loop", "steerkit"), 8)


if __name__ == "__main__":
    main()
