"""The one sample of a run's input: what is said of rows before a job starts is said of these.

The first rows, and neighbouring rows at places spread evenly over all of it, so its size is
constant. One reader takes them in rising order, so a file is opened once and no byte read again;
under a limit a compressed file may be begun anew.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise

from launcher.data.formats import is_streamed
from launcher.data.readers import place
from launcher.data.rows import Row, RowReader
from launcher.plan.types import InputFile

__all__ = ["EACH", "FIRST_ROWS", "PLACES", "Place", "Sample", "take_sample"]

FIRST_ROWS = 200
PLACES = 40
EACH = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Neighbouring rows.

    Attributes
    ----------
    begins
        The byte of the whole input that each row begins at, and the next row where that is known.
    share_bytes
        How much of the input they stand for.
    """

    rows: tuple[Row, ...]
    begins: tuple[int, ...]
    share_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows of a run's input, each once.

    Attributes
    ----------
    places
        The first rows, and then those further inside, in input order.
    extent_bytes
        How much of the input the run is of. Where rows share one virtual byte, it may have some
        more rows than it is limited to.
    whole
        It is known that there are no other rows in it, because they are no more than `FIRST_ROWS`.
    """

    places: tuple[Place, ...]
    extent_bytes: int
    whole: bool

    @property
    def rows(self) -> list[Row]:
        return list(chain.from_iterable(at.rows for at in self.places))


def take_sample(inputs: Sequence[InputFile], limit: int | None = None) -> Sample:
    """Read the sample of a run over ``inputs``, or over no more than their first ``limit`` rows.

    Where the limit is beyond the first rows, all of them are passed to know where they end. Raises
    as `RowReader.between`.
    """
    with RowReader(inputs) as reader:
        return _Sampler(inputs, reader).sample(limit)


class _Sampler:
    def __init__(self, inputs: Sequence[InputFile], reader: RowReader) -> None:
        self._inputs = inputs
        self._reader = reader
        self._starts = [0, *accumulate(entry.span for entry in inputs)]

    def sample(self, limit: int | None) -> Sample:
        rows = self._reader.between(0, sys.maxsize)
        head = list(islice(rows, FIRST_ROWS + 1))
        extent = self._starts[-1]
        if limit is not None:
            last = min(limit, sys.maxsize - 1)
            ends = [self._begin(row) for row in islice(chain(head, rows), last - 1, last + 1)]
            extent = max(ends[0] + 1, ends[1]) if len(ends) > 1 else extent
            head = [row for row in head if self._begin(row) < extent]
        first, whole = tuple(head[:FIRST_ROWS]), len(head) <= FIRST_ROWS
        places = [self._place(first, extent)] if whole else self._places(first, extent)
        return Sample(places=tuple(places), extent_bytes=extent, whole=whole)

    def _begin(self, row: Row) -> int:
        return self._starts[row.file] + place(self._inputs[row.file], row.offset)

    def _place(self, rows: Sequence[Row], share_bytes: float, *end: int) -> Place:
        begins = (*map(self._begin, rows), *end)
        return Place(rows=tuple(rows), begins=begins, share_bytes=share_bytes)

    def _places(self, first: Sequence[Row], extent: int) -> Iterator[Place]:
        """The ``first`` rows, which stand for the places that lie among them, and the others."""
        known = last = self._begin(first[-1])
        apart, inside = [], 0.0
        for (start, until), share_bytes in self._stretches(extent).items():
            if until <= known + 1 or (start <= known and self._streamed(start)):
                inside += share_bytes
                continue
            rows = list(islice(self._reader.between(max(start, last + 1), until), EACH))
            last = self._begin(rows[-1]) if rows else last
            apart.append((rows, share_bytes, until if self._streamed(start) else None))
        found: list[Place] = []
        following, filled = extent, 0.0
        for rows, share_bytes, end in reversed(apart):
            filled += share_bytes
            if not rows:  # a longer one fills it, which began before
                continue
            # Fewer than wanted are all up to the next place.
            ends = () if len(rows) == EACH else (end or following,)
            found.append(self._place(rows, filled, *ends))
            following, filled = found[-1].begins[0], 0.0
        yield self._place(first, inside + filled)
        yield from reversed(found)

    def _stretches(self, extent: int) -> dict[tuple[int, int], float]:
        """Where to read, and how much of the input each of these stands for.

        A file that can be read from its start only is read there, however much of it there is.
        """
        count = min(PLACES, extent)
        edges = [(2 * index + 1) * extent // (2 * count) for index in range(count)]
        found: dict[tuple[int, int], float] = defaultdict(float)
        for start, until in pairwise([*edges, extent]):
            where = (start, until)
            if self._streamed(start):
                file = self._file(start)
                where = (self._starts[file], min(self._starts[file + 1], extent))
            found[where] += extent / count
        return found

    def _streamed(self, start: int) -> bool:
        return is_streamed(self._inputs[self._file(start)])

    def _file(self, start: int) -> int:
        return bisect_right(self._starts, start, hi=len(self._inputs)) - 1
