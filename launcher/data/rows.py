"""Input files to rows: any unit can be read without knowing what is in those before it.

A row is known by its file's place in the manifest and its coordinate in this file. From that
follows its place in the virtual concatenation of all files, and so the unit that it belongs to,
however far it reaches beyond.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple, TypeVar

from launcher.data.readers import Reader, coordinates, open_reader
from launcher.errors import RowError, RunError
from launcher.plan.grid import span
from launcher.plan.types import InputFile, UnitGrid

__all__ = ["Row", "RowReader", "UnitReader", "first_rows", "read_unit"]

Self = TypeVar("Self", bound="RowReader")

_MOST_OPEN = 4


class Row(NamedTuple):
    """One row of the input: either its ``fields``, or the ``error`` that says why there are none.

    Attributes
    ----------
    file
        Index of its file in the manifest.
    offset
        Its coordinate in the file: the byte that it starts at, in a compressed file once that is
        decompressed; in a Parquet file its number.
    fields
        The JSON object, the record, or ``{"text": line}`` for a line of a text file.
    """

    file: int
    offset: int
    fields: Mapping[str, Any] | None = None
    error: RowError | None = None


class RowReader:
    r"""The rows of stretch after stretch; those in rising order in one pass over the files.

    A file that cannot be entered anywhere (a compressed one, or CSV whose fields may hold line
    breaks) is begun anew for a stretch that lies before what was read last; a few files are kept
    open. Memory is that of one line, record or batch.
    """

    def __init__(self, inputs: Sequence[InputFile]) -> None:
        self._inputs = inputs
        self._starts = [0, *accumulate(entry.span for entry in inputs)]
        self._readers: OrderedDict[int, Reader] = OrderedDict()
        self._turn = 0

    def between(self, start: int, end: int) -> Iterator[Row]:
        r"""The rows whose place is in ``[start, end)`` of the concatenation, in input order.

        Lines end with ``\n`` or ``\r\n`` and never reach into the next file; those of white
        space alone are no rows. One stretch is read at a time: this ends what was read before.

        Yields
        ------
        Row
            With an error of code ``invalid_json``, ``not_an_object``, ``invalid_csv``,
            ``invalid_utf8``, ``bad_type`` or ``prompt_too_long`` where it is none.

        Raises
        ------
        RunError
            ``input.unreadable``, ``input.damaged``, ``input.column-names``, or ``input.changed``
            for a file that holds less than in the manifest.
        RuntimeError
            Another stretch was begun before this one was read to its end.
        """
        self._turn += 1
        return self._rows(start, end, self._turn)

    def close(self) -> None:
        """Close all files."""
        self._turn += 1
        while self._readers:
            self._readers.popitem()[1].close()

    def __enter__(self: Self) -> Self:  # noqa: PYI019 - Self is not in 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, start: int, end: int, turn: int) -> Iterator[Row]:
        self._check(turn)
        number = bisect_right(self._starts, start) - 1
        while number < len(self._inputs) and self._starts[number] < end:
            entry, base = self._inputs[number], self._starts[number]
            first, last = max(start - base, 0), min(end - base, entry.span)
            if first < last:
                yield from self._rows_of(number, *coordinates(entry, first, last), turn)
            number += 1

    def _rows_of(self, number: int, first: int, last: int, turn: int) -> Iterator[Row]:
        try:
            for coordinate, found in self._reader(number, first).read(first, last):
                if isinstance(found, RowError):
                    yield Row(file=number, offset=coordinate, error=found)
                else:
                    yield Row(file=number, offset=coordinate, fields=found)
                self._check(turn)
        except RunError:
            self._close(number)  # where it stands is not known
            raise

    def _check(self, turn: int) -> None:
        if turn != self._turn:
            raise RuntimeError("one stretch is read at a time, and another one was begun")

    def _reader(self, number: int, first: int) -> Reader:
        """The open reader of a file, or a new one where ``first`` is behind it."""
        reader = self._readers.get(number)
        if reader is not None and reader.reaches(first):
            self._readers.move_to_end(number)
            return reader
        self._close(number)
        while len(self._readers) >= _MOST_OPEN:
            self._close(next(iter(self._readers)))
        self._readers[number] = open_reader(self._inputs[number])
        return self._readers[number]

    def _close(self, number: int) -> None:
        reader = self._readers.pop(number, None)
        if reader is not None:
            reader.close()


class UnitReader(RowReader):
    """The rows of unit after unit."""

    def __init__(self, inputs: Sequence[InputFile], grid: UnitGrid) -> None:
        super().__init__(inputs)
        self._grid = grid

    def read(self, unit: int) -> Iterator[Row]:
        """The rows whose place lies in ``unit``; yields and raises as `RowReader.between`."""
        return self.between(*span(self._grid, unit))


def read_unit(inputs: Sequence[InputFile], grid: UnitGrid, unit: int) -> Iterator[Row]:
    """The rows of one unit, for who wants no other. Yields and raises as `RowReader.between`."""
    with UnitReader(inputs, grid) as reader:
        yield from reader.read(unit)


def first_rows(inputs: Sequence[InputFile], limit: int) -> list[Row]:
    """The first ``limit`` rows of the input, or all if there are fewer.

    Raises as `RowReader.between`.
    """
    with RowReader(inputs) as reader:
        return list(islice(reader.between(0, sys.maxsize), limit))
