"""Use cases that start work: submit a job, resume a run, cancel it."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher import runs
from launcher.data.passes import error_codes, open_pass
from launcher.data.records import RETRYABLE
from launcher.data.tally import count_parts
from launcher.errors import PlanError, Problem, SchedulerError
from launcher.plan.capabilities import ENGINES
from launcher.plan.compare import differences
from launcher.plan.types import Plan
from launcher.prepare import Prepared, prepare, run_directory_files
from launcher.rundir import SUBDIRECTORIES, RunDir, publish, replace
from launcher.schedulers.base import JobRef, Scheduler
from launcher.schedulers.refusals import cause_of
from launcher.schedulers.registry import scheduler_for
from launcher.telemetry.metrics import read_answer_p95_s, read_parts
from launcher.turns import turn
from launcher.units import parse_duration

__all__ = [
    "Submission",
    "cancel",
    "check_can_run",
    "render_to",
    "resume",
    "retry_errors",
    "scale",
    "submit",
]

# Between the last answers and the end of a job: a part to write, an engine to close.
_LEAVING_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What became of a submission.

    ``how`` is ``submitted``, ``attached`` (a job of this run is live already) or ``done``
    (nothing is left to do).
    """

    run: RunDir
    how: Literal["submitted", "attached", "done"]
    job: JobRef | None = None
    warnings: tuple[Problem, ...] = ()


def submit(prepared: Prepared) -> Submission:
    """Write the run directory and start its job, unless one is live or the run is done.

    Raises
    ------
    PlanError
        ``rundir.other-run`` when the directory belongs to another run, with what differs;
        ``rundir.not-empty`` when it holds anything else; ``model.not-cached``.
    SchedulerError
        The scheduler refused. The written directory is kept; submitting again goes on.
    """
    plan, run = prepared.resolution.plan, prepared.run
    check_can_run(plan)
    check_directory(prepared)
    scheduler = scheduler_for(plan.scheduler)
    if found := _standing(run, scheduler):
        return found
    _write(prepared)
    with turn(run):
        if found := _standing(run, scheduler):
            return found
        started = _start(run, scheduler, wanted=plan.layout.replicas)
    return dataclasses.replace(started, warnings=(*_untried(prepared), *started.warnings))


def _untried(prepared: Prepared) -> Iterator[Problem]:
    """A warning where no run has ended under the site file as it is."""
    site = prepared.site
    if site.spec.scheduler.type == "local" or runs.site_digest(site.text) in runs.ran_sites():
        return
    message = f"this site file was never run: no run of yours has ended under {site.source.path}"
    hint = "try a few rows first, with --limit 10"
    yield Problem("site.never-run", message, hint=hint, severity="warning")


def resume(run: RunDir) -> Submission:
    """Start the run's newest plan again, unless a job of it is live.

    It is started as it was rendered, but for a warning that comes too late: where answers were
    seen to take longer than the job had to leave, a plan with an earlier one is written.

    Raises
    ------
    SchedulerError
        The scheduler refused.
    """
    plan = run.newest_plan()
    scheduler = scheduler_for(plan.scheduler)
    with turn(run):
        if found := _standing(run, scheduler):
            return found
        if wanted_s := _earlier_warning_s(run, plan):
            _replan(run, *_sizes(plan), f"limits.warn_before={wanted_s}s")
        return _start(run, scheduler)


