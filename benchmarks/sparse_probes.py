"""Claim: sparse probes of all layers, at the optimum of their penalty, in one training that keeps up with liblinear.

``python benchmarks/sparse_probes.py`` fits L1-penalised logistic regressions to 26 layers of 240 samples x 1152
features (row E): scikit-learn's liblinear and saga in loops over the layers, and one `SparseProbe` training. The excess
of the objective is relative to the least that any of them reached at a layer; supports are compared by Jaccard index.
"""

import warnings

import numpy as np
from measure import interleaved, one_thread, ratio, show
from numpy.typing import NDArray
from probes import activations
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from steerkit.sparse_probe import SparseProbe


def objective(model: SparseProbe | LogisticRegression, X: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    """Return what all of them minimise."""
    margins = X @ model.coef_[0] + model.intercept_[0]
    return float(np.abs(model.coef_).sum() + model.C * (np.logaddexp(0, margins) - y * margins).sum())


def main() -> None:
    """Print what was measured."""
    one_thread()
    X, y = activations()
    X *= np.sqrt(X.shape[2])  # the unit of features, in which the toolkit's sparse probe is fitted
    layers = range(X.shape[1])
    warnings.simplefilter("ignore", ConvergenceWarning)
    for C, least in ((0.1, 1.2), (0.3, 0.6)):

        def liblinear(C: float = C) -> list[LogisticRegression]:
            # intercept_scaling makes liblinear's penalty on its intercept as good as none
            make = {"C": C, "l1_ratio": 1.0, "solver": "liblinear", "intercept_scaling": 100.0, "tol": 1e-6}
            return [LogisticRegression(**make, max_iter=10_000).fit(X[:, layer], y) for layer in layers]

        def saga(C: float = C, n_layers: int = 2) -> list[LogisticRegression]:
            make = {"C": C, "l1_ratio": 1.0, "solver": "saga", "tol": 1e-4}
            return [LogisticRegression(**make, max_iter=300).fit(X[:, layer], y) for layer in layers[:n_layers]]

        def mine(C: float = C) -> list[SparseProbe]:
            return SparseProbe(C).fit_layers(X, y)

        fitted = {"steerkit": mine(), "liblinear": liblinear()}
        reached = {n: np.array([objective(m, X[:, i], y) for i, m in enumerate(ms)]) for n, ms in fitted.items()}
        best = np.min(list(reached.values()), axis=0)
        for name, values in reached.items():
            print(f"C={C}: {name}, largest excess of the objective, relative: {(values / best - 1).max():.1e}")
        supports = [[m.coef_[0] != 0 for m in ms] for ms in fitted.values()]
        jaccard = [(a & b).sum() / max(1, (a | b).sum()) for a, b in zip(*supports, strict=True)]
        size = np.mean([a.sum() for a in supports[0]])
        print(f"C={C}: median Jaccard index of the supports {np.median(jaccard):.2f}, mean size {size:.0f}")
        slow = saga()
        excess = max(objective(m, X[:, i], y) / best[i] - 1 for i, m in enumerate(slow))
        times = interleaved({"liblinear": liblinear, "saga": saga, "steerkit": mine}, repetitions=3)
        times["saga"] = [seconds * len(layers) / len(slow) for seconds in times["saga"]]
        print(f"C={C}: saga after 300 rounds, excess {excess:.1e}")
        show(f"E sparse probes at C={C}, saga / steerkit", ratio(times, "saga", "steerkit"), 20)
        show(f"E sparse probes at C={C}, liblinear / steerkit", ratio(times, "liblinear", "steerkit"), least)


if __name__ == "__main__":
    main()
