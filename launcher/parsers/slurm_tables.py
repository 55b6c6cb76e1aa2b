"""Tables of ``sinfo``, ``squeue``, ``sacct`` and ``sacctmgr`` as rows by column name.

Made for forms that every version prints alike: ``-o "%P|%l|%G"``, ``-P``, or a template of JSON
objects, one a line (``-o '{"s": "%T", "mem": %m}'``); columns of fixed width are read where that
is certain. Names of columns are upper case without blanks: ``TRES_ALLOC``, ``NODES(A/I)``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.parsers.text import split_lines

__all__ = ["Objects", "Rows", "read_fixed", "read_objects", "read_rows"]

# Columns in which users may write the separator.
_FREE = ("SUBMITLINE", "JOBNAME", "NAME", "COMMENT", "ADMINCOMMENT", "SYSTEMCOMMENT", "WORKDIR")
_DASHES = re.compile(r"\s*-+(?: +-+)*\s*")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows by column, and lines that have not as many cells as there are columns."""

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Objects:
    """JSON objects, one a line, and lines that are none."""

    objects: tuple[Mapping[str, Any], ...]
    unread: tuple[str, ...]


def read_rows(text: str, columns: Sequence[str] = (), *, separator: str = "|") -> Rows:
    """Cells between separators; without ``columns`` the first line with a separator names them.

    A last line that has no end is not read: its last cell may be shortened.
    """
    lines = split_lines(text)
    heads = tuple(_head(name) for name in columns)
    rows: list[Mapping[str, str]] = []
    unread: list[str] = []
    for number, line in enumerate(lines.lines, 1):
        cells = _cells(line, separator)
        cut = lines.cut and number == len(lines.lines)
        if not line.strip():
            continue
        if not heads and (len(cells) > 1 or re.fullmatch(r"\s*\w+\s*", line)) and not cut:
            heads = tuple(map(_head, cells if cells[-1] else cells[:-1]))
        elif heads and not cut and (fitting := _fitting(heads, cells, separator)):
            rows.append(dict(zip(heads, fitting, strict=True)))
        else:
            unread.append(line)
    return Rows(heads, tuple(rows), tuple(unread))


def read_fixed(text: str) -> Rows:
    """Columns of fixed width, under a line of dashes (``sacct``) or as many words as heads.

    A line that fills only some columns goes on with the row above it. Values that Slurm
    shortened end with ``+``.
    """
    lines = split_lines(text)
    heads: tuple[str, ...] = ()
    spans: list[tuple[int, int]] = []
    rows: list[dict[str, str]] = []
    unread: list[str] = []
    for number, line in enumerate(lines.lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if _DASHES.fullmatch(line):
            spans = [match.span() for match in re.finditer("-+", line)]
        elif not heads:
            heads = tuple(map(_head, line.split()))
        elif (cells := _aligned(line, spans, len(heads))) and not (
            lines.cut and number == len(lines.lines)
        ):
            rows.append(dict(zip(heads, cells, strict=True)))
        elif rows and len(spans) == len(heads) and (at := _lone(line, spans)) is not None:
            rows[-1][heads[at]] += line.strip()
        else:
            unread.append(line)
    return Rows(heads, tuple(rows), tuple(unread))


def read_objects(text: str) -> Objects:
    """One JSON object a line, as a format string of ``sinfo`` or ``squeue`` can print them."""
    found: list[Mapping[str, Any]] = []
    unread: list[str] = []
    for line in filter(str.strip, split_lines(text).lines):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            unread.append(line)
    return Objects(tuple(found), tuple(unread))


def _head(name: str) -> str:
    return name.strip().upper().replace(" ", "")


def _cells(line: str, separator: str) -> list[str]:
    """Cells without the borders of ``| a | b |``, and without the empty one behind ``a|b|``."""
    cells = [cell.strip() for cell in line.split(separator)]
    if len(cells) > 2 and line.lstrip().startswith(separator + " "):  # noqa: PLR2004 - two borders
        cells = cells[1:]
        return cells[:-1] if not cells[-1] else cells
    return cells


def _fitting(heads: Sequence[str], cells: list[str], separator: str) -> list[str] | None:
    """The cells as they belong to ``heads``; None where that is not certain."""
    wanted, more = len(heads), len(cells) - len(heads)
    if more == 1 and not cells[-1]:  # `sacct -p` ends each line with one
        return cells[:-1]
    free = [i for i, head in enumerate(heads) if head in _FREE]
    if more > 0 and len(free) == 1:
        at = free[0]
        joined = separator.join(cells[at : at + more + 1])
        return [*cells[:at], joined, *cells[at + more + 1 :]]
    return cells if len(cells) == wanted else None


def _aligned(line: str, spans: Sequence[tuple[int, int]], count: int) -> list[str] | None:
    words = line.split()
    if len(spans) == count and all(line[end : end + 1] in ("", " ") for _, end in spans):
        cells = [line[start:end].strip() for start, end in spans]
        return cells if cells[0] and not line[spans[-1][1] :].strip() else None
    return words if len(words) == count else None


def _lone(line: str, spans: Sequence[tuple[int, int]]) -> int | None:
    """The column in which a line of one word begins; the first is a row's own."""
    start = len(line) - len(line.lstrip())
    at = next((i for i, (first, last) in enumerate(spans) if first <= start < last), None)
    return at if at and len(line.split()) == 1 else None
