"""What a worker tells about itself while it works, in ``metrics/``.

``<worker>.jsonl`` has a line for each part that it published, so that nobody need count rows
again. ``<worker>.now`` says how it stands; it is replaced every few seconds and goes when the
worker ends. Nothing here decides what is done: a lost or torn line costs a reader some work.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.rundir import replace

__all__ = ["Beat", "WorkerLog", "read_answer_p95_s", "read_beats", "read_parts"]

RATE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """How a worker stands: totals since it started, and what is in flight.

    ``phase`` is ``starting``, ``running`` or ``leaving``.
    """

    replica: int
    phase: str
    rows: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class WorkerLog:
    """Writes the two files of one worker."""

    def __init__(self, directory: Path, worker: str) -> None:
        self._parts = (directory / f"{worker}.jsonl").open("ab", buffering=0)
        self._now = directory / f"{worker}.now"
        self._recent: deque[tuple[float, int]] = deque()
        self._running_since: float | None = None

    def part(self, counts: Mapping[str, int]) -> None:
        """Note a published part and what it holds; it reaches the file system with one write.

        On a full disk it is not noted: who wants the counts then reads the part.
        """
        with contextlib.suppress(OSError):
            self._parts.write(json.dumps(counts).encode() + b"\n")

    def beat(self, beat: Beat) -> None:
        """Say how the worker stands, and how fast it was over the last minute."""
        now = time.time()
        if beat.phase == "running" and self._running_since is None:
            self._running_since = now
        self._recent.append((now, beat.completion_tokens))
        while now - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()
        since, tokens = self._recent[0]
        rate = (beat.completion_tokens - tokens) / (now - since) if now > since else 0.0
        entry = {
            **asdict(beat),
            "time": round(now, 3),
            "running_since": self._running_since,
            "tokens_per_s": round(rate, 1),
        }
        replace(self._now, json.dumps(entry).encode(), sync=False)

    def close(self, *, answer_p95_s: float | None = None) -> None:
        """End both files; what 95 % of the answers took at most is for who plans the next job."""
        if answer_p95_s is not None:
            with contextlib.suppress(OSError):  # a full disk, as above
                self._parts.write(
                    json.dumps({"answer_p95_s": round(answer_p95_s, 1)}).encode() + b"\n"
                )
        self._parts.close()
        self._now.unlink(missing_ok=True)


def read_parts(directory: Path) -> Iterator[dict[str, Any]]:
    """The counts of a part and ``worker``, for each whole line of every worker.

    What is no line, such as a write that a full disk cut short, is passed over.
    """
    return (entry for entry in _lines(directory) if "overlay" in entry)


def read_answer_p95_s(directory: Path) -> float | None:
    """What 95 % of the answers took at most, of the worker whose answers took longest."""
    found = (entry.get("answer_p95_s") for entry in _lines(directory))
    return max((float(p95_s) for p95_s in found if p95_s is not None), default=None)


def _lines(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            if entry := _object(line):
                yield {"worker": path.stem, **entry}


def read_beats(directory: Path) -> Iterator[dict[str, Any]]:
    """The last beat of every worker that has not ended, or was killed."""
    for path in sorted(directory.glob("*.now")):
        try:
            entry = _object(path.read_bytes())
        except FileNotFoundError:  # it ended between the listing and this
            continue
        if entry:
            yield {"worker": path.stem, **entry}


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