def _earlier_warning_s(run: RunDir, plan: Plan) -> int | None:
    """How long before the end of the job its workers have to know of it, if that is not so now."""
    p95_s = read_answer_p95_s(run.path / "metrics")
    time = dict(plan.directives).get("--time")
    if p95_s is None or time is None:
        return None
    wanted_s = min(math.ceil(p95_s + _LEAVING_S), parse_duration(time) // 2)
    return wanted_s if wanted_s > plan.warn_before_s else None


def scale(run: RunDir, replicas: int) -> Submission:
    """Submit as many replicas as are missing to ``replicas`` live ones, under a plan of their own.

    Raises
    ------
    PlanError
        ``scale.enough`` when so many are live already: replicas leave by `cancel` or scancel.
    SchedulerError
        The scheduler refused.
    """
    scheduler = scheduler_for(run.newest_plan().scheduler)
    if _finished(run):
        return Submission(run=run, how="done")
    with turn(run):
        running = _live_replicas(run, scheduler)
        if running >= replicas:
            message = f"{running} replicas are queued or running already"
            hint = f"ask for more than {running}; to have fewer, scancel one of their jobs"
            raise PlanError(Problem("scale.enough", message, hint=hint))
        _replan(run, *_sizes(run.newest_plan()), f"replicas={replicas - running}")
        return _start(run, scheduler, wanted=replicas)


def _replan(run: RunDir, *settings: str) -> None:
    """Write a plan like the newest one but for ``settings``, which make no other run."""
    _write_plan(run, _prepared(run, *settings))


def _write_plan(run: RunDir, prepared: Prepared) -> None:
    _write(dataclasses.replace(prepared, run=run, identity=run.identity()))


def _sizes(plan: Plan) -> Iterator[str]:
    """Settings by which another plan of the run has the sizes of ``plan``, chosen ones too.

    They would be chosen anew otherwise: for all of the input where the run is of its first rows,
    and by what this version of the planner knows.
    """
    cut = plan.layout.cut
    yield f"replicas={plan.layout.replicas}"
    yield f"parallelism={{tp: {cut.tp}, pp: {cut.pp}, ep: {cut.ep}}}"
    for name, value in plan.engine_options.items():
        if type(value) is int and name.isidentifier():
            yield f"engine_options.{name}={value}"


def _prepared(run: RunDir, *settings: str) -> Prepared:
    """What the job file of ``run`` comes to now, with ``settings`` besides those of its plan."""
    plan = run.newest_plan()
    return prepare(
        run.path / "job.yaml",
        site=str(run.path / "site.yaml"),
        settings=(*plan.settings, *settings),
        origin=Path(plan.origin),
    )


def _live_replicas(run: RunDir, scheduler: Scheduler) -> int:
    """Replicas that are queued or running; of a chain, those of its first live job."""
    _recover(run, scheduler)
    jobs = [(entry, _tasks(entry)) for entry in run.jobs()]
    every = [JobRef.from_json({**entry, "id": task}) for entry, tasks in jobs for task in tasks]
    states = scheduler.states(every)
    found: dict[str, int] = {}
    for entry, tasks in jobs:
        live = sum(replicas for task, replicas in tasks.items() if states[task].live)
        if live:
            found.setdefault(entry.get("chain", entry["id"]), live)
    return sum(found.values())


def _tasks(entry: Mapping[str, Any]) -> dict[str, int]:
    """The replicas of each task of a job, by its id."""
    tasks, replicas = entry.get("tasks", 1), entry.get("replicas", 1)
    if tasks == 1:
        return {entry["id"]: replicas}
    each = -(-replicas // tasks)
    return {f"{entry['id']}_{n}": min(each, replicas - n * each) for n in range(tasks)}


def retry_errors(
    run: RunDir, codes: Sequence[str] = (), settings: Sequence[str] = ()
) -> Submission:
    """Answer error rows of a finished run again.

    Parameters
    ----------
    codes
        Only errors of these; when there are none and no ``settings``, those that may come out
        otherwise by themselves.
    settings
        ``key.path=value`` of the job file, to do it otherwise this time. Cut and step sizes stay
        unless one is of ``parallelism`` or ``engine``, replicas unless one is of ``replicas``.

    Raises
    ------
    PlanError
        ``retry.unfinished``, ``retry.nothing``; ``rundir.other-run`` for settings that would
        make other prompts or answers than those that are there.
    SchedulerError
        The scheduler refused.
    """
    with turn(run):
        if not _finished(run):
            message = f"{run.path} is not finished, and its errors may become more"
            hint = f"wait for it, or `hpc-llm resume {run.path}`"
            raise PlanError(Problem("retry.unfinished", message, hint=hint))
        _begin_retry(run, codes, settings)
        plan = run.newest_plan()
        wanted = plan.layout.replicas if "replicas" in _keys(settings) else None
        return _start(run, scheduler_for(plan.scheduler), wanted=wanted)


def _begin_retry(run: RunDir, codes: Sequence[str], settings: Sequence[str]) -> None:
    found = _errors(run)
    # What is wrong with a row itself stays wrong unless something is done otherwise.
    wanted = set(codes) or (None if settings else RETRYABLE)
    chosen = {unit for unit, own in found.items() if wanted is None or own & wanted}
    if not chosen:
        there = ", ".join(sorted(set().union(*found.values()))) or "none"
        message = f"no row is an error of code {', '.join(sorted(wanted or []))}; there are {there}"
        hint = "name one with --code, or change the job with --set"
        raise PlanError(Problem("retry.nothing", message, hint=hint))
    if settings:
        kept = () if _keys(settings) & {"parallelism", "engine"} else _sizes(run.newest_plan())
        prepared = _prepared(run, *kept, *settings)
        # The grid of `submit --limit` is of fewer rows than the job file's.
        known = dataclasses.replace(run.identity(), grid=prepared.identity.grid)
        if lines := differences(known, prepared.identity):
            raise PlanError(_other_run(run, lines))
        _write_plan(run, prepared)
    run.create_overlay(sorted(chosen), None if wanted is None else sorted(wanted))


def _keys(settings: Sequence[str]) -> set[str]:
    """What settings are of: the first keys of their paths."""
    return {setting.partition("=")[0].partition(".")[0] for setting in settings}


def _errors(run: RunDir) -> dict[int, set[str]]:
    """The codes of the errors that each unit still has."""
    parts = count_parts(run, read_parts(run.path / "metrics"))
    failed = (unit for (overlay, unit), counts in parts.items() if not overlay and counts["error"])
    last = max(run.overlays(), default=0) + 1
    return {unit: set(error_codes(run, unit, below=last).values()) for unit in failed}


def cancel(run: RunDir) -> list[str]:
    """Stop the run: no further job of it does anything, and live ones are ended.

    Returns
    -------
    list of str
        Ids of the jobs that were live. Published parts stay; ``resume`` goes on.
    """
    with _writing(run):
        run.stop_path.parent.mkdir(exist_ok=True)
        replace(run.stop_path, b"")
    scheduler = scheduler_for(run.newest_plan().scheduler)
    live = _live(run, scheduler)
    if live:
        scheduler.cancel(live)
    return [job.id for job in live]


def render_to(prepared: Prepared) -> list[str]:
    """Write the run directory and start nothing; the paths of its files.

    Raises
    ------
    PlanError
        As for `submit`, when the directory holds something else.
    """
    check_directory(prepared)
    return _write(prepared)


def check_can_run(plan: Plan) -> None:
    """Refuse engines whose model is not here.

    Raises
    ------
    PlanError
        ``model.not-cached``.
    """
    if ENGINES[plan.engine].needs_model and plan.model_path is None:
        message = f"the checkpoint of {plan.model} is not on this machine"
        hint = "give its directory or hub id with --set model=… (a shape is enough to render only)"
        if plan.model.lower() == "smollm2-135m":
            hint = f"run `hpc-llm models prepare {plan.model}`, or give a checkpoint's directory"
        raise PlanError(Problem("model.not-cached", message, hint=hint))


def check_directory(prepared: Prepared) -> None:
    """Refuse a directory that belongs to something else.

    Raises
    ------
    PlanError
        ``rundir.other-run``, ``rundir.not-empty``, ``rundir.unwritable``.
    """
    run = prepared.run
    try:
        known, foreign = run.identity_path.exists(), _foreign(run)
    except OSError as exc:
        raise PlanError(_unwritable(run, exc)) from exc
    if known:
        if lines := differences(run.identity(), prepared.identity):
            raise PlanError(_other_run(run, lines))
    elif foreign:
        message = f"{run.path} exists, is not empty and holds no run"
        raise PlanError(Problem("rundir.not-empty", message, hint="choose another output.path"))


def _other_run(run: RunDir, lines: Sequence[str]) -> Problem:
    message = f"{run.path} belongs to another run; different are {'; '.join(lines[:8])}"
    hint = "choose another output.path, or undo the change to go on with that run"
    return Problem("rundir.other-run", message, hint=hint)


def _foreign(run: RunDir) -> bool:
    """Whether there is anything but what a submission leaves that was killed half-way."""
    if not run.path.is_dir():
        return run.path.exists()
    own = {*SUBDIRECTORIES, "script.sh", "job.yaml", "site.yaml"}
    return any(p.name not in own and p.suffix != ".tmp" for p in run.path.iterdir())


def next_plan_number(run: RunDir) -> str:
    """The number after the newest plan's, ``0001`` at first."""
    return f"{int(max(run.plan_numbers(), default='0')) + 1:04}"


def _write(prepared: Prepared) -> list[str]:
    """Write the run directory: what is immutable once, the rest in place of the old.

    ``run.json`` comes last: a directory that has it is whole.
    """
    run = prepared.run
    with _writing(run):
        run.create()
        runs.remember(run)
        files = _publish_plan(prepared)
        for name in sorted(files, key=lambda name: name == "run.json"):
            once = name == "run.json" or name.startswith(("plans/", "lib/"))
            (publish if once else replace)(run.path / name, files[name])
        (run.path / "script.sh").chmod(0o755)
    return sorted(files)


@contextmanager
def _writing(run: RunDir) -> Iterator[None]:
    """Where files of ``run`` are written: what goes wrong there is no bug."""
    try:
        yield
    except OSError as exc:
        raise PlanError(_unwritable(run, exc)) from exc


def _publish_plan(prepared: Prepared) -> dict[str, bytes]:
    """The files under the first plan number that nobody else takes at the same moment."""
    number = int(next_plan_number(prepared.run))
    while True:
        plan_number = f"{number:04}"
        files = run_directory_files(prepared, plan_number=plan_number)
        if publish(prepared.run.plan_path(plan_number), files[f"plans/{plan_number}.json"]):
            return files
        number += 1


def _unwritable(run: RunDir, exc: OSError) -> Problem:
    message = f"cannot write {exc.filename or run.path}: {exc.strerror}"
    hint = "choose an output.path where you may write, and see `hpc-llm config paths`"
    return Problem("rundir.unwritable", message, hint=hint)


def _standing(run: RunDir, scheduler: Scheduler) -> Submission | None:
    """What makes another job needless: the run is done, or a job of it is live."""
    if _finished(run):
        return Submission(run=run, how="done")
    # What was cancelled does no more work, even while its job is still seen to end.
    working = run.identity_path.exists() and not run.stop_path.exists()
    live = _live(run, scheduler) if working else []
    return Submission(run=run, how="attached", job=live[0]) if live else None


def _finished(run: RunDir) -> bool:
    return run.done_path.exists() and open_pass(run, run.identity()) is None


def _live(run: RunDir, scheduler: Scheduler) -> list[JobRef]:
    _recover(run, scheduler)
    jobs = [JobRef.from_json(entry) for entry in run.jobs()]
    states = scheduler.states(jobs)
    return [job for job in jobs if states[job.id].live]


def _recover(run: RunDir, scheduler: Scheduler) -> None:
    """Note the jobs of submissions that were ended before they could: each has its own name."""
    for nonce, intent in run.open_intents():
        if (job := scheduler.find(intent["name"])) is not None:
            _note(run, job, nonce, intent)


def _note(run: RunDir, job: JobRef, nonce: str, intent: Mapping[str, Any]) -> None:
    layout = run.newest_plan().layout
    entry = {
        **job.to_json(),
        **intent,
        "nonce": nonce,
        "replicas": layout.replicas,
        "tasks": layout.allocation.count,
        "submitted": time.time(),
    }
    publish(run.path / "jobs" / f"{job.id}.submitted", json.dumps(entry).encode())


def _start(run: RunDir, scheduler: Scheduler, *, wanted: int | None = None) -> Submission:
    """Submit the newest plan's job; where jobs do not restart, with its successors behind it.

    ``wanted`` replicas are to be live then; as many as were wanted last when None.
    """
    jobs, replicas = run.jobs(), run.newest_plan().layout.replicas
    if wanted is None:
        wanted = jobs[-1].get("wanted", replicas) if jobs else replicas
        if wanted != replicas:  # the newest plan only added to others
            _replan(run, *_sizes(run.newest_plan()), f"replicas={wanted}")
    with _writing(run):
        run.reopen()
    plan = run.newest_plan()
    notes = {"chain": secrets.token_hex(4), "wanted": wanted}
    first = last = _submit(run, scheduler, notes)
    warnings: list[Problem] = []
    try:
        for _ in range(1, plan.attempts if plan.restart == "chain" else 1):
            last = _submit(run, scheduler, notes, after=last)
    except SchedulerError as exc:  # a shorter chain works as well
        warnings = [dataclasses.replace(p, severity="warning") for p in _told(exc)]
    return Submission(run=run, how="submitted", job=first, warnings=tuple(warnings))


def _submit(
    run: RunDir, scheduler: Scheduler, notes: Mapping[str, Any], after: JobRef | None = None
) -> JobRef:
    nonce = secrets.token_hex(4)
    intent = {"name": f"{run.identity().name}.{nonce}", **notes}
    with _writing(run):
        publish(run.path / "jobs" / f"{nonce}.intent", json.dumps(intent).encode())
    try:
        job = scheduler.submit(run.path / "script.sh", intent["name"], after=after)
    except SchedulerError as exc:
        if _refused(exc):
            (run.path / "jobs" / f"{nonce}.intent").unlink()  # nothing to look for
        if after is not None:
            raise
        message = f"{run.path} is written and no job of it was started"
        hint = "submit again, or resume it, once that is put right"
        kept = Problem("rundir.kept", message, hint=hint, severity="warning")
        raise SchedulerError([*_told(exc), kept], transient=exc.transient) from exc
    with _writing(run):  # should it fail, the next look finds the job by its name
        _note(run, job, nonce, intent)
    return job


def _refused(exc: SchedulerError) -> bool:
    """Whether the scheduler said no, and did not just fail to say anything."""
    return not exc.transient and {p.code for p in exc.problems} <= {"slurm.refused", "slurm.absent"}


def _told(exc: SchedulerError) -> list[Problem]:
    """What a scheduler said, with the remedy where its words are known."""
    return [dataclasses.replace(p, hint=p.hint or cause_of(p.message)) for p in exc.problems]
