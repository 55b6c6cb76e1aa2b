"""Records of .csv and .tsv files, as the csv module reads them, by the byte they start at.

The first record holds the names of the fields. Quoted fields may hold line breaks, so where a
record starts is known only to who has read everything before it; unless the user has promised
that there are none, and each line is a record.
"""

from __future__ import annotations

import csv
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal

from launcher.data.readers.base import Found
from launcher.data.readers.lines import LONGEST_BYTES, LineRows, Lines, bare, too_long
from launcher.errors import Problem, RowError, RunError

__all__ = ["RecordRows", "check_names", "line_rows"]

_PIECE_BYTES = 1024**2
_DIALECTS = {"csv": "excel", "tsv": "excel-tab"}

Kind = Literal["csv", "tsv"]
Record = list[str] | RowError | None  # None: there are no more


class RecordRows:
    """Rows of a stream from its start: a record may reach over several lines.

    Parameters
    ----------
    path
        Name of the file in errors.

    Raises
    ------
    RunError
        ``input.column-names``.
    """

    def __init__(self, path: str, file: BinaryIO, kind: Kind) -> None:
        self._file = file
        self._parser = _Parser(kind, file.readline)
        self._passed = -1  # no record that starts up to here can be given again
        self._names = _header(path, self._next)

    def reaches(self, first: int) -> bool:
        return first > self._passed

    def read(self, first: int, last: int) -> Iterator[tuple[int, Found]]:
        while self._parser.at < last:
            start = self._parser.at
            record = self._next()
            if record is None:
                return
            if record and start >= first:
                yield start, _found(record, self._names)

    def close(self) -> None:
        self._file.close()

    def _next(self) -> Record:
        self._passed = self._parser.at
        return self._parser.record()


def line_rows(path: str, lines: Lines, kind: Kind) -> LineRows:
    """Rows of a file none of whose fields holds a line break. Raises as `RecordRows`."""
    given: list[bytes] = []
    parser = _Parser(kind, lambda _: given.pop() if given else b"")

    def record(body: bytes, start: int) -> Record:
        given[:] = [body]
        parser.at = start
        return parser.record()

    def parse(body: bytes, start: int) -> Mapping[str, Any] | None:
        if not (found := record(body, start)):
            return None
        fields = _found(found, names)
        if isinstance(fields, RowError):
            raise fields
        return fields

    head = (
        too_long("invalid_csv") if line is None else record(*bare(line, offset))
        for offset, line in lines.read(0, sys.maxsize)
    )
    names = _header(path, lambda: next(head, None))
    return LineRows(lines, parse, long_code="invalid_csv", start=lines.at)


def check_names(path: str, names: Sequence[str]) -> None:
    """Refuse names under which a field could not be found again.

    Raises
    ------
    RunError
        ``input.column-names``: one is empty, or stands twice.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise _bad_names(f"column {number} of {path} has no name")
        if name in first:
            raise _bad_names(f"columns {first[name]} and {number} of {path} are both {name!r}")
        first[name] = number


class _Parser:
    """The csv module's reader, asked for one record at a time.

    Attributes
    ----------
    at
        The byte at which the next line, and so the next record, starts.
    """

    def __init__(self, kind: Kind, readline: Callable[[int], bytes]) -> None:
        # Of the whole process, which has no other use for it: 128 KiB would be no row's limit.
        csv.field_size_limit(sys.maxsize)
        self.at = 0
        self._readline = readline
        self._reader = csv.reader(self, _DIALECTS[kind])
        self._begin()

    def record(self) -> Record:
        self._begin()
        try:
            record = next(self._reader, None)  # by way of __next__ below
        except csv.Error as exc:
            return RowError("invalid_csv", f"not CSV: {exc}")
        if self._not_utf8 is not None:
            return RowError("invalid_utf8", f"byte {self._not_utf8} of the file is not UTF-8")
        if record is not None and self._at_end:
            return RowError("invalid_csv", "a field begins with a quotation mark and never ends")
        return record

    def _begin(self) -> None:
        self._start = self.at
        self._at_end = False
        self._not_utf8: int | None = None

    def _end(self, line: bytes) -> None:
        """Read what is left of the line that begins with ``line``."""
        while line and not line.endswith(b"\n"):
            line = self._readline(_PIECE_BYTES)
            self.at += len(line)

    def __iter__(self) -> _Parser:
        return self

    def __next__(self) -> str:
        """The next line for the csv module, which asks for several if a record has them."""
        room = LONGEST_BYTES - (self.at - self._start)
        line = self._readline(room + 1)
        if not line:
            self._at_end = True
            raise StopIteration
        start = self.at
        self.at += len(line)
        if len(line) > room:
            self._end(line)
            raise csv.Error(f"a record is longer than {LONGEST_BYTES} bytes")
        if start == 0 and line.startswith(BOM_UTF8):
            start, line = len(BOM_UTF8), line[len(BOM_UTF8) :]
        try:
            return line.decode()
        except UnicodeDecodeError as exc:
            if self._not_utf8 is None:
                self._not_utf8 = start + exc.start
            # Goes on to the record's end, which must be known all the same.
            return line.decode(errors="surrogateescape")


def _header(path: str, next_record: Callable[[], Record]) -> list[str]:
    """The names of the fields; none for a file that holds no record."""
    while (names := next_record()) == []:
        pass
    if isinstance(names, RowError):
        raise _bad_names(f"the first record of {path} holds no column names: {names}")
    check_names(path, names or ())
    return names or []


def _found(record: list[str] | RowError, names: Sequence[str]) -> Found:
    if isinstance(record, RowError):
        return record
    if len(record) != len(names):
        message = f"the record has {len(record)} fields, the first one has {len(names)}"
        return RowError("invalid_csv", message)
    return dict(zip(names, record, strict=True))


def _bad_names(what: str) -> RunError:
    hint = "give the columns names of their own in the file's first record"
    return RunError(Problem("input.column-names", what, hint=hint))
