"""How a run stands, from its files and its scheduler. No daemon, and nothing is written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.data.passes import all_passes
from launcher.data.tally import tally
from launcher.errors import (
    HpcLlmError,
    OutputError,
    Problem,
    RunError,
    SchedulerError,
    Stopped,
)
from launcher.plan import grid
from launcher.plan.types import RunIdentity
from launcher.rundir import RunDir
from launcher.schedulers.base import JobRef, JobState, Scheduler
from launcher.schedulers.registry import scheduler_for
from launcher.telemetry.last_words import end_of_start, last_words
from launcher.telemetry.metrics import read_beats, read_parts

__all__ = ["RunState", "RunStatus", "failure", "status", "wait"]

_Outcome = tuple[str, dict[str, Any]]
RunState = Literal["ready", "queued", "running", "done", "cancelled", "stopped", "failed"]

# What script.sh says where a whole step was gone before any of its ranks could say why.
KILLED_AT_ONCE = "all processes of the step were killed at once"
_STALE_S = 30.0
_STEADY_S = 120.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How a run stands.

    Attributes
    ----------
    rows_ok, rows_error
        Rows in published parts.
    rows_open
        Rows answered by live workers whose part is not out yet.
    rows_left
        Rows that nobody has answered yet, about, or None while nothing tells; see `_Ahead`.
    tokens_per_s, tokens_per_s_10m
        New tokens over the last 1 and 10 minutes, all live workers together. A worker that has
        not answered for 10 minutes counts with what it has.
    in_flight, queued, kv_cache_usage
        Of the live workers: rows in their engines, those of these that wait there, and the mean
        share of their KV caches that is taken; None where no engine tells.
    state
        ``ready`` is written but never submitted; ``stopped`` left early and can be resumed.
    left_s
        About how long it takes to the end by tokens, or None while nothing tells; see `_left_s`.
    workers
        What `read_beats` gives of each live worker, by replica, and ``age_s``, how old that is.
    jobs
        ``{id, state}`` of each job, oldest first, and why a queued one waits.
    problems
        Why it failed, from the outcome files of the newest start of each job.
    networks
        What NCCL uses between the nodes of replicas, and warnings of it, as ranks of the newest
        starts say: see `RunDir.networks`.
    """

    name: str
    path: str
    state: RunState
    rows_ok: int
    rows_error: int
    rows_open: int
    rows_left: int | None
    units_done: int
    units_total: int
    bytes_done: int
    bytes_total: int
    prompt_tokens: int
    completion_tokens: int
    left_s: float | None
    workers: tuple[dict[str, Any], ...]
    jobs: tuple[dict[str, str], ...]
    problems: tuple[Problem, ...]
    max_bad_fraction: float
    networks: tuple[dict[str, Any], ...] = ()

    @property
    def tokens_per_s(self) -> float:
        return round(sum(float(w["tokens_per_s"]) for w in self.workers), 1)

    @property
    def tokens_per_s_10m(self) -> float:
        return round(sum(_long_rate(w) for w in self.workers), 1)

    @property
    def in_flight(self) -> int:
        return sum(w["in_flight"] for w in self.workers)

    @property
    def queued(self) -> int | None:
        known = [w["queued"] for w in self.workers if w["queued"] is not None]
        return round(sum(known)) if known else None

    @property
    def kv_cache_usage(self) -> float | None:
        known = [w["kv_cache_usage"] for w in self.workers if w["kv_cache_usage"] is not None]
        return round(sum(known) / len(known), 3) if known else None

    @property
    def ended(self) -> bool:
        return self.state not in {"queued", "running"}

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": self.path,
            "state": self.state,
            "rows": {"ok": self.rows_ok, "error": self.rows_error, "open": self.rows_open},
            "rows_left": self.rows_left,
            "units": {"done": self.units_done, "total": self.units_total},
            "bytes": {"done": self.bytes_done, "total": self.bytes_total},
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_10m": self.tokens_per_s_10m,
            "in_flight": self.in_flight,
            "queued": self.queued,
            "kv_cache_usage": self.kv_cache_usage,
            "left_s": self.left_s,
            "workers": list(self.workers),
            "jobs": list(self.jobs),
            "networks": list(self.networks),
        }


