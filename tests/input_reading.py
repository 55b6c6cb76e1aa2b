"""Input files, and their rows read in every way that there is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.data.inputs import freeze, total_bytes
from launcher.data.rows import Row, UnitReader, first_rows
from launcher.errors import Problem, RunError, SpecError
from launcher.plan.grid import units
from launcher.plan.types import InputFile, UnitGrid

__all__ = ["Fields", "cut", "fields_of", "frozen", "in_one_pass", "key", "problem_of", "refusal"]

Fields = dict[str, Any]


def frozen(path: Path, data: bytes, *, newlines: bool = True) -> InputFile:
    path.write_bytes(data)
    (entry,) = freeze([str(path)], base=path.parent, newlines=newlines)
    return entry


def cut(inputs: Sequence[InputFile], unit_bytes: int, tail_bytes: int = 1) -> UnitGrid:
    total = total_bytes(inputs)
    return UnitGrid(
        total_bytes=total,
        unit_bytes=unit_bytes,
        head_units=total * 9 // 10 // unit_bytes,
        tail_bytes=tail_bytes,
    )


def key(row: Row) -> tuple[int, int, Any, str | None]:
    return row.file, row.offset, row.fields, row.error.code if row.error else None


def in_one_pass(inputs: Sequence[InputFile], grid: UnitGrid) -> list[Row]:
    with UnitReader(inputs, grid) as reader:
        return [row for unit in units(grid) for row in reader.read(unit)]


def fields_of(entry: InputFile) -> list[Any]:
    """Fields, or the error's code, of all rows of a file, after reading it in every way."""
    rows = first_rows([entry], sys.maxsize)
    for unit_bytes in (1, 7, 50, max(1, entry.span)):
        if entry.span < 3000 * unit_bytes:
            found = in_one_pass([entry], cut([entry], unit_bytes))
            assert [key(row) for row in found] == [key(row) for row in rows]
    return [row.fields if row.error is None else row.error.code for row in rows]


def problem_of(entry: InputFile) -> Problem:
    with pytest.raises(RunError) as caught:
        first_rows([entry], sys.maxsize)
    return caught.value.problems[0]


def refusal(path: Path) -> Problem:
    with pytest.raises(SpecError) as caught:
        freeze([str(path)], base=path.parent)
    (problem,) = caught.value.problems
    return problem
