"""Claim: probes at every layer and fold come several times as fast as from scikit-learn, at the same optimum.

``python benchmarks/probes.py`` fits 26 layers x 5 folds of 240 samples x 1152 features on one thread (row B):
scikit-learn's ``LogisticRegression`` in a loop, converged, and `LogisticProbe`; classes are balanced, so the objectives
are the same.
"""

from functools import partial
from typing import Any

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


def compare(name: str, X: NDArray[np.float64], y: NDArray[np.int64]) -> None:
    """Check that both are at one optimum, and time them."""
    folds = [train for train, _ in StratifiedKFold(5, shuffle=True, random_state=0).split(X[:, 0], y)]

    def peer(**options: Any) -> list[list[LogisticRegression]]:
        make = partial(LogisticRegression, max_iter=10_000, **options)
        return [[make().fit(X[fold, layer], y[fold]) for layer in range(N_LAYERS)] for fold in folds]

    def mine() -> list[list[LogisticProbe]]:
        return LogisticProbe().fit_subsets(X, [(fold, y[fold]) for fold in folds])

    converged = partial(peer, tol=1e-8)
    cosines, excesses = [], []
    for fold, probes, others in zip(folds, mine(), converged(), strict=True):
        for layer, (probe, other) in enumerate(zip(probes, others, strict=True)):
            one, two = probe.coef_[0], other.coef_[0]
            cosines.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
            at = X[fold, layer], y[fold]
            excesses.append(objective(probe, *at) / objective(other, *at) - 1)
    print(f"{name}: least cosine of the coefficients {min(cosines):.9f}")
    print(f"{name}: largest excess of the objective over scikit-learn's, relative, {max(excesses):.1e}")
    if min(cosines) < 0.9999 or max(excesses) > 1e-9:
        raise SystemExit("the probes are not at scikit-learn's optimum")
    times = interleaved({"converged": converged, "default": peer, "steerkit": mine}, repetitions=3)
    short = ratio(times, "default", "steerkit")
    print(f"{name}: scikit-learn with its default tolerance, which ends short of it / steerkit: {short:.1f} x")
    show(f"B probes, {name}, scikit-learn's loop / steerkit", ratio(times, "converged", "steerkit"), 6)


def main() -> None:
    """Print what was measured."""
    one_thread()
    X, y = activations()
    compare("activations of unit norm, as steerkit scales them", X, y)
    compare("activations of norms from 20 to 200, as a model has them", X * np.linspace(20, 200, N_LAYERS)[:, None], y)


if __name__ == "__main__":
    main()
