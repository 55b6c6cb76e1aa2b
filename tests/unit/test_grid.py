"""The cut of the input's bytes into units."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.grid import count, make_grid, span, units

MiB = 1024**2
totals = st.one_of(st.integers(1, 10**5), st.integers(1, 10**13))


@given(total=totals)
def test_units_partition_the_bytes_in_order(total: int) -> None:
    grid = make_grid(total)
    spans = [span(grid, unit) for unit in units(grid)]
    assert spans[0][0] == 0
    assert spans[-1][1] == total
    assert all(start < end for start, end in spans)
    assert all(before[1] == after[0] for before, after in pairwise(spans))


@given(total=totals)
def test_the_last_tenth_is_cut_into_quarters(total: int) -> None:
    grid = make_grid(total)
    tail = total - grid.head_units * grid.unit_bytes
    assert grid.tail_bytes * 4 <= grid.unit_bytes
    assert total / 10 <= tail <= total / 10 + grid.unit_bytes + 1
    head = [span(grid, unit) for unit in range(grid.head_units)]
    assert all(end - start == grid.unit_bytes for start, end in head)


@given(total=totals)
def test_there_are_never_many_units(total: int) -> None:
    grid = make_grid(total)
    assert grid.head_units <= 3000
    assert count(grid) < 20_000


def test_a_dozen_prompts_make_several_units() -> None:
    assert count(make_grid(12 * 80)) >= 3


def test_small_data_make_about_200_head_units() -> None:
    assert make_grid(10**6).head_units == 200
    assert make_grid(10**9).head_units == 200


def test_units_hold_16_mib_at_most_until_there_would_be_too_many() -> None:
    assert make_grid(50 * 10**9).unit_bytes == 16 * MiB
    assert make_grid(10**13).unit_bytes > 16 * MiB
    assert make_grid(10**13).head_units == 3000


def test_no_bytes_make_no_units() -> None:
    assert count(make_grid(0)) == 0


@pytest.mark.parametrize("unit", [-1, 102])
def test_a_unit_outside_the_grid_is_refused(unit: int) -> None:
    grid = make_grid(10_000)
    assert -1 < 102 >= count(grid)
    with pytest.raises(IndexError):
        span(grid, unit)
