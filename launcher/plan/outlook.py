"""What a run will take: tokens, wall time, GPU hours, and how often the time limit ends a job.

All figures are ranges. Work and speed come from a sample and a model, or from an earlier run; here
is only what follows from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["BEGIN_TIME_S", "Outlook", "Range", "Speed", "Terms", "Work", "outlook"]

BEGIN_TIME_S = 120
"""How long Slurm keeps a job in BeginTime that requeued itself (seen on 22.05)."""
# What a suggested time has over what is likely to be needed, where the worst case has less.
_MARGIN = 1.25
# A start that leaves less of a job than this to its rows is taken to leave so much.
_LEAST_USE = 0.1
# Up to each of these a time is rounded up to a multiple of the other.
_STEPS_S = ((3600, 300), (6 * 3600, 900), (math.inf, 3600))


@dataclass(frozen=True, slots=True)
class Range:
    """What a figure is likely to be, and between what it lies if the assumptions hold."""

    least: float
    likely: float
    most: float

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.likely <= self.most < math.inf:
            raise ValueError(f"no range: {self.least}, {self.likely}, {self.most}")

    @classmethod
    def exactly(cls, value: float) -> Range:
        return cls(value, value, value)

    @classmethod
    def around(cls, value: float, factor: float) -> Range:
        """``value``, by ``factor`` less or more."""
        return cls(value / factor, value, value * factor)

    def __mul__(self, other: Range) -> Range:
        return Range(self.least * other.least, self.likely * other.likely, self.most * other.most)

    def at_most(self, value: float) -> Range:
        return Range(min(self.least, value), min(self.likely, value), min(self.most, value))

    def times(self, factor: float) -> Range:
        return self * Range.exactly(factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What there is to be done.

    Attributes
    ----------
    prompt_tokens, new_tokens
        Means of a row.
    prompt_p95
        What 95 % of the prompts have at most, in tokens; None where nothing tells.
    most_new_tokens
        The largest number of new tokens that a row may get.
    """

    rows: Range
    prompt_tokens: Range
    new_tokens: Range
    prompt_p95: float | None
    most_new_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast one replica is.

    Attributes
    ----------
    tokens_s
        New tokens a second at the likely lengths.
    row_s
        Seconds of a replica for a row: with few new tokens at the least, with many at the most.
    longest_s
        How long the longest answers take: for so long a replica may be alone at the end.
    source
        ``measured in RUN on DATE`` or ``by the cost model``.
    """

    tokens_s: Range
    row_s: Range
    longest_s: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How the work is spread, and what a job is given.

    Attributes
    ----------
    replicas
        That run at the same time.
    gpus
        That all of them hold together, idle ones too; 0 on CPUs.
    start_s
        From a job's start to its first row.
    time_s, limit_s, least_s
        A job's time; what the partition gives and wants at the least; None where it is unbounded.
    restart
        How a job that was ended by its limit goes on.
    attempts
        As ``limits.attempts`` of a plan: restarts, of a chain its length.
    """

    replicas: int
    gpus: int
    start_s: Range
    time_s: int | None
    limit_s: int | None
    least_s: int | None
    warn_before_s: int
    restart: Literal["requeue", "chain", "none"]
    attempts: int

    @property
    def restarts_allowed(self) -> int:
        return {"requeue": self.attempts, "chain": self.attempts - 1, "none": 0}[self.restart]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a run will take.

    Attributes
    ----------
    prompt_tokens, new_tokens
        Of all rows together.
    wall_s
        From the first job's start to the last answer, restarts and their pauses included; not
        what a job waits in the queue.
    gpu_hours
        None on CPUs.
    restarts, restarts_most
        That the time limit forces on each job, likely and at the most; None where there is none.
    attempts_needed
        The ``limits.attempts`` that would do; None where a job cannot restart.
    slow_start
        Starting may take nearly all of a job's time.
    suggested_s, suggested_restarts
        A time for which to ask, and how many restarts it forces at the most; None without a
        scheduler.
    """

    prompt_tokens: Range
    new_tokens: Range
    wall_s: Range
    gpu_hours: Range | None
    restarts: int | None = None
    restarts_most: int | None = None
    attempts_needed: int | None = None
    slow_start: bool = False
    suggested_s: int | None = None
    suggested_restarts: int | None = None


def outlook(work: Work, speed: Speed, terms: Terms) -> Outlook:
    """What ``work`` takes at ``speed`` under ``terms``."""
    busy = (work.rows * speed.row_s).times(1 / terms.replicas)
    tail = Range(0.0, speed.longest_s / 2, speed.longest_s)
    pause_s = BEGIN_TIME_S if terms.restart == "requeue" else 0
    wall, held, counts = [], [], []
    for busy_s, start_s in zip(_values(busy), _values(terms.start_s), strict=True):
        restarts = _restarts(busy_s, start_s, terms, terms.time_s)
        starting = (restarts + 1) * start_s
        counts.append(restarts)
        wall.append(busy_s + starting + restarts * pause_s)
        held.append(terms.gpus * (busy_s + starting) / 3600)
    alone = tail.times(terms.gpus / terms.replicas / 3600)
    found = Outlook(
        prompt_tokens=work.rows * work.prompt_tokens,
        new_tokens=work.rows * work.new_tokens,
        wall_s=_sum(wall, tail),
        gpu_hours=_sum(held, alone) if terms.gpus else None,
    )
    if terms.time_s is None:
        return found
    suggested_s = _suggested(busy, tail, terms)
    most_used = terms.time_s * _LEAST_USE
    return replace(
        found,
        restarts=counts[1],
        restarts_most=counts[2],
        attempts_needed=_attempts(counts[2], terms),
        slow_start=_useful_s(terms.start_s.likely, terms, terms.time_s) <= most_used,
        suggested_s=suggested_s,
        suggested_restarts=_restarts(busy.most, terms.start_s.most, terms, suggested_s),
    )


def _values(of: Range) -> tuple[float, float, float]:
    return of.least, of.likely, of.most


def _sum(values: list[float], more: Range) -> Range:
    return Range(*(a + b for a, b in zip(values, _values(more), strict=True)))


def _useful_s(start_s: float, terms: Terms, time_s: int) -> float:
    """Seconds of a job in which rows are answered."""
    return max(_LEAST_USE * time_s, time_s - terms.warn_before_s - start_s)


def _restarts(busy_s: float, start_s: float, terms: Terms, time_s: int | None) -> int:
    if time_s is None:
        return 0
    return max(0, math.ceil(busy_s / _useful_s(start_s, terms, time_s)) - 1)


def _attempts(restarts: int, terms: Terms) -> int | None:
    return {"requeue": restarts, "chain": restarts + 1, "none": None}[terms.restart]


def _suggested(busy: Range, tail: Range, terms: Terms) -> int:
    """A time in which the work ends without a restart, as far as the partition gives so much."""
    likely, most = (
        terms.warn_before_s + start + busy_s + last
        for start, busy_s, last in (
            (terms.start_s.likely, busy.likely, tail.likely),
            (terms.start_s.most, busy.most, tail.most),
        )
    )
    wanted = max(most, _MARGIN * likely, terms.least_s or 0)
    step = next(step for limit, step in _STEPS_S if wanted <= limit)
    rounded = math.ceil(wanted / step) * step
    return rounded if terms.limit_s is None else min(rounded, terms.limit_s)
