"""The sparse probe solves scikit-learn's L1 problem, for all layers in one training."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from steerkit.exceptions import InvalidInputError
from steerkit.layerwise import LayerwiseDirections
from steerkit.sparse_probe import SparseProbe


def layers(*, n: int = 160, n_layers: int = 3, d: int = 60, seed: int = 0) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 2
    X = generator.normal(size=(n, n_layers, d))
    X[:, :, :5] += 0.8 * y[:, None, None]
    return X, y


def objective(weights: Any, intercept: Any, X: Any, y: Any, C: float) -> float:
    margins = (2 * y - 1) * (X @ weights + intercept)
    return float(np.abs(weights).sum() + C * np.logaddexp(0, -margins).sum())


@pytest.mark.parametrize("C", [0.05, 0.3, 1.0])
def test_it_is_the_solution_of_scikit_learn(C: float) -> None:
    X, y = layers()
    fresh, _ = layers(seed=1)
    for layer, probe in enumerate(SparseProbe(C=C).fit_layers(X, y)):
        data = X[:, layer]
        known = LogisticRegression(l1_ratio=1.0, C=C, solver="saga", tol=1e-6, max_iter=100_000).fit(data, y)
        mine = objective(probe.coef_[0], probe.intercept_[0], data, y, C)
        assert mine <= objective(known.coef_[0], known.intercept_[0], data, y, C) * (1 + 1e-3)
        theirs = set(np.flatnonzero(known.coef_[0]))
        assert len(theirs & set(probe.support_)) >= 0.9 * len(theirs | set(probe.support_))
        assert abs(probe.score(fresh[:, layer], y) - known.score(fresh[:, layer], y)) <= 0.005


def test_all_layers_in_one_training_are_each_alone() -> None:
    X, y = layers()
    together = SparseProbe(C=0.3).fit_layers(X, y)
    for layer, probe in enumerate(together):
        alone = SparseProbe(C=0.3).fit(X[:, layer], y)
        np.testing.assert_allclose(probe.coef_, alone.coef_, atol=1e-4)
        np.testing.assert_array_equal(probe.support_, alone.support_)


def test_the_objective_never_rises_and_zeros_are_exact() -> None:
    X, y = layers()
    probe = SparseProbe(C=0.3).fit(X[:, 0], y)
    assert all(after <= before + 1e-12 for before, after in zip(probe.history_, probe.history_[1:], strict=False))
    assert 0 < len(probe.support_) < 60
    assert (np.delete(probe.coef_[0], probe.support_) == 0).all()
    assert probe.n_iter_ == len(probe.history_)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_k_neurons_are_kept(k: int) -> None:
    X, y = layers()
    for probe in SparseProbe(k=k).fit_layers(X, y):
        assert len(probe.support_) == k


def test_the_kept_neurons_have_the_weights_of_scikit_learn_s_ridge() -> None:
    X, y = layers()
    probe = SparseProbe(C=0.5, k=8).fit(X[:, 0], y)
    ridge = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(X[:, 0][:, probe.support_], y)
    np.testing.assert_allclose(probe.coef_[0, probe.support_], ridge.coef_[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(probe.intercept_, ridge.intercept_, rtol=1e-3, atol=1e-4)


def test_as_many_neurons_are_kept_where_one_would_do() -> None:
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(80, 30)), np.arange(80) % 2
    X[:, 3] += 20 * y
    assert len(SparseProbe(k=6).fit(X, y).support_) == 6


def test_the_largest_weights_are_found() -> None:
    X, y = layers()
    assert {0, 1, 2, 3, 4} <= set(SparseProbe(k=12).fit(X[:, 0], y).support_)


def test_it_is_a_learner_of_the_estimator_silent_and_deterministic(capfd: pytest.CaptureFixture[str]) -> None:
    X, y = layers()
    state = torch.random.get_rng_state()
    one, other = LayerwiseDirections("sparse-probe").fit(X, y), LayerwiseDirections("sparse-probe").fit(X, y)
    np.testing.assert_array_equal(one.directions_, other.directions_)
    assert one.accuracies_.min() > 0.7
    assert (torch.random.get_rng_state() == state).all()
    assert capfd.readouterr() == ("", "")


def test_too_few_steps_warn() -> None:
    X, y = layers()
    with pytest.warns(ConvergenceWarning, match="the sparse probe did not converge in 1 steps;"):
        SparseProbe(C=1.0, max_iter=1).fit(X[:, 0], y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SparseProbe(C=1.0).fit(X[:, 0], y)


def test_senseless_settings_are_refused() -> None:
    X, y = layers()
    with pytest.raises(InvalidInputError, match=re.escape("C=0 is no number above 0; pass such a number.")):
        SparseProbe(C=0).fit(X[:, 0], y)
    with pytest.raises(
        InvalidInputError,
        match=re.escape("k=61 is outside 1..60, the number of features; pass a whole number of them."),
    ):
        SparseProbe(k=61).fit(X[:, 0], y)
    with pytest.raises(InvalidInputError, match=re.escape("k=2.5 is outside 1..60, the number of features; pass a ")):
        SparseProbe(k=2.5).fit(X[:, 0], y)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=re.escape("C='1' is no number above 0; pass such a number.")):
        SparseProbe(C="1").fit(X[:, 0], y)  # type: ignore[arg-type]


def test_any_memory_layout_will_do() -> None:
    X, y = np.random.default_rng(0).normal(size=(20, 3, 8)), np.arange(20) % 2
    forward, backward = SparseProbe().fit_layers(X, y), SparseProbe().fit_layers(X[::-1], y[::-1])
    np.testing.assert_allclose(forward[0].coef_, backward[0].coef_, atol=1e-6)


def test_a_constant_layer_keeps_no_neuron() -> None:
    X, y = np.random.default_rng(0).normal(size=(20, 2, 8)), np.arange(20) % 2
    X[:, 0] = X[0, 0]
    constant, other = SparseProbe(k=3).fit_layers(X, y)
    assert not len(constant.support_)
    assert len(other.support_) == 3
