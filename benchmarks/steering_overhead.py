"""Claim: a steered token costs what an unsteered one costs.

``python benchmarks/steering_overhead.py`` generates with and without steering in turn, greedily, at batch 1 and 8, with
a Gemma-3-shaped model and with the built-in one, on one thread (row C); the ratio is that of the time per token.
"""

from functools import partial

import torch
from gemma_shaped import contrast, language_model
from measure import interleaved, one_thread, ratio, show

from steerkit import LanguageModel, SteeringEstimator

TOKENS = 24


def main() -> None:
    """Print what was measured."""
    one_thread()
    prompts, labels = contrast()
    with torch.inference_mode():
        shaped, tutor = language_model(), LanguageModel("builtin:tutor")
    for name, model, most in (("Gemma-3-shaped", shaped, 1.02), ("built-in", tutor, 1.05)):
        steered = SteeringEstimator(model, learner="mean-diff", cv=2).fit(prompts[::6], labels[::6]).export()
        for size in (1, 8):
            answer = partial(
                steered.generate, ["What is a neutron star?"] * size, max_new_tokens=TOKENS, min_new_tokens=TOKENS
            )
            bare = partial(
                model.generate, model.encode(["What is a neutron star?"] * size),
                max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            )  # fmt: skip
            ways = {"steered": partial(answer, alpha=0.2), "unsteered": bare}
            times = interleaved(ways, repetitions=11)
            show(
                f"C {name} model, batch {size}, steered / unsteered", ratio(times, "steered", "unsteered"), most,
                at_least=False,
            )  # fmt: skip


if __name__ == "__main__":
    main()
