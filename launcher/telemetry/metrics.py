"""What a worker tells about itself while it works, in ``metrics/``.

``<worker>.jsonl`` has a line for each part that it published, so that nobody need count rows
again, and at the end one that says how it worked. ``<worker>.now`` says how it stands; it is
replaced every few seconds and goes when the worker ends. Nothing here decides what is done: a lost
or torn line costs a reader some work.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from launcher.rundir import replace

__all__ = [
    "Beat",
    "WorkerLog",
    "read_answer_p95_s",
    "read_beats",
    "read_parts",
    "read_worked",
    "words",
]

_MINUTE_S = 60.0
_LONG_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """How a worker stands: totals since it started, and what is in flight.

    Attributes
    ----------
    phase
        ``starting``, ``running`` or ``leaving``.
    in_flight
        Rows that the engine was given and has not answered.
    queued, running
        Of these, those that wait in the engine and those that it works on; None where it does not
        tell.
    kv_cache_usage
        Share of the engine's KV cache that is taken, 0 to 1; None where it does not tell.
    generated_tokens
        New tokens of the present engine, of unfinished answers too; None where it does not tell.
    engine_restarts
        How many engines have followed the first.
    prompt_tokens, completion_tokens
        Of finished answers.
    engine_version
        Of the library that computes; None before it has started, and where it has none.
    """

    replica: int
    phase: str
    rows: int = 0
    in_flight: int = 0
    queued: float | None = None
    running: float | None = None
    kv_cache_usage: float | None = None
    generated_tokens: float | None = None
    engine_restarts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_version: str | None = None


# What a reader finds in the place of a key that an older worker did not write.
_UNTOLD: dict[str, Any] = {field.name: field.default for field in fields(Beat)[2:]} | {
    "host": None,
    "running_since": None,
    "tokens_per_s": 0.0,
    "tokens_per_s_10m": None,
    "rate_covers_s": 0.0,
    "plan": None,
    "start_s": None,
    "steady_tokens_per_s": None,
    "steady_minutes": 0,
}
# Of the last beat, what is kept of a worker that has ended.
_WORKED = (
    *("replica", "plan", "time", "engine_version", "start_s"),
    *("steady_tokens_per_s", "steady_minutes", "rows", "prompt_tokens", "completion_tokens"),
)


class _Rates:
    """New tokens a second over the last minutes of answering.

    Counted by the engine where it tells: long answers count while they are made.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()
        self._made = 0.0
        self._completed = 0
        self._generated: float | None = None
        self._minute: tuple[float, float] | None = None
        self._minutes: list[float] = []

    def note(self, beat: Beat, now_s: float) -> None:
        self._made += self._growth(beat)
        self._note_minute(beat, now_s)
        if beat.phase == "starting":  # the start of an engine is no part of its speed
            self._seen.clear()
        self._seen.append((now_s, self._made))
        while now_s - self._seen[0][0] > _LONG_S:
            self._seen.popleft()

    def _growth(self, beat: Beat) -> float:
        completed, self._completed = self._completed, beat.completion_tokens
        if beat.generated_tokens is None:
            # An engine that tells may be dead for a while: its successor counts from 0.
            return 0 if self._generated is not None else beat.completion_tokens - completed
        last, self._generated = self._generated or 0, beat.generated_tokens
        return self._generated - last if self._generated >= last else self._generated

    def _note_minute(self, beat: Beat, now_s: float) -> None:
        if beat.phase != "running":
            self._minute = None
            return
        begun_s, before = self._minute or (now_s, self._made)
        if now_s - begun_s >= _MINUTE_S:
            self._minutes.append((self._made - before) / (now_s - begun_s))
            begun_s, before = now_s, self._made
        self._minute = begun_s, before

    @property
    def steady(self) -> tuple[float | None, int]:
        """The median of all whole minutes of answering, and how many there were.

        The first minutes of an engine and the last ones of a run are slower, and few.
        """
        found = self._minutes
        return (sorted(found)[len(found) // 2] if found else None), len(found)

    @property
    def covers_s(self) -> float:
        """How far back it is known, at most the longest window."""
        return self._seen[-1][0] - self._seen[0][0]

    def over(self, window_s: float) -> float:
        now_s, made = self._seen[-1]
        since_s, before = next(seen for seen in self._seen if now_s - seen[0] <= window_s)
        return (made - before) / (now_s - since_s) if now_s > since_s else 0.0


class WorkerLog:
    """Writes the two files of one worker that works by ``plan``.

    ``clock`` gives seconds that never go back.
    """

    def __init__(
        self,
        directory: Path,
        worker: str,
        *,
        plan: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = (directory / f"{worker}.jsonl").open("ab", buffering=0)
        self._now = directory / f"{worker}.now"
        self._clock = clock
        self._rates = _Rates()
        self._last: dict[str, Any] = dict(_UNTOLD)
        self._host = socket.gethostname()
        self._running_since: float | None = None
        self._plan = plan
        self._begun_s = clock()
        self._start_s: float | None = None

    def part(self, counts: Mapping[str, int]) -> None:
        """Note a published part and what it holds; it reaches the file system with one write.

        On a full disk it is not noted: who wants the counts then reads the part.
        """
        self._note(counts)

    def beat(self, beat: Beat) -> None:
        """Say how the worker stands, and how fast it was over the last 1 and 10 minutes."""
        now = time.time()
        if beat.phase == "running" and self._running_since is None:
            self._running_since = now
            self._start_s = self._clock() - self._begun_s
        self._rates.note(beat, self._clock())
        steady, minutes = self._rates.steady
        self._last = {
            **asdict(beat),
            "plan": self._plan,
            "start_s": None if self._start_s is None else round(self._start_s, 1),
            "steady_tokens_per_s": None if steady is None else round(steady, 1),
            "steady_minutes": minutes,
            "host": self._host,
            "time": round(now, 3),
            "running_since": self._running_since,
            "tokens_per_s": round(self._rates.over(_MINUTE_S), 1),
            "tokens_per_s_10m": round(self._rates.over(_LONG_S), 1),
            "rate_covers_s": round(self._rates.covers_s, 1),
        }
        replace(self._now, json.dumps(self._last).encode(), sync=False)

    def summary(self) -> str:
        """How the worker stands, in one line for its log."""
        return words(self._last)

    def close(self, *, answer_p95_s: float | None = None) -> None:
        """End both files; how it worked is for who plans the next job.

        So is what 95 % of the answers took at most.
        """
        if self._last["steady_minutes"]:
            self._note({"worked": {key: self._last[key] for key in _WORKED}})
        if answer_p95_s is not None:
            self._note({"answer_p95_s": round(answer_p95_s, 1)})
        self._parts.close()
        self._now.unlink(missing_ok=True)

    def _note(self, entry: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a full disk
            self._parts.write(json.dumps(entry).encode() + b"\n")


def read_parts(directory: Path) -> Iterator[dict[str, Any]]:
    """The counts of a part and ``worker``, for each whole line of every worker.

    What is no line, such as a write that a full disk cut short, is passed over.
    """
    return (entry for entry in _lines(directory) if "overlay" in entry)


def read_answer_p95_s(directory: Path) -> float | None:
    """What 95 % of the answers took at most, of the worker whose answers took longest."""
    found = (entry.get("answer_p95_s") for entry in _lines(directory))
    return max((float(p95_s) for p95_s in found if p95_s is not None), default=None)


def read_worked(directory: Path) -> Iterator[dict[str, Any]]:
    """How each worker that answered for a minute or more did so.

    Of those that have ended and of the others as they stand, killed ones among them:

    - ``worker``, ``replica``, ``plan``, ``time``, ``engine_version`` and totals as in `Beat`;
    - ``start_s`` from the worker's start to its first row;
    - ``steady_tokens_per_s``, median of ``steady_minutes`` minutes.
    """
    for entry in _lines(directory):
        if isinstance(found := entry.get("worked"), dict):
            yield {**_UNTOLD, **found, "worker": entry["worker"]}
    for beat in read_beats(directory):
        if beat["steady_minutes"]:
            yield beat


def _lines(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            if entry := _object(line):
                yield {"worker": path.stem, **entry}


def read_beats(directory: Path) -> Iterator[dict[str, Any]]:
    """The last beat of every worker that has not ended, or was killed.

    Each has the fields of `Beat` and

    - ``worker``, ``host`` and ``time``, that of the beat;
    - ``running_since``, None until the engine is up;
    - ``tokens_per_s`` and ``tokens_per_s_10m``, new tokens a second over the last 1 and 10 minutes;
    - ``rate_covers_s``, how much of the 10 minutes it has been answering.
    """
    for path in sorted(directory.glob("*.now")):
        try:
            entry = _object(path.read_bytes())
        except FileNotFoundError:  # it ended between the listing and this
            continue
        if entry:
            yield {"worker": path.stem, **_UNTOLD, **entry}


def words(beat: Mapping[str, Any]) -> str:
    """What `read_beats` gives of a worker, as a sentence for people; only what is known."""
    found = [f"{beat['rows']} rows", f"{beat['in_flight']} in flight"]
    if beat["queued"] is not None:
        found.append(f"{beat['queued']:.0f} queued")
    if beat["kv_cache_usage"] is not None:
        found.append(f"KV cache {beat['kv_cache_usage']:.0%}")
    if beat["tokens_per_s"] or beat["tokens_per_s_10m"]:
        found.append(f"{beat['tokens_per_s']:.0f} tokens/s")
        if beat["rate_covers_s"] > _MINUTE_S:
            found[-1] += f" ({beat['tokens_per_s_10m']:.0f} over 10 minutes)"
    if beat["engine_restarts"]:
        found.append(f"engine restarts {beat['engine_restarts']}")
    return ", ".join(found)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
