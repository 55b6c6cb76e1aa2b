"""Tables of ``sinfo -o "%P|%l|%G"`` and ``sacctmgr -P`` as rows by column name."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.parsers.text import ParseError, split_lines

__all__ = ["read_rows"]


def read_rows(text: str) -> tuple[Mapping[str, str], ...]:
    """Cells by their heads, which are in upper case without blanks: ``MAXWALL``, ``DEFQOS``.

    The first line with a ``|`` is that of the heads. Lines that have not as many cells are left
    out, and so is a last line that has no end: its last cell may be shortened.

    Raises
    ------
    ParseError
        No line has a ``|``.
    """
    lines = split_lines(text)
    whole = lines.lines[: -1 if lines.cut else None]
    table = [[cell.strip() for cell in line.split("|")] for line in whole if "|" in line]
    if not table:
        raise ParseError(f"not lines with separators, but {lines.looks_like()}")
    heads = [head.upper().replace(" ", "") for head in table[0]]
    fitting = (cells for cells in table[1:] if len(cells) == len(heads))
    return tuple(dict(zip(heads, cells, strict=True)) for cells in fitting)