def status(run: RunDir, scheduler: Scheduler | None = None) -> RunStatus:
    """How ``run`` stands now.

    Parameters
    ----------
    scheduler
        Reused by `wait`; made from the newest plan when None.

    Raises
    ------
    OutputError
        ``rundir.damaged``.
    SchedulerError
        The scheduler could not be asked.
    """
    identity = run.identity()
    plan = run.newest_plan()
    scheduler = scheduler or scheduler_for(plan.scheduler)
    refs = [JobRef.from_json(entry) for entry in run.jobs()]
    states = scheduler.states(refs)
    # After the scheduler was asked: a job that is over has published all it ever will.
    newest, starts, outcomes = _newest(run)
    state = _state(run, states, outcomes)
    # After DONE was looked for: a run that is done has all of its parts.
    parts = list(read_parts(run.path / "metrics"))
    counts = tally(run, parts)
    work = _Work.of(run, identity)
    live = any(state.live for state in states.values())
    workers = _workers(run) if live and state != "done" else ()
    open_rows = _open_rows(workers, parts)
    ahead = _ahead(work, parts, workers, open_rows)
    return RunStatus(
        name=identity.name,
        path=str(run.path),
        state=state,
        rows_ok=counts.ok,
        rows_error=counts.error,
        rows_open=open_rows,
        rows_left=ahead.rows,
        units_done=len(work.done),
        units_total=len(work.all),
        bytes_done=work.bytes(work.done),
        bytes_total=work.bytes(work.all),
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        left_s=_left_s(ahead, workers),
        workers=workers,
        jobs=_jobs(refs, states, scheduler),
        problems=(
            *_problems(outcomes, run),
            *(_unspoken(run, starts, outcomes) if state == "failed" else ()),
        )
        or _unstarted(run, state, newest, starts),
        max_bad_fraction=plan.max_bad_fraction,
        networks=tuple(n for job, start in starts.items() for n in run.networks(job, start)),
    )


def wait(run: RunDir, scheduler: Scheduler, report: Callable[[RunStatus], None]) -> RunStatus:
    """Report the run's status again and again until it has ended; the last one.

    A scheduler that cannot be reached for a while is asked again.
    """
    while True:
        try:
            now = status(run, scheduler)
        except SchedulerError as exc:
            if not exc.transient:
                raise
        else:
            report(now)
            if now.ended:
                return now
        _sleep_unless_done(run, scheduler.poll_s)


def _sleep_unless_done(run: RunDir, most_s: float) -> None:
    """Wait before the scheduler is asked again; the end of the run needs no asking."""
    deadline = time.monotonic() + most_s
    while not run.done_path.exists() and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_S))


def failure(found: RunStatus) -> HpcLlmError | None:
    """What the end of a run means for an exit code; None when all is well or it goes on."""
    if found.state == "failed":
        problems = found.problems or (_silent_death(found),)
        return RunError(problems)
    if found.state in ("stopped", "cancelled"):
        message = f"the run was {found.state} with {found.units_done} of {found.units_total} units"
        hint = f"go on with `hpc-llm resume {found.path}`"
        code = "run.stopped" if found.state == "stopped" else "run.cancelled"
        return Stopped([*found.problems, Problem(code, message, hint=hint)])
    rows = found.rows_ok + found.rows_error
    if found.state == "done" and found.rows_error > found.max_bad_fraction * rows:
        message = (
            f"{found.rows_error} of {rows} rows are errors, and the job allows "
            f"{found.max_bad_fraction:.2%} (limits.max_bad_fraction)"
        )
        hint = f"`hpc-llm results {found.path}` gives each with its code"
        return OutputError(Problem("output.too-many-errors", message, hint=hint))
    return None


def _silent_death(found: RunStatus) -> Problem:
    message = "its jobs are over, units are missing, and no step left a reason"
    return Problem("run.died", message, hint=f"see `hpc-llm logs {found.path}`, then resume it")


def _state(run: RunDir, states: Mapping[str, JobState], outcomes: Iterable[_Outcome]) -> RunState:
    if run.done_path.exists():
        return "done"
    found = set(states.values())
    if found & {JobState.RUNNING, JobState.LOST}:
        return "running"
    if JobState.QUEUED in found:
        return "queued"
    if run.stop_path.exists():
        return "cancelled"
    if not states:
        return "ready"
    kinds = {kind for kind, _ in outcomes}
    return "stopped" if kinds and kinds <= {"done", "resumable"} else "failed"


