"""Claim: probes at every layer and fold come several times as fast as from scikit-learn, at the same optimum.

``python benchmarks/probes.py`` fits 26 layers x 5 folds of 240 samples x 1152 features on one thread (row B):
scikit-learn's ``LogisticRegression`` in a loop, as the toolkit's default asks for it, and `LogisticProbe`.
"""

import numpy as np
from measure import interleaved, one_thread, ratio, show
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from steerkit.logistic_probe import LogisticProbe

N_SAMPLES, N_LAYERS, N_FEATURES = 240, 26, 1152


def activations(seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return ``(n_samples, n_layers, n_features)`` of mean norm one, with classes further apart from layer to layer."""
    generator = np.random.default_rng(seed)
    y = np.arange(N_SAMPLES) % 2
    spread = generator.lognormal(sigma=1.0, size=N_FEATURES)  # few features are large, as in residual streams
    X = generator.normal(size=(N_SAMPLES, N_LAYERS, N_FEATURES)) * spread
    direction = generator.normal(size=(N_LAYERS, N_FEATURES)) * np.linspace(0, 1, N_LAYERS)[:, None]
    X += y[:, None, None] * direction
    return X / np.linalg.norm(X, axis=2).mean(axis=0)[:, None], y


def objective(model: LogisticProbe | LogisticRegression, X: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    """Return what both minimise."""
    margins = X @ model.coef_[0] + model.intercept_[0]
    costs = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    losses = np.logaddexp(0, margins) - y * margins
    return float((model.coef_**2).sum() / 2 + model.C * (costs * losses).sum())


def main() -> None:
    """Print what was measured."""
    one_thread()
    X, y = activations()
    folds = [train for train, _ in StratifiedKFold(5, shuffle=True, random_state=0).split(X[:, 0], y)]

    def peer() -> list[list[LogisticRegression]]:
        make = {"class_weight": "balanced", "tol": 1e-8, "max_iter": 1000}
        return [[LogisticRegression(**make).fit(X[f, layer], y[f]) for layer in range(N_LAYERS)] for f in folds]

    def defaults() -> list[list[LogisticRegression]]:
        return [[LogisticRegression().fit(X[f, layer], y[f]) for layer in range(N_LAYERS)] for f in folds]

    def mine() -> list[list[LogisticProbe]]:
        return LogisticProbe().fit_subsets(X, [(fold, y[fold]) for fold in folds])

    cosines, excesses = [], []
    for fold, probes, others in zip(folds, mine(), peer(), strict=True):
        for layer, (probe, other) in enumerate(zip(probes, others, strict=True)):
            one, two = probe.coef_[0], other.coef_[0]
            cosines.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
            at = X[fold, layer], y[fold]
            excesses.append(objective(probe, *at) / objective(other, *at) - 1)
    print(f"least cosine of the coefficients: {min(cosines):.10f}")
    print(f"largest excess of the objective over scikit-learn's, relative: {max(excesses):.1e}")
    if min(cosines) < 0.9999 or max(excesses) > 1e-9:
        raise SystemExit("the probes are not at scikit-learn's optimum")
    times = interleaved({"scikit-learn": peer, "with its defaults": defaults, "steerkit": mine}, repetitions=5)
    print(f"scikit-learn with its default tolerance / steerkit: {ratio(times, 'with its defaults', 'steerkit'):.1f} x")
    show("B probes, scikit-learn's loop / steerkit", ratio(times, "scikit-learn", "steerkit"), 6)


if __name__ == "__main__":
    main()
