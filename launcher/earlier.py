"""What earlier runs say of the one at hand: how fast replicas were, how long answers are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from launcher.errors import OutputError
from launcher.plan.types import Plan, RunIdentity
from launcher.rundir import RunDir
from launcher.telemetry.metrics import read_answer_p95_s, read_parts, read_worked

__all__ = ["Lengths", "Pace", "lengths_of", "newest", "pace_of"]

LEAST_MINUTES = 3
LEAST_ROWS = 50
_MOST = 1e15  # of any figure: beyond it is no count
_LATEST = 2**33  # of times in seconds since 1970
_MOST_RUNS = 50
_MOST_BYTES = 50_000_000  # of their manifests
_MOST_WORKERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Means of the rows that a run has answered.

    ``same_input``: its prompts are of the same files.
    """

    run: str
    rows: int
    prompt_tokens: float
    new_tokens: float
    same_input: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast replicas were.

    Attributes
    ----------
    run, ended
        The newest of the runs, and when a worker of it said so last, in seconds since 1970.
    tokens_s, workers
        Median of so many of the last workers.
    prompt_tokens, new_tokens
        Means of their rows.
    answer_s
        What 95 % of the answers took at most; None where nobody noted it.
    start_s
        Median from the worker's start to its first row.
    """

    run: str
    ended: float
    tokens_s: float
    workers: int
    prompt_tokens: float
    new_tokens: float
    answer_s: float | None
    start_s: float


def newest(runs: Sequence[RunDir]) -> list[RunDir]:
    """The runs that were begun last, the newest first: as many as can be read in a second."""
    found = []
    for run in runs:
        with contextlib.suppress(OSError):  # it went since it was listed
            now = run.identity_path.stat()
            found.append((now.st_mtime, str(run.path), now.st_size, run))
    found.sort(reverse=True)
    so_far = accumulate(size for _, _, size, _ in found)
    kept = zip(found[:_MOST_RUNS], so_far, strict=False)
    return [run for (*_, run), total in kept if total <= _MOST_BYTES]


def pace_of(plan: Plan, identity: RunIdentity, runs: Sequence[RunDir]) -> Pace | None:
    """How fast replicas of this model, engine and cut with these options were on this partition.

    A worker counts that answered `LEAST_ROWS` rows and more than `LEAST_MINUTES` minutes.
    """
    found = [
        (run, worker) for run in runs for worker in _workers(run, plan, identity) if _steady(worker)
    ]
    found.sort(key=lambda one: -one[1]["time"])
    last = found[:_MOST_WORKERS]
    if not last:
        return None
    rows = sum(worker["rows"] for _, worker in last)
    run, worker = last[0]
    return Pace(
        run=str(run.path),
        ended=worker["time"],
        tokens_s=_median(w["steady_tokens_per_s"] for _, w in last),
        workers=len(last),
        prompt_tokens=sum(w["prompt_tokens"] for _, w in last) / rows,
        new_tokens=sum(w["completion_tokens"] for _, w in last) / rows,
        answer_s=read_answer_p95_s(run.path / "metrics"),
        start_s=_median(w["start_s"] for _, w in last),
    )


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _workers(run: RunDir, plan: Plan, identity: RunIdentity) -> Iterator[Mapping[str, Any]]:
    with contextlib.suppress(OutputError, OSError):  # a damaged run tells nothing
        numbers = {number for number in run.plan_numbers() if _alike(run.plan(number), plan)}
        if numbers and _same_model(run.identity(), identity):
            workers = read_worked(run.path / "metrics")
            yield from (worker for worker in workers if str(worker["plan"]) in numbers)


def _alike(own: Plan, plan: Plan) -> bool:
    partitions = [dict(one.directives).get("--partition") for one in (own, plan)]
    return (
        (own.site, own.engine, own.engine_options) == (plan.site, plan.engine, plan.engine_options)
        and own.layout.cut == plan.layout.cut
        and partitions[0] == partitions[1]
    )


def _same_model(own: RunIdentity, identity: RunIdentity) -> bool:
    """By content where both are known by it."""
    if own.model.digest is not None and identity.model.digest is not None:
        return own.model.digest == identity.model.digest
    return own.model.name == identity.model.name


_FIGURES = (
    *("time", "start_s", "steady_tokens_per_s", "steady_minutes"),
    *("rows", "prompt_tokens", "completion_tokens"),
)


def _steady(worker: Mapping[str, Any]) -> bool:
    """Whether its figures are figures, and of enough work."""
    found = [worker.get(key) for key in _FIGURES]
    if not all(isinstance(value, int | float) and 0 <= value <= _MOST for value in found):
        return False
    long = worker["steady_minutes"] >= LEAST_MINUTES and worker["rows"] >= LEAST_ROWS
    long = long and worker["time"] < _LATEST
    return bool(long and worker["steady_tokens_per_s"] > 0 and worker["completion_tokens"] > 0)


def lengths_of(identity: RunIdentity, runs: Sequence[RunDir]) -> Lengths | None:
    """Of the newest run that asked this model in the same way and answered `LEAST_ROWS` rows."""
    for run in runs:
        with contextlib.suppress(OutputError, OSError):
            own = run.identity()
            asked = (own.prompt, own.sampling) == (identity.prompt, identity.sampling)
            if asked and _same_model(own, identity):
                found = _lengths(run, same_input=own.inputs == identity.inputs)
                if found is not None:
                    return found
    return None


def _lengths(run: RunDir, *, same_input: bool) -> Lengths | None:
    keys = ("ok", "prompt_tokens", "completion_tokens")
    parts = [[part.get(key) for key in keys] for part in read_parts(run.path / "metrics")]
    whole = [part for part in parts if all(isinstance(n, int) and 0 <= n <= _MOST for n in part)]
    rows, prompts, answers = (
        (sum(column) for column in zip(*whole, strict=True)) if whole else (0,) * 3
    )
    if rows < LEAST_ROWS or not answers:
        return None
    return Lengths(
        run=str(run.path),
        rows=rows,
        prompt_tokens=prompts / rows,
        new_tokens=answers / rows,
        same_input=same_input,
    )
