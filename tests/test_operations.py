"""Laws of the three edits, for any hidden states and directions."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from steerkit.operations import OPERATIONS, ablate, add, clamp

FINITE = st.floats(-50, 50, width=32)
HIDDEN = arrays(np.float64, (3, 4, 8), elements=FINITE).map(torch.from_numpy)
AMOUNT = st.floats(-20, 20)


def unit(values: Any) -> torch.Tensor:
    vector = torch.from_numpy(values)
    return vector / vector.norm()


UNIT = arrays(np.float64, 8, elements=FINITE).filter(lambda v: np.linalg.norm(v) > 1e-3).map(unit)


@given(HIDDEN, UNIT)
def test_adding_nothing_is_identity(hidden: torch.Tensor, direction: torch.Tensor) -> None:
    assert torch.equal(add(hidden, direction, torch.tensor(0.0)), hidden)


@given(HIDDEN, UNIT, AMOUNT)
def test_add_moves_the_projection_by_the_amount(hidden: torch.Tensor, direction: torch.Tensor, amount: float) -> None:
    moved = add(hidden, direction, torch.tensor(amount, dtype=torch.float64))
    torch.testing.assert_close(moved @ direction - hidden @ direction, torch.full((3, 4), amount, dtype=torch.float64))


@given(HIDDEN, UNIT)
def test_ablating_twice_is_ablating_once(hidden: torch.Tensor, direction: torch.Tensor) -> None:
    once = ablate(hidden, direction, torch.tensor(1.0))
    torch.testing.assert_close(once @ direction, torch.zeros(3, 4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(ablate(once, direction, torch.tensor(1.0)), once, atol=1e-9, rtol=0)


@given(HIDDEN, UNIT, AMOUNT)
def test_clamp_sets_the_projection(hidden: torch.Tensor, direction: torch.Tensor, amount: float) -> None:
    clamped = clamp(hidden, direction, torch.tensor(amount, dtype=torch.float64))
    torch.testing.assert_close(clamped @ direction, torch.full((3, 4), amount, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", list(OPERATIONS))
@given(
    hidden=HIDDEN,
    directions=arrays(np.float64, (3, 8), elements=FINITE),
    amounts=arrays(np.float64, 3, elements=AMOUNT),
)
def test_one_edit_per_row_equals_a_call_per_row(name: str, hidden: Any, directions: Any, amounts: Any) -> None:
    operation, directions, amounts = OPERATIONS[name], torch.from_numpy(directions), torch.from_numpy(amounts)
    together = operation(hidden, directions, amounts)
    for row in range(3):
        alone = operation(hidden[row : row + 1], directions[row], amounts[row])
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_rows_are_repeated_when_beams_widen_the_batch(name: str) -> None:
    torch.manual_seed(0)
    hidden, directions, amounts = torch.randn(2, 4, 8), torch.randn(2, 8), torch.tensor([1.0, -2.0])
    wide = OPERATIONS[name](hidden.repeat_interleave(3, dim=0), directions, amounts)
    torch.testing.assert_close(wide, OPERATIONS[name](hidden, directions, amounts).repeat_interleave(3, dim=0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    direction = torch.eye(8)[0]
    assert OPERATIONS[name](torch.ones(1, 2, 8, dtype=dtype), direction, torch.tensor([0.5])).dtype == dtype
