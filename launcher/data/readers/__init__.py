"""One reader for each input format, behind one protocol; `open_reader` finds the right one."""

from __future__ import annotations

import sys

from launcher.data.formats import Format, format_of, is_streamed
from launcher.data.readers.base import Found, Reader
from launcher.data.readers.lines import LineRows, Lines, parse_json, parse_text
from launcher.data.readers.streams import open_stream
from launcher.data.readers.tables import RecordRows, line_rows
from launcher.plan.types import InputFile

__all__ = ["Found", "Reader", "coordinates", "open_reader", "place"]


def open_reader(entry: InputFile) -> Reader:
    """A reader of the rows of ``entry``, at its start.

    Raises
    ------
    RunError
        Here or from reading: ``input.unreadable``, ``input.changed``, ``input.damaged``,
        ``input.column-names``.
    """
    known = format_of(entry.path) or Format("json")
    if known.kind == "parquet":
        from launcher.data.readers.parquet import RecordBatches  # needs pyarrow

        return RecordBatches(entry)
    stream = open_stream(entry)
    if known.table and entry.newlines:
        return RecordRows(entry.path, stream, known.table)
    lines = Lines(stream, seekable=not is_streamed(entry))
    if known.table:
        return line_rows(entry.path, lines, known.table)
    if known.kind == "text":
        return LineRows(lines, parse_text, long_code="prompt_too_long")
    return LineRows(lines, parse_json, long_code="invalid_json")


def place(entry: InputFile, coordinate: int) -> int:
    """The virtual byte, in ``[0, span)``, of the row with this coordinate in its file."""
    if entry.rows is not None:
        return coordinate * entry.span // entry.rows
    return min(coordinate, entry.span - 1)


def coordinates(entry: InputFile, first: int, last: int) -> tuple[int, int]:
    """The range of coordinates whose rows have their `place` in ``[first, last)``.

    ``0 <= first < last <= span``. What a compressed file has beyond its guessed size is all in
    its last virtual byte.
    """
    if entry.rows is not None:
        return -(-first * entry.rows // entry.span), -(-last * entry.rows // entry.span)
    return first, last if last < entry.span else sys.maxsize