def _jobs(
    refs: Sequence[JobRef], states: Mapping[str, JobState], scheduler: Scheduler
) -> tuple[dict[str, str], ...]:
    queued = [job for job in refs if states[job.id] is JobState.QUEUED]
    reasons = scheduler.reasons(queued) if queued else {}
    why = {job.id: {"reason": reasons[job.id]} for job in queued if job.id in reasons}
    return tuple(
        {"id": job.id, "state": states[job.id].value, **why.get(job.id, {})} for job in refs
    )


def _newest(run: RunDir) -> tuple[str | None, dict[str, int], list[_Outcome]]:
    """The newest job, the newest start of each of its tasks, and how their steps ended.

    No start when it died before its first line: what an older job left says nothing about it. Of
    a chain it is the newest job that did anything: those after it had nothing to do.
    """
    jobs = run.jobs()
    last = jobs[-1].get("chain") if jobs else None
    chain = [job["id"] for job in jobs if last is not None and job.get("chain") == last]
    for id_ in reversed(chain):
        starts = _starts(run, id_)
        if outcomes := list(_outcomes(run, starts)):
            return id_, starts, outcomes
    newest = jobs[-1]["id"].partition("_")[0] if jobs else None
    starts = _starts(run, newest)
    return newest, starts, list(_outcomes(run, starts))


def _starts(run: RunDir, job: str | None) -> dict[str, int]:
    """The number of the newest start of each task of ``job``."""
    own = [e for e in run.registrations() if e["job"].partition("_")[0] == job]
    return {e["job"]: e["restart"] for e in sorted(own, key=lambda e: e["restart"])}


def _outcomes(run: RunDir, starts: Mapping[str, int]) -> Iterator[_Outcome]:
    for job, start in starts.items():
        for kind, details in run.outcomes(job, start):
            yield kind, {**details, "job": job, "start": start}


def _unstarted(
    run: RunDir, state: RunState, newest: str | None, starts: Mapping[str, int]
) -> tuple[Problem, ...]:
    """What to say of a newest job that is over and never ran the first line of its script."""
    if state != "failed" or starts:
        return ()
    message = f"job {newest} was over before the first line of its script"
    hint = f"unless somebody cancelled it: make sure that the compute nodes see {run.path}"
    return (Problem("run.died", message, hint=hint),)


def _problems(outcomes: Iterable[_Outcome], run: RunDir) -> Iterable[Problem]:
    for kind, details in outcomes:
        for problem in details["problems"] if kind != "done" else ():
            replica = details["replica"]
            found = Problem(problem["code"], problem["message"], hint=problem["hint"])
            if found.code == "run.died":
                log = _step_log(run, details["job"], replica)
                found = _explained(found, log, details["start"])
            yield dataclasses.replace(found, message=f"replica {replica}: {found.message}")


def _explained(found: Problem, log: Path, start: int) -> Problem:
    """A process that was killed, and what the step's log says of it if that is more."""
    told = last_words(log, start)
    if found.message == KILLED_AT_ONCE and (told is None or told.code == "run.died"):
        from launcher.engines.tensorrt_llm_causes import deepest  # noqa: PLC0415 - start-up time

        told = deepest(end_of_start(log, start).splitlines()) or told
    elif told is None or told.code == "run.died":
        return found
    if told is None:
        return found
    return dataclasses.replace(told, message=f"{found.message}: {told.message}")


def _unspoken(
    run: RunDir, starts: Mapping[str, int], outcomes: Iterable[_Outcome]
) -> Iterator[Problem]:
    """Why steps ended of which no rank could say how: the launcher may have."""
    ended = {(details["job"], details["replica"]) for _, details in outcomes}
    for job, start in starts.items():
        for path in sorted(_step_log(run, job, 0).parent.glob(f"{job}.s*.log")):
            replica = int(path.stem.rpartition(".s")[2])
            told = None if (job, replica) in ended else last_words(path, start)
            if told is not None:
                yield dataclasses.replace(told, message=f"replica {replica}: {told.message}")


def _step_log(run: RunDir, job: str, replica: int) -> Path:
    return run.path / "logs" / f"{job}.s{replica}.log"


def _workers(run: RunDir) -> tuple[dict[str, Any], ...]:
    """How each live worker stands; ``age_s`` says how old its word is."""
    now = time.time()
    beats = [b for b in read_beats(run.path / "metrics") if now - b["time"] < _STALE_S]
    return tuple(
        {**beat, "age_s": round(max(0.0, now - beat["time"]), 1)}
        for beat in sorted(beats, key=lambda beat: int(beat["replica"]))
    )


