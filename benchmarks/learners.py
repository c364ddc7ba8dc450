"""Claim: every learner finds a planted direction, reads held-out domains and steers the built-in model.

``python benchmarks/learners.py`` prints a row per learner: the cosine to a direction planted among 60 samples of 1152
features; the accuracy on held-out domains at the best layer; at the layer named above the table the cosine between the
directions of 5 + 5 prompts and of all (the worst of 8 draws), and the effect span of alpha -0.3 to +0.3; and the median
time of its fits relative to the default probe's, interleaved. An autoencoder's features and the optimised direction
learn from other data than these prompts, and have no rows.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin make timings on a busy machine meaningless

import statistics
import time
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from steerkit import LanguageModel, LayerwiseDirections, SteeringEstimator, load_expertise, sweep
from steerkit.reading import EffectReader

LEARNERS: dict[str, Any] = {name: name for name in ("probe", "mean-diff", "mass-mean", "pca", "sparse-probe")}
LEARNERS["probe, C=100"] = LogisticRegression(C=100.0, max_iter=5000)
LAYER = 6
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
        for name, learner in LEARNERS.items():
            start = time.perf_counter()
            SteeringEstimator(model, learner=learner).fit(train.data, train.target, train.groups)
            times[name].append(time.perf_counter() - start)
    sides = [np.flatnonzero(np.asarray(train.target) == side) for side in (0, 1)]
    draw = np.random.default_rng(0)
    draws = [[int(i) for side in sides for i in draw.choice(side, 5, replace=False)] for _ in range(8)]
    print(f"layer {LAYER}, {len(QUESTIONS)} questions")
    print(f"{'learner':14}{'planted':>10}{'accuracy':>10}{'5+5':>10}{'effect':>10}{'time':>10}")
    for name, learner in LEARNERS.items():
        cosine = float(LayerwiseDirections(learner, cv=2).fit(X, y).directions_[0] @ direction)
        estimator = SteeringEstimator(model, learner=learner).fit(train.data, train.target, train.groups)
        accuracy = estimator.layer_scores(test.data, test.target).max()
        few = SteeringEstimator(model, learner=learner, layers=[LAYER], layer=LAYER)
        fits = [
            few.fit([train.data[i] for i in rows], [train.target[i] for i in rows]).directions_[0] for rows in draws
        ]
        worst = float(np.min(fits @ estimator.vector(LAYER).direction))
        cells = sweep(estimator, QUESTIONS, reader=reader, layers=[LAYER], alphas=[-0.3, 0.3], controls=()).cells
        means = cells.groupby("alpha")["effect"].mean()
        ratio = statistics.median(a / b for a, b in zip(times[name], times["probe"], strict=True))
        print(f"{name:14}{cosine:10.3f}{accuracy:10.3f}{worst:10.3f}{means[0.3] - means[-0.3]:10.3f}{ratio:10.2f}")


if __name__ == "__main__":
    main()
