"""``nvidia-smi topo -m``: how far GPUs and network adapters of a node are from each other.

Drivers differ: cells apart by tabs or spaces, underlined heads, adapters headed by number with a
legend (since 2022) or by name, "NUMA Affinity" and "GPU NUMA ID" there or not, an empty cell
before the latter. No cell but a head holds a space, so words are enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from launcher.parsers.text import Lines, ParseError, read_ranges, split_lines

__all__ = ["Cell", "Distance", "Nic", "Topo", "read_topo"]

_HEADS = re.compile(r"CPU Affinity|NUMA Affinity|GPU NUMA ID|\S+")
_TAIL = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
_GPU = re.compile(r"GPU([0-9]{1,3})")
_CELL = re.compile(r"NV([0-9]{1,3})|X|PIX|PXB|PHB|NODE|SYS")
_LEGEND = re.compile(r"\s*(NIC[0-9]{1,3})\s*:\s*(\S+)\s*")
_SURE = 8  # letters of a list of CPUs behind which one more number would have been printed
# Cells of `nvidia-smi topo -p2p`, and the line of its legend.
_P2P = {"OK", "CNS", "GNS", "TNS", "NS", "U"}
_P2P_LEGEND = re.compile(r"^\s*OK\s*=\s*Status Ok", re.IGNORECASE)


class Distance(IntEnum):
    """What is between two devices, the nearest first (legend of ``nvidia-smi topo -m``)."""

    X = 0
    NV = 1
    PIX = 2
    PXB = 3
    PHB = 4
    NODE = 5
    SYS = 6


@dataclass(frozen=True, slots=True)
class Cell:
    """One distance, with the number of bonded NVLinks where it is `Distance.NV`."""

    distance: Distance
    nvlinks: int = 0


@dataclass(frozen=True, slots=True)
class Nic:
    """A network adapter: how the table heads it, and its device (``mlx5_0``) where that is told."""

    head: str
    device: str | None


@dataclass(frozen=True, slots=True)
class Topo:
    """The table.

    Attributes
    ----------
    gpus, nics
        In the order of the columns. Slingshot's adapters are not among them; GPUs that a
        container or cgroup hides are not either.
    cells
        By the heads of row and column, for what was legible.
    cpus, numa
        By GPU: "CPU Affinity" and "NUMA Affinity".
    gpu_numa
        By GPU: the NUMA node that is its own memory (Grace-Hopper).
    unread
        Lines, and pairs that contradict each other.
    """

    gpus: tuple[int, ...]
    nics: tuple[Nic, ...]
    cells: Mapping[tuple[str, str], Cell]
    cpus: Mapping[int, frozenset[int]]
    numa: Mapping[int, frozenset[int]]
    gpu_numa: Mapping[int, int]
    unread: tuple[str, ...]

    def between(self, first: str, second: str) -> Cell | None:
        """The cell of two heads, whichever of them has a row."""
        return self.cells.get((first, second)) or self.cells.get((second, first))

    def gpu_link(self, first: int, second: int) -> Cell | None:
        return self.between(f"GPU{first}", f"GPU{second}")


@dataclass(slots=True)
class _Table:
    devices: tuple[str, ...]
    tail: tuple[str, ...]
    rows: dict[str, list[str]] = field(default_factory=dict)
    tails: dict[str, list[str]] = field(default_factory=dict)
    legend: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def read_topo(text: str) -> Topo:
    """Read the table in ``text``, whatever stands before and after it.

    Raises
    ------
    ParseError
        There is no such table, or it is that of ``nvidia-smi topo -p2p``.
    """
    lines = split_lines(text)
    table = _table(lines)
    cells, torn = _cells(table)
    _refuse_others(table, lines)
    columns = {name: list(_column(table, name)) for name in _TAIL}
    seen = {name for pair in cells for name in pair}
    return Topo(
        gpus=tuple(_index(name) for name in table.devices if _GPU.fullmatch(name)),
        nics=tuple(
            Nic(name, table.legend.get(name, None if name.startswith("NIC") else name))
            for name in table.devices
            if not _GPU.fullmatch(name) and (name in seen or name.startswith("NIC"))
        ),
        cells=cells,
        cpus={gpu: found for gpu, found in _cpus(table) if found},
        numa={gpu: found for gpu, word in columns[_TAIL[1]] if (found := read_ranges(word))},
        gpu_numa={gpu: int(word) for gpu, word in columns[_TAIL[2]] if word.isdecimal()},
        unread=(*table.unread, *torn),
    )


def _table(lines: Lines) -> _Table:
    found = [i for i, line in enumerate(lines.lines) if _is_head(line)]
    if not found:
        raise ParseError(f"not the table of `nvidia-smi topo -m`, but {lines.looks_like()}")
    # That of `topo -p2p`, which may stand before it, has no affinities.
    at = next((i for i in found if _TAIL[0] in lines.lines[i]), found[0])
    heads = _HEADS.findall(lines.lines[at])
    tail = tuple(head for head in heads if head in _TAIL)
    first = min((heads.index(head) for head in tail), default=len(heads))
    table = _Table(tuple(dict.fromkeys(heads[:first])), tuple(heads[first:]))
    table.unread += filter(str.strip, lines.lines[:at])
    for number, line in enumerate(lines.lines[at + 1 :], at + 2):
        _read_line(table, line, cut=lines.cut and number == len(lines.lines))
    return table


def _is_head(line: str) -> bool:
    heads = _HEADS.findall(line)
    return bool(heads) and _GPU.fullmatch(heads[0]) is not None and not _cell_in(heads[1:])


def _cell_in(words: Sequence[str]) -> bool:
    """Whether one of ``words`` is a cell: then it is a row, of whatever table."""
    return any(_CELL.fullmatch(word) or word in _P2P for word in words)


def _read_line(table: _Table, line: str, *, cut: bool) -> None:
    words = line.split()
    if (found := _LEGEND.fullmatch(line)) and not cut:
        table.legend[found[1]] = found[2]
    elif not words or " = " in line or line.strip().endswith("Legend:"):
        pass
    elif words[0] not in table.devices or not _fits(table, words):
        table.unread.append(line)
    else:
        name, count = words[0], len(table.devices)
        table.rows[name], tail = words[1 : count + 1], words[count + 1 :]
        if cut and tail:  # shortened, unless another row says the same
            tail = tail[:-1] + [w for w in tail[-1:] if any(w in t for t in table.tails.values())]
        elif cut:
            table.rows[name][-1] = ""
        table.tails[name] = tail


def _fits(table: _Table, words: Sequence[str]) -> bool:
    """Whether a row's cells are under their heads: as many, X to itself, affinities behind them."""
    name, count = words[0], len(table.devices)
    cells, tail = words[1 : count + 1], words[count + 1 :]
    return (
        name not in table.rows
        and len(cells) == count
        and len(tail) <= len(table.tail)
        and [i for i, cell in enumerate(cells) if cell == "X"] == [table.devices.index(name)]
        and not _cell_in(tail)
        and not any(word == "N/A" or read_ranges(word) for word in cells)
    )


