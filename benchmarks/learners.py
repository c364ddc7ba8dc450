"""Claim: every learner finds a planted direction, reads held-out domains and steers the built-in model.

``python benchmarks/learners.py`` prints a row per learner: the cosine to a direction planted among 60 samples of 1152
features, the accuracy on held-out domains at the best layer, the effect span of alpha -0.3 to +0.3 at the layer named
above the table, and the median time of its fits relative to the default probe's, interleaved.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin make timings on a busy machine meaningless

import statistics
import time

import numpy as np

from steerkit import LanguageModel, LayerwiseDirections, SteeringEstimator, load_expertise, sweep
from steerkit.metrics import EffectReader

LEARNERS = ["probe", "mean-diff", "mass-mean", "pca", "sparse-probe"]
LAYER = 7
REPETITIONS = 5
QUESTIONS = [
    "What is a neutron star?", "How does a vaccine work?", "What is friction?", "What is an isotope?",
    "What is a stem cell?", "What is dopamine?", "What is a river delta?", "What is packet switching?",
    "What is a tariff?", "What is a fugue?",
]  # fmt: skip


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 samples of noise in 1152 dimensions, one class shifted along a known direction."""
    generator = np.random.default_rng(seed)
    direction = np.zeros(1152)
    direction[:8] = 8**-0.5
    y = np.arange(60) % 2
    return generator.normal(size=(60, 1, 1152)) + 12 * y[:, None, None] * direction, y, direction


def main() -> None:
    """Print the table."""
    train, test = load_expertise(subset="train"), load_expertise(subset="test")
    model = LanguageModel("builtin:tutor")
    reader = EffectReader(model).fit(test.data, test.target, test.groups)
    X, y, direction = planted()
    times: dict[str, list[float]] = {name: [] for name in LEARNERS}
    SteeringEstimator(model).fit(train.data, train.target, train.groups)  # the activations are remembered from here on
    for _ in range(REPETITIONS):
        for name in LEARNERS:
            start = time.perf_counter()
            SteeringEstimator(model, learner=name).fit(train.data, train.target, train.groups)
            times[name].append(time.perf_counter() - start)
    print(f"effect spans at layer {LAYER}, {len(QUESTIONS)} questions")
    print(f"{'learner':14}{'planted cosine':>16}{'test accuracy':>16}{'effect span':>14}{'fit time / probe':>18}")
    for name in LEARNERS:
        cosine = float(LayerwiseDirections(name, cv=2).fit(X, y).directions_[0] @ direction)
        estimator = SteeringEstimator(model, learner=name).fit(train.data, train.target, train.groups)
        accuracy = estimator.layer_scores(test.data, test.target).max()
        cells = sweep(estimator, QUESTIONS, reader=reader, layers=[LAYER], alphas=[-0.3, 0.3], controls=())
        effects = cells.pivot("effect").loc[LAYER]
        ratio = statistics.median(a / b for a, b in zip(times[name], times["probe"], strict=True))
        print(f"{name:14}{cosine:16.3f}{accuracy:16.3f}{effects[0.3] - effects[-0.3]:14.3f}{ratio:18.2f}")


if __name__ == "__main__":
    main()