def _open_rows(workers: Iterable[dict[str, Any]], parts: Iterable[dict[str, Any]]) -> int:
    """Rows answered by the live workers, less those in their published parts."""
    answered = {worker["worker"]: int(worker["rows"]) for worker in workers}
    own = (part for part in parts if part["worker"] in answered)
    return max(0, sum(answered.values()) - sum(int(p["ok"]) + int(p["error"]) for p in own))


@dataclass(frozen=True, slots=True)
class _Work:
    """The units of all passes, and those that are done, each as ``(overlay, unit)``."""

    identity: RunIdentity
    all: set[tuple[int, int]]
    done: set[tuple[int, int]]

    @classmethod
    def of(cls, run: RunDir, identity: RunIdentity) -> _Work:
        passes = all_passes(run, identity)
        every = {(p.overlay, unit) for p in passes for unit in p.units}
        published = {(p.overlay, u) for p in passes for u in run.published_units(p.overlay)}
        return cls(identity, every, every & published)

    def bytes(self, units: Iterable[tuple[int, int]]) -> int:
        """Bytes of input that ``units`` span."""
        spans = (grid.span(self.identity.grid, unit) for _, unit in units)
        return sum(end - start for start, end in spans)

    def rows_per_byte(self, overlay: int) -> float | None:
        """As the input files tell; None where they do not, and for an overlay: it has few rows."""
        known = [entry.rows for entry in self.identity.inputs if entry.rows is not None]
        if overlay or not known or len(known) < len(self.identity.inputs):
            return None
        return sum(known) / self.identity.grid.total_bytes


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What a run has left to do, about; None where nothing tells yet.

    Attributes
    ----------
    rows
        Those of units that are not published, less those answered in open units, and no fewer
        than are in flight. A unit is taken to have as many rows a byte as the noted parts of its
        pass; before the first of them, as its input files where these tell their rows.
    tokens
        New tokens of these rows: each takes the mean of the noted parts of its pass; before the
        first of them, the mean of what live workers have answered.
    """

    rows: int | None = None
    tokens: float | None = None


def _ahead(
    work: _Work, parts: Iterable[dict[str, Any]], workers: Sequence[dict[str, Any]], open_rows: int
) -> _Ahead:
    missing = work.all - work.done
    noted = {(part["overlay"], part["unit"]): part for part in parts}
    by_workers = _mean_tokens(workers, sum(int(worker["rows"]) for worker in workers))
    in_flight = sum(int(worker["in_flight"]) for worker in workers)
    rows, tokens, known = 0.0, 0.0, True
    for overlay in sorted({overlay for overlay, _ in missing}):
        seen = {place for place in noted.keys() & work.done if place[0] == overlay}
        found = [noted[place] for place in seen]
        seen_rows = sum(int(part["ok"]) + int(part["error"]) for part in found)
        density = seen_rows / work.bytes(seen) if seen_rows else work.rows_per_byte(overlay)
        if density is None:
            return _Ahead()
        span_bytes = work.bytes(place for place in missing if place[0] == overlay)
        own = max(span_bytes * density - open_rows, in_flight)
        open_rows = in_flight = 0  # those are of the pass that all work on
        rows += own
        mean = _mean_tokens(found, seen_rows) or by_workers
        known = known and mean is not None
        tokens += own * (mean or 0.0)
    return _Ahead(round(rows), tokens if known else None)


def _mean_tokens(counts: Iterable[Mapping[str, Any]], rows: int) -> float | None:
    """New tokens of a row, of ``rows`` that ``counts`` are about; None while there are none."""
    tokens = sum(int(entry["completion_tokens"]) for entry in counts)
    return tokens / rows if tokens and rows else None


def _left_s(ahead: _Ahead, workers: Iterable[Mapping[str, Any]]) -> float | None:
    """Time left: the tokens ahead, at the speed of all live workers together.

    A worker's speed is that of the last 10 minutes, or, until it has answered for
    `_STEADY_S`, that of the last minute.
    """
    speed = sum(
        _long_rate(w) if w["rate_covers_s"] >= _STEADY_S else float(w["tokens_per_s"])
        for w in workers
    )
    return None if ahead.tokens is None or speed <= 0 else ahead.tokens / speed


def _long_rate(worker: Mapping[str, Any]) -> float:
    """New tokens a second over 10 minutes; over one of a worker that tells no more."""
    told = worker["tokens_per_s_10m"]
    return float(worker["tokens_per_s"] if told is None else told)