def _cells(table: _Table) -> tuple[dict[tuple[str, str], Cell], list[str]]:
    cells, torn = {}, []
    for row, words in table.rows.items():
        for column, word in zip(table.devices, words, strict=True):
            match = _CELL.fullmatch(word)
            other = _mirrored(table, row, column)
            if match is None or (other is not None and other != word and _CELL.fullmatch(other)):
                torn += [f"{row} {column}: {word} {other or ''}".rstrip()]
            elif match[1]:
                cells[row, column] = Cell(Distance.NV, int(match[1]))
            else:
                cells[row, column] = Cell(Distance[word])
    return cells, torn


def _mirrored(table: _Table, row: str, column: str) -> str | None:
    words = table.rows.get(column)
    return words[table.devices.index(row)] if words else None


def _refuse_others(table: _Table, lines: Lines) -> None:
    words = {word for row in table.rows.values() for word in row} - {"X", ""}
    if any(_CELL.fullmatch(word) for word in words):
        return
    if words & _P2P or (not table.tail and any(map(_P2P_LEGEND.match, lines.lines))):
        raise ParseError("the table of `nvidia-smi topo -p2p`, which has no distances")
    torn = [line.strip() for line in table.unread if line.split()[0] in table.devices]
    others = words or (set() if table.rows else set(torn))
    if others:
        sample = min(others)
        raise ParseError(f"a table of GPUs, but its cells are no distances: {sample[:60]!r}")


def _column(table: _Table, head: str) -> Iterator[tuple[int, str]]:
    """The words under a head of the tail, of rows that lack none and have none too many."""
    if head in table.tail:
        for name, words in table.tails.items():
            if _GPU.fullmatch(name) and len(words) == len(table.tail):
                yield _index(name), words[table.tail.index(head)]


def _cpus(table: _Table) -> Iterator[tuple[int, frozenset[int] | None]]:
    column = dict(_column(table, _TAIL[0]))
    clean = {gpu: read_ranges(word) for gpu, word in column.items() if not _clipped(word)}
    yield from clean.items()
    if table.tail[:2] != _TAIL[:2]:
        return
    for name, words in table.tails.items():
        if _GPU.fullmatch(name) and len(words) == len(table.tail) - 1:
            yield _index(name), _unmerged(words[0], {known for known in clean.values() if known})


def _clipped(word: str) -> bool:
    """Whether ``nvidia-smi`` may have left out the end of a list: it has room for some 12 letters.

    Where CPUs of two sockets alternate it prints ``0,2,4,6,8,10`` however many there are; two
    ranges always fit (``112-127,240-255``).
    """
    return word.count(",") > 1 and len(word) > _SURE


def _unmerged(word: str, known: set[frozenset[int]]) -> frozenset[int] | None:
    """The CPUs in ``0-31,64-950``, where the NUMA node was printed right behind them.

    Certain if another GPU has just them, or if both halves of the cores' threads are then alike.
    """
    found = [
        cpus
        for cut in (1, 2)
        if (cpus := read_ranges(word[:-cut])) and (cpus in known or _alike(word[:-cut]))
    ]
    return found[0] if len(found) == 1 and not _alike(word) else None


def _alike(ranges: str) -> bool:
    sizes = [len(read_ranges(part) or ()) for part in ranges.split(",")]
    return len(sizes) > 1 and len(set(sizes)) == 1 and sizes[0] > 1


def _index(name: str) -> int:
    return int(name[3:])
