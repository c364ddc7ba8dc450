"""`neighbourhood`: how far a direction may be turned, and how far chance turns it, until it no longer steers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from steerkit.activations import check_texts
from steerkit.checks import check_count
from steerkit.controls import steered_layers
from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import ContrastSetError, InvalidInputError
from steerkit.labels import check_labels
from steerkit.prompts import Prompt
from steerkit.reading import EffectReader
from steerkit.resampling import resamples
from steerkit.sweeps import sweep

ANGLES = (15.0, 30.0, 45.0, 60.0, 75.0, 90.0)


@dataclass(frozen=True)
class Neighbourhood:
    """What directions near the fitted one do.

    Attributes
    ----------
    table : DataFrame
        A row per direction: ``kind`` ("fitted", "rotated", "bootstrap"), ``angle`` to the fitted one in degrees,
        ``span`` (the effect at the upper alpha minus that at the lower, in units of alpha) and ``preserved`` (the share
        of answers that still answer their question, at the worse end).
    cone : float
        The angle in degrees at which the mean span of rotated directions falls to half of the fitted one's; NaN if it
        does not within the angles.
    layer : int
    alphas : tuple of float
    """

    table: pd.DataFrame
    cone: float
    layer: int
    alphas: tuple[float, float]

    def means(self) -> pd.DataFrame:
        """Return mean and standard error of span and preservation of rotated directions, by angle; 0 is the fitted."""
        rotated = self.table[self.table["kind"] != "bootstrap"]
        return rotated.groupby("angle")[["span", "preserved"]].agg(["mean", "sem"])


def neighbourhood(
    estimator: SteeringEstimator,
    prompts: Sequence[Prompt],
    *,
    reader: EffectReader,
    alphas: tuple[float, float],
    layer: int | None = None,
    data: Sequence[Any] = (),
    target: ArrayLike = (),
    pairs: ArrayLike | None = None,
    angles: Sequence[float] = ANGLES,
    n_planes: int = 4,
    n_bootstrap: int = 8,
    random_state: int = 0,
    **options: Any,
) -> Neighbourhood:
    """Steer with directions turned away from the fitted one, and with those of bootstrap samples.

    A direction that is turned by an angle in a random plane keeps the angle's cosine of what the fitted one has; if
    that were all, the effect would follow the cosine. It cannot see planes in which all that is near steers as well:
    random planes hardly ever hold one.

    Parameters
    ----------
    estimator : fitted SteeringEstimator
        Of two classes.
    prompts, reader
        As in `sweep`.
    alphas : (float, float)
        The lower and the upper end between which the effect is measured, such as `Calibration.alphas`.
    layer : int, optional
        Default: the estimator's own.
    data, target, pairs : texts, labels and, where there were any, pairs
        What the estimator was fitted to, for the bootstrap; without them there is none.
    angles : sequence of float
        Degrees in (0, 90].
    n_planes : int
        Random planes in which the direction is turned, the same for all angles.
    n_bootstrap : int
        Samples of ``data`` with replacement, as many of each class as there are, or whole pairs; 0 leaves them out.
    random_state : int
    **options
        As in `sweep`: ``distractors``, ``max_new_tokens``, ``resume``, ``n_jobs``, ``progress`` ...
    """
    steered_layers(estimator, "auto")
    layer = int(estimator.layer_ if layer is None else layer)
    ends = [float(alpha) for alpha in alphas]
    lower, upper = ends[0], ends[-1]
    if len(ends) != 2 or not lower < upper or not lower * upper <= 0:
        raise InvalidInputError(f"alphas={alphas!r} is no lower and upper end around 0; pass two, such as (-0.1, 0.1).")
    turns = sorted({float(angle) for angle in np.atleast_1d(np.asarray(angles, dtype=np.float64))})
    if not turns or not 0 < turns[0] <= turns[-1] <= 90:
        raise InvalidInputError(f"angles={angles!r} are not all above 0 and at most 90; pass degrees such as 45.")
    fitted = np.asarray(estimator.vector(layer).direction, dtype=np.float64)
    chance = np.random.default_rng(random_state)
    named = {
        ("rotated", angle, f"{angle:g}° in plane {plane}"): direction
        for plane in range(check_count("n_planes", n_planes))
        for angle, direction in zip(turns, _turned(fitted, turns, chance), strict=True)
    }
    texts, labels = (check_texts(data) if len(data) else []), np.asarray(target)
    if len(texts) != len(labels) or (texts and set(labels.tolist()) != set(estimator.classes_.tolist())):
        raise ContrastSetError(
            f"{len(texts)} texts and {len(labels)} labels came for the bootstrap, as many of the classes "
            f"{estimator.classes_.tolist()} were expected; pass what the estimator was fitted to."
        )
    if check_count("n_bootstrap", n_bootstrap, least=0) and texts:
        found = _bootstrap(estimator, layer, texts, labels, pairs, n_bootstrap)
        named |= {("bootstrap", _angle(fitted, one), f"bootstrap {number}"): one for number, one in enumerate(found)}
    swept = sweep(
        estimator, prompts, reader=reader, layers=[layer], alphas=[lower, upper], controls=(),
        directions={name: direction for (_, _, name), direction in named.items()}, random_state=random_state, **options,
    )  # fmt: skip
    means = swept.means().set_index(["direction", "alpha"])
    bare = {"effect": 0.0, "preserved": float(means.loc[("unsteered", 0.0), "preserved"])}

    def at_ends(metric: str, name: str) -> tuple[float, float]:
        low, high = (float(means.loc[(name, a), metric]) if a else bare[metric] for a in (lower, upper))
        return low, high

    rows = []
    for kind, angle, name in [("fitted", 0.0, "fitted"), *named]:
        low, high = at_ends("effect", name)
        rows.append((kind, angle, high - low, min(at_ends("preserved", name))))
    table = pd.DataFrame(rows, columns=["kind", "angle", "span", "preserved"])
    return Neighbourhood(table, _cone(table), layer, (lower, upper))


def _turned(direction: NDArray[np.float64], degrees: Sequence[float], chance: np.random.Generator) -> list[Any]:
    """Return a unit vector turned by each angle, all in one random plane."""
    across = chance.normal(size=direction.shape)
    across -= (across @ direction) * direction
    across /= np.linalg.norm(across)
    angles = np.deg2rad(degrees)
    return [np.cos(angle) * direction + np.sin(angle) * across for angle in angles]


def _bootstrap(
    estimator: SteeringEstimator,
    layer: int,
    texts: list[Any],
    labels: NDArray[Any],
    pairs: ArrayLike | None,
    number: int,
) -> list[NDArray[np.float64]]:
    """Return the directions that the same learner finds in samples drawn with replacement."""
    found = []
    _, codes = check_labels(labels)
    for rows, drawn in resamples(codes, None if pairs is None else np.asarray(pairs), number):
        refitted = clone(estimator).set_params(layers=[layer], layer=layer, n_bootstrap=0)
        refitted.fit([texts[row] for row in rows], labels[rows], pairs=drawn)
        found.append(np.asarray(refitted.directions_[0], dtype=np.float64))
    return found


def _angle(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """In degrees."""
    cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def _cone(table: pd.DataFrame) -> float:
    """Interpolate between the angles where the mean span crosses half of the fitted one's."""
    spans: Mapping[Any, float] = table[table["kind"] != "bootstrap"].groupby("angle")["span"].mean().to_dict()
    half, angles = spans[0.0] / 2, list(spans)
    for before, after in pairwise(angles):
        if 0 < half < spans[before] and spans[after] <= half:
            return float(before + (after - before) * (spans[before] - half) / (spans[before] - spans[after]))
    return float("nan")
