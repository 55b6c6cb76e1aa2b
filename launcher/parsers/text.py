"""What all captures have in common: line ends, escapes, cut ends, and sets of small numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Lines", "ParseError", "natural", "read_ranges", "split_lines", "write_ranges"]

# CSI sequences, as they are or as a paste spells them; what is left of one whose escape was lost.
_ESCAPES = re.compile(
    r"(?:\x1b|\^\[|\\033|\\x1b|\\u001b|\\e)\[[0-9;?]*[ -/]*[@-~]|\[[0-9;]{0,5}m(?=\S|\s|$)",
)
_LONGEST_SPAN = 65536  # more CPUs, nodes or GPUs than any machine has: a broken number


class ParseError(ValueError):
    """The text is of another kind than was asked for; the message says what it looks like."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines without their ends.

    Attributes
    ----------
    cut
        The last line has no end, so that its last word may be the beginning of a longer one.
    """

    lines: tuple[str, ...]
    cut: bool

    def looks_like(self) -> str:
        """The first line that says something, for a `ParseError`."""
        first = next((line.strip() for line in self.lines if line.strip()), "")
        return repr(first[:60]) if first else "nothing"


def split_lines(text: str) -> Lines:
    """``text`` by lines, without terminal escapes and carriage returns."""
    lines = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    cut = bool(lines[-1].strip())
    return Lines(tuple(lines if cut else lines[:-1]), cut=cut)


def read_ranges(text: str) -> frozenset[int] | None:
    """The numbers of ``0-23,48-71``; None for anything else, ``N/A`` among it.

    >>> sorted(read_ranges("0,5-7") or ())
    [0, 5, 6, 7]
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= _LONGEST_SPAN:
            return None
        found.update(range(first, last + 1))
    return frozenset(found)


def write_ranges(numbers: Iterable[int]) -> str:
    """The inverse of `read_ranges`.

    >>> write_ranges({0, 5, 6, 7})
    '0,5-7'
    """
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts ``mlx5_2`` before ``mlx5_10``; tools print them the other way round."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)
