"""Input files to rows: any unit can be read without reading what lies before it.

A row is one line, known by its file's place in the manifest and the byte its line starts at. It
belongs to the unit that holds this byte, however far it reaches beyond.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from launcher.data.inputs import total_bytes
from launcher.errors import Problem, RowError, RunError
from launcher.plan.grid import span
from launcher.plan.types import InputFile, UnitGrid

__all__ = ["Row", "read_unit", "sample"]

# Far below the interpreter's own limit, so that whatever was read can be written again from any
# depth of the call stack.
_DEEPEST = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the input: either its ``fields``, or the ``error`` that says why there are none.

    Attributes
    ----------
    file
        Index of its file in the manifest.
    offset
        Byte of the file that its line starts at.
    fields
        The JSON object, or ``{"text": line}`` for a line of a text file.
    """

    file: int
    offset: int
    fields: Mapping[str, Any] | None = None
    error: RowError | None = None


def read_unit(inputs: Sequence[InputFile], grid: UnitGrid, unit: int) -> Iterator[Row]:
    r"""The rows whose first byte lies in ``unit``, in input order.

    Lines end with ``\n`` or ``\r\n`` and never reach into the next file; those of white space
    alone are no rows. Memory is that of one line.

    Yields
    ------
    Row
        With an error of code ``invalid_json``, ``not_an_object`` or, in text files,
        ``invalid_utf8`` where a line is none.

    Raises
    ------
    RunError
        ``input.unreadable``, or ``input.changed`` for a file shorter than in the manifest.
    """
    return _read(inputs, *span(grid, unit))


def sample(inputs: Sequence[InputFile], limit: int) -> list[Row]:
    """The first ``limit`` rows of the input, or all if there are fewer. Raises as `read_unit`."""
    return list(islice(_read(inputs, 0, total_bytes(inputs)), limit))


def _read(inputs: Sequence[InputFile], start: int, end: int) -> Iterator[Row]:
    base = 0
    for number, entry in enumerate(inputs):
        first, last = max(start - base, 0), min(end - base, entry.size)
        if first < last:
            yield from _rows(number, entry, first, last)
        base += entry.size


def _rows(number: int, entry: InputFile, first: int, last: int) -> Iterator[Row]:
    parse = _parse_text if entry.path.lower().endswith(".txt") else _parse_json
    for offset, line in _lines(entry, first, last):
        body = line.removesuffix(b"\n").removesuffix(b"\r")
        skipped = len(BOM_UTF8) if offset == 0 and body.startswith(BOM_UTF8) else 0
        body = body[skipped:]
        if not body.strip():
            continue
        try:
            yield Row(file=number, offset=offset, fields=parse(body, offset + skipped))
        except RowError as exc:
            yield Row(file=number, offset=offset, error=exc)


def _lines(entry: InputFile, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    """The lines of ``entry`` that start in ``[first, last)``, each with its first byte."""
    with _open(entry) as file:
        # A line starts where another ends: look for its \n from one byte before, and no further
        # than `last`, or every unit inside one huge line would read that line to its end.
        offset = first
        if first > 0:
            file.seek(first - 1)
            rest = file.readline(last - first)
            if not rest.endswith(b"\n"):
                return
            offset += len(rest) - 1
        while offset < last:
            line = file.readline(entry.size - offset)
            if not line:
                what = f"{entry.path} ends at byte {offset}, it had {entry.size}"
                hint = "restore the file, or submit to a new output.path"
                raise RunError(Problem("input.changed", what, hint=hint))
            yield offset, line
            offset += len(line)


def _open(entry: InputFile) -> BinaryIO:
    try:
        return open(entry.path, "rb")  # noqa: PTH123 - text path; the caller closes it
    except OSError as exc:
        what = f"{entry.path} cannot be read: {(exc.strerror or str(exc)).lower()}"
        hint = "check that this node mounts the file system"
        raise RunError(Problem("input.unreadable", what, hint=hint)) from exc


def _parse_text(body: bytes, start: int) -> dict[str, Any]:
    return {"text": _decode(body, start, "invalid_utf8")}


def _parse_json(body: bytes, start: int) -> dict[str, Any]:
    # Decoded here: given bytes, json.loads also tries UTF-16 and UTF-32.
    text = _decode(body, start, "invalid_json")
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


def _decode(body: bytes, start: int, code: str) -> str:
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
