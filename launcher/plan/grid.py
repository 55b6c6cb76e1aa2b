"""The cut of the input into units, from its size alone: no pass over the data, nothing stored.

Units are ranges of bytes in the virtual concatenation of the input files. Those at the end are a
quarter the size, so that the last replica at work is not left with much more than the others.
"""

from __future__ import annotations

from launcher.plan.types import UnitGrid

__all__ = ["count", "make_grid", "span", "units"]

_HEAD_SHARE = (9, 10)  # of the bytes; a fraction of integers, as floats lose bytes from 2**53 on
_FEW_HEAD_UNITS = 200
_MANY_HEAD_UNITS = 3000
_SMALLEST_BYTES = 256  # a dozen prompts still make several units
_LARGEST_BYTES = 16 * 1024**2  # what one replica reads, and may do again after a crash
_TAIL_DIVISOR = 4


def make_grid(total_bytes: int) -> UnitGrid:
    """Cut ``total_bytes`` into about 200 units, and more of at most 16 MiB where there is more.

    Parameters
    ----------
    total_bytes
        Size of all input files together, at least 0.

    Returns
    -------
    UnitGrid
        At most 3,000 head units: beyond 50 GB or so units grow instead of multiplying, so that
        the number of files of a run does not grow with its data.

    >>> make_grid(1000)
    UnitGrid(total_bytes=1000, unit_bytes=256, head_units=3, tail_bytes=64)
    """
    share, whole = _HEAD_SHARE
    head_bytes = total_bytes * share // whole
    few = max(_SMALLEST_BYTES, _per_unit(head_bytes, _FEW_HEAD_UNITS))
    unit_bytes = max(min(few, _LARGEST_BYTES), _per_unit(head_bytes, _MANY_HEAD_UNITS))
    return UnitGrid(
        total_bytes=total_bytes,
        unit_bytes=unit_bytes,
        head_units=head_bytes // unit_bytes,
        tail_bytes=unit_bytes // _TAIL_DIVISOR,
    )


def count(grid: UnitGrid) -> int:
    """How many units there are; the last one may be short."""
    tail = grid.total_bytes - grid.head_units * grid.unit_bytes
    return grid.head_units + _per_unit(tail, grid.tail_bytes)


def units(grid: UnitGrid) -> range:
    """The numbers of all units, in input order."""
    return range(count(grid))


def span(grid: UnitGrid, unit: int) -> tuple[int, int]:
    """First byte of ``unit`` and the one after its last, in the virtual concatenation.

    Raises
    ------
    IndexError
        There is no such unit.
    """
    if unit not in units(grid):
        raise IndexError(f"unit {unit} of a grid of {count(grid)}")
    return _start(grid, unit), min(_start(grid, unit + 1), grid.total_bytes)


def _start(grid: UnitGrid, unit: int) -> int:
    head = min(unit, grid.head_units)
    return head * grid.unit_bytes + (unit - head) * grid.tail_bytes


def _per_unit(amount: int, parts: int) -> int:
    return -(-amount // parts)
