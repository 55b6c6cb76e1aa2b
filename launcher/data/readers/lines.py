"""Lines of a stream, by the byte they start at, and the two formats whose rows they are."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from launcher.data.readers.base import Found
from launcher.errors import RowError

__all__ = [
    "LONGEST_BYTES",
    "LineRows",
    "Lines",
    "bare",
    "decoded",
    "parse_json",
    "parse_text",
    "too_long",
]

# Of a line, or a record, with its end. A list in one line, or a quotation mark that nothing
# closes, would make one row of a whole file.
LONGEST_BYTES = 64 * 1024**2

# Far below the interpreter's own limit, so that whatever was read can be written again from any
# depth of the call stack.
_DEEPEST = 256
_PIECE_BYTES = 1024**2


class Lines:
    """The lines of a stream that start in a range of bytes, ranges in rising order.

    A range may end inside a line: no more of the line is read than the range holds, or every
    unit inside one huge line would read that line to its end.
    """

    def __init__(self, file: BinaryIO, *, seekable: bool) -> None:
        self._file = file
        self._seekable = seekable
        self._at = 0
        self._at_start = True  # of a line
        self._passed = -1  # no line that starts up to here can be given (again)

    @property
    def at(self) -> int:
        """The next byte to be read."""
        return self._at

    def reaches(self, first: int) -> bool:
        """Whether lines from byte ``first`` on can still be given."""
        return self._seekable or first > self._passed

    def read(self, first: int, last: int) -> Iterator[tuple[int, bytes | None]]:
        """The lines that start in ``[first, last)``, each with its first byte.

        None stands for a line of more than `LONGEST_BYTES`, which is not kept.
        """
        self._go_to(first)
        self._end_line(last)
        while self._at_start and self._at < last:
            line = self._file.readline(LONGEST_BYTES + 1)
            if not line:
                return
            offset = self._at
            self._at += len(line)
            self._at_start = line.endswith(b"\n")
            self._passed = offset
            yield offset, line if len(line) <= LONGEST_BYTES else None
            self._end_line(last)

    def close(self) -> None:
        self._file.close()

    def _go_to(self, first: int) -> None:
        if self._passed < first <= self._at:
            return
        # A line starts where another ends, so its \n is looked for from one byte before.
        offset = max(first - 1, 0)
        if self._seekable:
            self._file.seek(offset)
            self._at = offset
        else:
            self._skip(offset)
        self._at_start = first == 0
        self._passed = first - 1

    def _skip(self, offset: int) -> None:
        while self._at < offset:
            piece = self._file.read(min(_PIECE_BYTES, offset - self._at))
            if not piece:
                return
            self._at += len(piece)

    def _end_line(self, last: int) -> None:
        """Read what is left of the line that began earlier, as far as ``last``."""
        while not self._at_start and self._at < last:
            piece = self._file.readline(min(_PIECE_BYTES, last - self._at))
            if not piece:
                return
            self._at += len(piece)
            self._at_start = piece.endswith(b"\n")


class LineRows:
    """Rows of a file in which each line is one.

    Parameters
    ----------
    parse
        Line without its end, and the byte it starts at, to fields; None for a line that is no row.
    long_code
        Code of the error that a line of more than `LONGEST_BYTES` is.
    """

    def __init__(
        self,
        lines: Lines,
        parse: Callable[[bytes, int], Mapping[str, Any] | None],
        *,
        long_code: str,
        start: int = 0,
    ) -> None:
        self._lines = lines
        self._parse = parse
        self._long_code = long_code
        self._start = start
        self.reaches = lines.reaches
        self.close = lines.close

    def read(self, first: int, last: int) -> Iterator[tuple[int, Found]]:
        for offset, line in self._lines.read(max(first, self._start), last):
            if line is None:
                yield offset, too_long(self._long_code)
                continue
            body, start = bare(line, offset)
            try:
                fields = self._parse(body, start)
            except RowError as exc:
                yield offset, exc
            else:
                if fields is not None:
                    yield offset, fields


def bare(line: bytes, offset: int) -> tuple[bytes, int]:
    r"""``line`` without ``\n``, ``\r\n`` and a file's byte order mark, and where that starts."""
    body = line.removesuffix(b"\n").removesuffix(b"\r")
    if offset == 0 and body.startswith(BOM_UTF8):
        return body[len(BOM_UTF8) :], len(BOM_UTF8)
    return body, offset


def too_long(code: str) -> RowError:
    """The error of a line of more than `LONGEST_BYTES`."""
    return RowError(code, f"the line is longer than {LONGEST_BYTES} bytes")


def parse_text(body: bytes, start: int) -> dict[str, Any] | None:
    """The fields of a line of a text file."""
    return {"text": decoded(body, start, "invalid_utf8")} if body.strip() else None


def parse_json(body: bytes, start: int) -> dict[str, Any] | None:
    """The fields of a line that holds a JSON object."""
    if not body.strip():
        return None
    # Decoded here: given bytes, json.loads also tries UTF-16 and UTF-32.
    text = decoded(body, start, "invalid_json")
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as exc:
        raise RowError("invalid_json", f"not JSON: {exc}") from exc
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise RowError("not_an_object", f"the line holds a JSON {kind}, not an object")
    if body.count(b"[") + body.count(b"{") > _DEEPEST:
        _check_depth(value)
    return value


def decoded(body: bytes, start: int, code: str) -> str:
    """``body`` as text.

    Raises
    ------
    RowError
        Of code ``code``, with the byte of the file that is not UTF-8.
    """
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise RowError(code, f"byte {start + exc.start} of the file is not UTF-8") from exc


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        children = (c for v in level for c in (v.values() if isinstance(v, dict) else v))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> RowError:
    return RowError("invalid_json", f"nested deeper than {_DEEPEST} levels")
