"""The process of one replica: runs it, and leaves a file that says how it ended."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.engines.registry import follow
from launcher.errors import HpcLlmError, Problem
from launcher.rundir import RunDir, publish
from launcher.runner.identity import worker_name
from launcher.runner.replica import ReplicaTask, engine_setup, run_replica

__all__ = ["add_arguments", "ending", "failed_or_died", "main", "write_outcome"]

# How a step ends, and the exit code of its first rank. A step that *died* may do better when it is
# started again, perhaps elsewhere; one that *failed* would only fail again.
EXIT_CODES = {"done": 0, "died": 7, "failed": 7, "resumable": 75}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_MAY_PASS = (
    "engine.died",
    "run.died",
    "run.fabric",
    "run.network",
    "run.rendezvous",
    "run.stalled",
    "gpu.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that the batch script gives to every rank."""
    parser.add_argument("--plan", required=True, help="number of the plan, such as 0001")
    parser.add_argument("--replica", required=True, type=int)
    parser.add_argument("--job", required=True, help="the scheduler's id of this job")
    parser.add_argument("--restart", required=True, type=int, help="how often it was requeued")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one replica of the run in the working directory, or be one of its later ranks."""
    parser = argparse.ArgumentParser(prog="launcher.runner", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--rank", type=int, default=0, help="which rank of the replica")
    args = parser.parse_args(argv)
    task = ReplicaTask(
        run=RunDir(Path.cwd()),
        plan_number=args.plan,
        replica=args.replica,
        job=args.job,
        restart=args.restart,
        worker=worker_name(args.job, args.restart, args.replica),
    )
    if args.rank > 0:
        outcome, problems = _attempt(task, lambda: _follow(task, args.rank))
        if problems:
            write_outcome(task.run, args, outcome, problems)
        return EXIT_CODES[outcome]
    outcome, problems = _attempt(task, lambda: run_replica(task))
    task.say(outcome)
    write_outcome(task.run, args, outcome, problems)
    return EXIT_CODES[outcome]


def _follow(task: ReplicaTask, rank: int) -> bool:
    plan = task.run.plan(task.plan_number)
    follow(plan.engine, engine_setup(task, plan, rank))
    return True


def _attempt(task: ReplicaTask, work: Callable[[], bool]) -> tuple[str, list[Problem]]:
    try:
        return ("done" if work() else "resumable"), []
    except Exception as exc:  # noqa: BLE001 - the outermost frame: recorded, and never swallowed
        outcome, problems = ending(exc)
        for problem in problems:
            task.say(str(problem))
        return outcome, problems


def ending(exc: Exception) -> tuple[str, list[Problem]]:
    """How a step ends for ``exc``, and why; what nobody foresaw leaves its traceback in the log."""
    if isinstance(exc, HpcLlmError):
        return failed_or_died(exc.problems), list(exc.problems)
    if isinstance(exc, OSError) and exc.errno in _FULL:
        hint = "make room or have the quota raised, then resume: what is finished is kept"
        where = exc.filename or "the run directory"
        problem = Problem("output.no-space", f"{where}: {exc.strerror}", hint=hint)
        return "resumable", [problem]
    traceback.print_exception(exc)
    if isinstance(exc, OSError):
        return "failed", [Problem("run.io", f"{exc}")]
    return "failed", [Problem("run.bug", f"{type(exc).__name__}: {exc}")]


def failed_or_died(problems: Sequence[Problem]) -> str:
    """The outcome of a step that ended for these reasons."""
    return "died" if all(p.code.startswith(_MAY_PASS) for p in problems) else "failed"


def write_outcome(
    run: RunDir,
    args: argparse.Namespace,
    outcome: str,
    problems: Sequence[Problem],
    hosts: Sequence[str] = (),
) -> None:
    """Publish how this step ended, once: an outcome that stands already is kept.

    ``hosts`` are the nodes where it died, if that is not this one.
    """
    details = {
        "replica": args.replica,
        "host": ",".join(hosts) or socket.gethostname(),
        "problems": [p.to_json() for p in problems],
    }
    path = run.outcome_path(args.job, args.restart, args.replica, outcome)
    try:
        publish(path, json.dumps(details).encode())
    except OSError as exc:  # the exit code is left to tell
        with contextlib.suppress(OSError):
            print(f"cannot write {path.name}: {exc}", file=sys.stderr, flush=True)  # noqa: T201 - the step's log


if __name__ == "__main__":
    sys.exit(main())
