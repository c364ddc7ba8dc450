"""Directions near the fitted one: they are turned by the angle that they claim, and measured as a sweep would."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerkit.estimator import SteeringEstimator
from steerkit.exceptions import InvalidInputError
from steerkit.language_model import LanguageModel
from steerkit.neighbourhood import _cone, _turned, neighbourhood
from steerkit.reading import EffectReader
from steerkit.sweeps import sweep
from tests.models import LABELS, TEXTS


@pytest.fixture(scope="module")
def reader(fitted: SteeringEstimator) -> EffectReader:
    return EffectReader(LanguageModel.of(fitted.model), max_new_tokens=6).fit(TEXTS, LABELS)


def test_a_direction_is_turned_by_the_angle_in_one_plane() -> None:
    chance = np.random.default_rng(0)
    direction = np.eye(24)[3]
    turned = _turned(direction, [30.0, 60.0, 90.0], chance)
    assert [one @ direction for one in turned] == pytest.approx(np.cos(np.deg2rad([30, 60, 90])), abs=1e-12)
    assert [np.linalg.norm(one) for one in turned] == pytest.approx([1, 1, 1])
    assert turned[0] @ turned[2] == pytest.approx(np.cos(np.deg2rad(60)))


def test_its_fitted_row_is_that_of_a_sweep(fitted: SteeringEstimator, reader: EffectReader) -> None:
    found = neighbourhood(
        fitted, TEXTS[:3], reader=reader, layer=2, alphas=(-0.5, 0.5), angles=[45, 90], n_planes=2,
        data=TEXTS, target=LABELS, n_bootstrap=3, max_new_tokens=6,
    )  # fmt: skip
    assert found.table["kind"].value_counts().to_dict() == {"rotated": 4, "bootstrap": 3, "fitted": 1}
    assert sorted(found.means().index) == [0.0, 45.0, 90.0]
    bootstrap = found.table[found.table["kind"] == "bootstrap"]
    assert bootstrap["angle"].between(0, 180, inclusive="neither").all()
    swept = sweep(fitted, TEXTS[:3], reader=reader, layers=[2], alphas=[-0.5, 0.5], max_new_tokens=6)
    effect, kept = swept.pivot("effect").loc[2], swept.pivot("preserved").loc[2]
    row = found.table.iloc[0]
    assert row["span"] == pytest.approx(effect[0.5] - effect[-0.5], rel=1e-4)
    assert row["preserved"] == min(kept[0.5], kept[-0.5])


def test_an_end_may_be_unsteered(fitted: SteeringEstimator, reader: EffectReader) -> None:
    found = neighbourhood(
        fitted, TEXTS[:2], reader=reader, layer=2, alphas=(0, 0.5), angles=[90], n_planes=1, max_new_tokens=6
    )
    swept = sweep(fitted, TEXTS[:2], reader=reader, layers=[2], alphas=[0.5], max_new_tokens=6)
    assert found.table.iloc[0]["span"] == pytest.approx(swept.pivot("effect").loc[2, 0.5], rel=1e-4)


def test_the_cone_ends_where_half_of_the_span_is_left() -> None:
    angles = np.arange(0, 91, 15.0)
    table = pd.DataFrame({"kind": "rotated", "angle": angles, "span": np.cos(np.deg2rad(angles))})
    assert _cone(table) == pytest.approx(60)
    assert np.isnan(_cone(table[:3]))
    assert np.isnan(_cone(table.assign(span=[-1, 0.2, -0.8, -0.9, 0, 0, 0])))


def test_the_bootstrap_goes_by_place_and_joins_pairs(fitted: SteeringEstimator, reader: EffectReader) -> None:
    options: dict[str, Any] = {"reader": reader, "layer": 2, "alphas": (-0.5, 0.5), "angles": 90, "n_planes": 1}
    options |= {"target": LABELS, "n_bootstrap": 3, "max_new_tokens": 6}
    by_list = neighbourhood(fitted, TEXTS[:2], data=TEXTS, **options)
    by_series = neighbourhood(fitted, TEXTS[:2], data=pd.Series(TEXTS, index=range(100, 112)), **options)
    pd.testing.assert_frame_equal(by_list.table, by_series.table)
    pairs = np.empty(12, dtype=int)
    pairs[np.asarray(LABELS) == 0] = pairs[np.asarray(LABELS) == 1] = np.arange(6)
    paired = SteeringEstimator(fitted.model, learner="pca", cv=2).fit(TEXTS, LABELS, pairs=pairs)
    near = neighbourhood(paired, TEXTS[:2], data=TEXTS, pairs=pairs, **options).table
    assert (near["kind"] == "bootstrap").sum() == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"alphas": (0.1, 0.2)},
            "alphas=(0.1, 0.2) is no lower and upper end around 0; pass two, such as (-0.1, 0.1).",
        ),
        ({"angles": [0, 20]}, "angles=[0, 20] are not all above 0 and at most 90; pass degrees such as 45."),
        (
            {"alphas": (-0.1, 0, 0.1)},
            "alphas=(-0.1, 0, 0.1) is no lower and upper end around 0; pass two, such as (-0.1",
        ),
        ({"data": TEXTS, "target": LABELS[:8]}, "12 texts and 8 labels came for the bootstrap, as many of the classes"),
        ({"data": TEXTS, "target": ["a", "b"] * 6}, "12 texts and 12 labels came for the bootstrap, as many of the"),
        ({"n_planes": 0}, "n_planes=0 is no whole number from 1 up; pass such a number."),
    ],
)
def test_senseless_settings_are_refused(
    fitted: SteeringEstimator, reader: EffectReader, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"^{re.escape(expected)}"):
        neighbourhood(fitted, TEXTS[:2], reader=reader, **{"alphas": (-0.5, 0.5), **options})
