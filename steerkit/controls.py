"""What a sweep steers with: the fitted directions, and others of equal norm beside them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steerkit.activations import resolve_layers
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError, NonFiniteError, NotFittedError
from steerkit.language_model import LanguageModel

CONTROLS = ("random", "shuffled")


def steered_layers(estimator: SteeringEstimator, layers: Any) -> list[int]:
    """Return the layers to steer at, ascending; ``"auto"`` means all that have a direction.

    Raises
    ------
    NotFittedError, InvalidInputError, LayerError
    """
    if not hasattr(estimator, "layers_"):
        raise NotFittedError("the estimator is not fitted; call its fit first.")
    if estimator.directions_.ndim > 2:
        raise InvalidInputError(
            f"the estimator has {len(estimator.classes_)} classes, a sweep goes from one to another; fit it to two."
        )
    if isinstance(layers, str) and layers == "auto":
        fitted = zip(estimator.layers_, estimator.directions_, strict=True)
        return [layer for layer, direction in fitted if direction.any()]
    return resolve_layers(LanguageModel.of(estimator.model), layers)


def check_alphas(alphas: Any) -> list[float]:
    """Return the alphas other than 0, ascending, or raise `NonFiniteError`."""
    try:
        strengths = sorted({float(alpha) for alpha in np.atleast_1d(np.asarray(alphas, dtype=float))} - {0.0})
    except (TypeError, ValueError):
        strengths = []
    if not strengths or not np.isfinite(strengths).all():
        raise NonFiniteError(f"alphas={alphas!r} must hold finite numbers other than 0; pass fractions such as [0.1].")
    return strengths


def control_directions(
    estimator: SteeringEstimator,
    layers: Sequence[int],
    controls: Sequence[str],
    prompts: Sequence[Any],
    random_state: int,
    others: Mapping[str, ArrayLike],
) -> dict[str, Callable[[int, int], NDArray[np.float32]]]:
    """Return what is added at alpha 1, ``(hidden size,)``, for "fitted", each control and others, by layer and prompt.

    ``others`` are ``(hidden size,)`` or one for each layer.

    Raises
    ------
    InvalidInputError
        A control is unknown or not to be had.
    """
    if len({*controls}) < len(controls) or not {*controls} <= {*CONTROLS}:
        raise InvalidInputError(f"controls={controls!r} is not known; pass some of {', '.join(map(repr, CONTROLS))}.")
    vectors = {layer: estimator.vector(layer) for layer in layers}
    size = estimator.directions_.shape[-1]

    def scaled(layer: int, direction: Any) -> NDArray[np.float32]:
        length = np.linalg.norm(direction) or 1.0
        return np.asarray(vectors[layer].norm * direction / length, dtype=np.float32)

    every: dict[str, Callable[[int, int], NDArray[np.float32]]] = {
        "fitted": lambda layer, _: scaled(layer, vectors[layer].direction),
        "random": lambda layer, place: scaled(layer, _drawn(random_state, layer, prompts[place], size)),
        "shuffled": lambda layer, _: scaled(layer, shuffled[estimator.layers_.index(layer)]),
    }
    shuffled = estimator.shuffled_directions_
    if "shuffled" in controls and not shuffled.any():
        raise InvalidInputError(
            f"{estimator.learner!r} has no directions of shuffled labels, as its own were given or a class has one "
            "text; leave out that control."
        )
    chosen = {kind: every[kind] for kind in ("fitted", *controls)}
    for name, given in others.items():
        rows = _rows(name, given, len(layers), size)
        chosen[name] = partial(_of_layer, {layer: scaled(layer, row) for layer, row in zip(layers, rows, strict=True)})
    return chosen


def _drawn(random_state: int, layer: int, prompt: Any, size: int) -> NDArray[np.float64]:
    """Return a random direction that depends on nothing else, so that a larger sweep has the same ones."""
    name = hashlib.sha256(f"{random_state}/{layer}/{prompt}".encode()).digest()
    return np.random.default_rng(int.from_bytes(name)).normal(size=size)


def _of_layer(steps: Mapping[int, NDArray[np.float32]], layer: int, _prompt: int) -> NDArray[np.float32]:
    return steps[layer]


def _rows(name: str, given: ArrayLike, n_layers: int, size: int) -> NDArray[np.float64]:
    """Return a direction of the caller's as ``(n_layers, hidden size)``."""
    rows = np.asarray(given, dtype=np.float64)
    if name in ("fitted", "unsteered", *CONTROLS) or name.startswith("prompted "):
        raise InvalidInputError(f"directions[{name!r}] has a name that a sweep uses itself; call it something else.")
    if rows.shape not in ((size,), (n_layers, size)):
        raise InvalidInputError(
            f"directions[{name!r}] has shape {rows.shape}, ({size},) or ({n_layers}, {size}) was expected; pass one "
            "for all steered layers or for each."
        )
    if not np.isfinite(rows).all() or not rows.any(axis=-1).all():
        raise InvalidInputError(f"directions[{name!r}] is zero or not finite, so it points nowhere; pass another.")
    return np.broadcast_to(rows, (n_layers, size))
