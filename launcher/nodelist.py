"""Names of nodes as Slurm writes them: ``gpu[01-03,07],b-1`` and the single names it stands for.

The rules are those of Slurm's hostlists (``scontrol show hostnames``): brackets may stand more
than once and anywhere, and the digits of a range keep their leading zeros.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

__all__ = ["expand", "fold"]

_MOST = 65536  # nodes: the largest cluster has fewer
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})([^0-9]*)")


def expand(text: str) -> tuple[str, ...]:
    """The names in ``text``, in its order; none for Slurm's words for nothing.

    Raises
    ------
    ValueError
        Brackets or ranges are broken, or more than 65536 names would come of it.

    >>> expand("a[01-03,7],b-[1-2]-x[0-1]")
    ('a01', 'a02', 'a03', 'a7', 'b-1-x0', 'b-1-x1', 'b-2-x0', 'b-2-x1')
    """
    if text.strip() in {"", "(null)", "None", "None assigned", "N/A", "n/a"}:
        return ()
    names = itertools.chain.from_iterable(_names(word) for word in _words(text))
    found = tuple(itertools.islice(names, _MOST + 1))
    if len(found) > _MOST:
        raise ValueError(f"{text[:60]!r} stands for more than {_MOST} nodes")
    return found


def fold(names: Iterable[str]) -> str:
    """The shortest text of this form that `expand` turns into ``names``, in their order.

    Raises
    ------
    ValueError
        A name holds what cannot be in one.

    >>> fold(["a01", "a02", "a03", "a7", "b"])
    'a[01-03,7],b'
    """
    pieces: list[tuple[str, str, list[list[str]]] | str] = []
    for name in names:
        if not name or re.search(r"[\[\],\s]", name) or expand(name) != (name,):
            raise ValueError(f"{name!r} is no name of a node")
        match = _NUMBERED.fullmatch(name)
        if match is None:
            pieces.append(name)
            continue
        head, digits, end = match.groups()
        last = pieces[-1] if pieces else None
        if isinstance(last, tuple) and last[:2] == (head, end):
            _append(last[2], digits)
        else:
            pieces.append((head, end, [[digits, digits]]))
    return ",".join(piece if isinstance(piece, str) else _written(*piece) for piece in pieces)


def _append(spans: list[list[str]], digits: str) -> None:
    first, last = spans[-1]
    if _follows(first, last, digits):
        spans[-1][1] = digits
    else:
        spans.append([digits, digits])


def _follows(first: str, last: str, digits: str) -> bool:
    return int(digits) == int(last) + 1 and digits == f"{int(digits):0{len(first)}}"


def _written(head: str, end: str, spans: list[list[str]]) -> str:
    ranges = ",".join(a if a == b else f"{a}-{b}" for a, b in spans)
    return f"{head}[{ranges}]{end}" if re.search("[-,]", ranges) else f"{head}{ranges}{end}"


def _words(text: str) -> Iterator[str]:
    """``text`` at the commas outside of brackets."""
    depth, word = 0, ""
    for char in text.strip():
        depth += (char == "[") - (char == "]")
        if depth not in (0, 1) or char.isspace():
            raise ValueError(f"{text[:60]!r} is no list of nodes")
        if char == "," and not depth:
            yield word
            word = ""
        else:
            word += char
    if depth:
        raise ValueError(f"{text[:60]!r} ends inside of a bracket")
    yield word


def _names(word: str) -> Iterator[str]:
    parts = [(match[1], match[2]) for match in _PART.finditer(word)]
    if not parts:
        raise ValueError("a list of nodes has an empty name")
    choices = [[plain] if plain else _numbers(spans) for spans, plain in parts]
    return ("".join(choice) for choice in itertools.product(*choices))


def _numbers(spans: str) -> list[str]:
    found: list[str] = []
    for span in spans.split(","):
        match = _SPAN.fullmatch(span)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"[{spans[:60]}] is no range of numbers")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= _MOST:
            raise ValueError(f"[{spans[:60]}] stands for more than {_MOST} nodes")
        found += [f"{number:0{len(match[1])}}" for number in range(first, last + 1)]
    return found
