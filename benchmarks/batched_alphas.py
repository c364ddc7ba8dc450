"""Claim: answers at many alphas in one batch cost a fraction of one call per alpha, and are the same answers.

``python benchmarks/batched_alphas.py`` prints, last, the median over interleaved repetitions of
(time of one call per alpha) / (time of one batch with an alpha per row), on the built-in model in float64.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin make timings on a busy machine meaningless

import statistics
import time

import numpy as np

from steerkit import LanguageModel, SteeringEstimator, load_expertise

REPETITIONS = 5
QUESTION = "What is a neutron star?"


def main() -> None:
    """Measure both ways in turn, and stop if their answers differ."""
    train = load_expertise(subset="train")
    model = LanguageModel("builtin:tutor", dtype="float64")
    steered = SteeringEstimator(model, learner="mean-diff").fit(train.data, train.target, train.groups).export()
    alphas = np.linspace(-0.4, 0.4, 32)
    options = {"max_new_tokens": 48}
    ratios = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        one_by_one = [steered.generate(QUESTION, alpha=alpha, **options) for alpha in alphas]
        between = time.perf_counter()
        together = steered.generate([QUESTION] * len(alphas), alpha=alphas, **options)
        ratios.append((between - start) / (time.perf_counter() - between))
        if together != one_by_one:
            raise SystemExit("the batch gives other answers than the loop")
    print(f"{len(alphas)} alphas, {REPETITIONS} repetitions, ratios {', '.join(f'{ratio:.1f}' for ratio in ratios)}")
    print(f"one call per alpha / one batch: {statistics.median(ratios):.1f} x")


if __name__ == "__main__":
    main()
