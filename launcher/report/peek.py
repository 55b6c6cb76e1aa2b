"""The newest answers of a run, while it works or after. Reads only."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.data.wal import finished
from launcher.report.reading import parse_row
from launcher.rundir import RunDir
from launcher.telemetry.metrics import read_parts

__all__ = ["PeekRow", "peek"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeekRow:
    """One finished row; ``published`` says whether its part is out. ``row`` is its output row."""

    published: bool
    row: dict[str, Any]


def peek(run: RunDir, limit: int) -> list[PeekRow]:
    """The ``limit`` newest finished rows: of open units first, then of the newest parts.

    Raises
    ------
    OutputError
        ``output.damaged``.
    """
    open_rows = deque(finished(run), maxlen=limit)
    waiting = [parse_row(line, run.part_path(unit)) for unit, _, line in open_rows]
    found = [PeekRow(published=False, row=row) for row in reversed(waiting)]
    published = (PeekRow(published=True, row=row) for row in _published(run, limit))
    return [*found, *islice(published, limit - len(found))]


def _published(run: RunDir, limit: int) -> Iterator[dict[str, Any]]:
    """The last rows of the newest parts, newest first."""
    for path in _newest_parts(run, limit):
        with path.open("rb") as part:
            last = deque(part, maxlen=limit)
        for line in reversed(last):
            yield parse_row(line, path)


def _newest_parts(run: RunDir, limit: int) -> list[Path]:
    """Enough of the newest parts, newest first.

    Workers note their parts in order, so that not every part of a large run is looked at. An
    empty part gives no row, and there may be any number of those.
    """
    noted: dict[str, deque[Path]] = {}
    for part in read_parts(run.path / "metrics"):
        if part["ok"] + part["error"]:
            path = run.part_path(part["unit"], part.get("overlay", 0))
            noted.setdefault(part["worker"], deque(maxlen=limit)).append(path)
    known = noted.values() or [[run.part_path(unit)] for unit in run.published_units()]
    there = [(age, n, path) for paths in known for n, (age, path) in enumerate(_aged(paths))]
    newest = heapq.nlargest(len(there) if noted else limit, there)
    return [path for _, _, path in newest]


def _aged(paths: Iterable[Path]) -> Iterator[tuple[int, Path]]:
    """Those that are there; none is older than the one before it, whatever its file says."""
    newest = 0
    for path in paths:
        if age := _mtime_ns(path):
            newest = max(newest, age)
            yield newest, path


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # deleted, to be answered again
        return 0
