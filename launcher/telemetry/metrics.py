"""``metrics/<worker>.jsonl``: what a worker did and does, one line at a time.

Two kinds of lines: a *beat* says how the worker stands now, a *part* what a published unit
holds. Only the worker itself writes its file; a torn last line is simply not yet a line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Beat", "MetricsLog", "PartCounts", "read_metrics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """How a worker stands: totals since it started, and what is in flight.

    ``phase`` is ``starting``, ``running``, ``leaving`` or ``ended``.
    """

    replica: int
    phase: str
    rows: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCounts:
    """What one published part holds."""

    unit: int
    ok: int
    error: int
    prompt_tokens: int
    completion_tokens: int


class MetricsLog:
    """Appends lines; each reaches the file system with one write."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, line: Beat | PartCounts) -> None:
        kind = "beat" if isinstance(line, Beat) else "part"
        entry = {"kind": kind, "time": round(time.time(), 3), **asdict(line)}
        self._file.write(json.dumps(entry).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(directory: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of every worker, in no order between workers.

    What is no line, such as a write that a full disk cut short, is passed over: nothing here
    decides what is done, and parts that no line counts are counted themselves.
    """
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "kind" in entry:
                yield {"worker": path.stem, **entry}
