"""Staying with a run: a progress bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.answer import Answer, columns, safe_text, warn

if TYPE_CHECKING:
    from launcher.errors import Problem
    from launcher.monitor import RunStatus
    from launcher.rundir import RunDir
    from launcher.submit import Submission

__all__ = ["follow", "started", "status_answer", "status_line"]

PLAIN_EVERY_S = 5.0
_MOST_SHOWN = 20
_MINUTE_S = 60.0


def started(submission: Submission, *, waiting: bool, warnings: Sequence[Problem] = ()) -> Answer:
    """The answer to ``submit`` and ``resume``: at once, or when the run has ended."""
    run, job = submission.run, submission.job
    warnings = (*warnings, *submission.warnings)
    lines = {
        "submitted": f"job {job.id if job else ''} is submitted",
        "attached": f"job {job.id if job else ''} of this run is live already: nothing submitted",
        "done": "the run is done: nothing submitted",
    }
    text = f"{lines[submission.how]}\nrun directory {run.path}"
    if not waiting:
        data = {"run": str(run.path), "how": submission.how, "job": job.id if job else None}
        return Answer(data=data, text=text, problems=warnings)
    click.echo(safe_text(text), err=True)
    warn(warnings)
    try:
        return status_answer(follow(run), ended=True)
    except KeyboardInterrupt:
        ways = (
            f"come back with `hpc-llm status {run.path}`, end it with `hpc-llm cancel {run.path}`"
        )
        click.echo(safe_text(f"\nthe run goes on; {ways}"), err=True)
        raise


def status_answer(found: RunStatus, *, ended: bool) -> Answer:
    """The status as an answer; ``ended`` makes the exit code that of the run."""
    from launcher.monitor import failure

    failed = failure(found) if ended else None
    lines = [f"{found.name}: {status_line(found)}", f"run directory {found.path}"]
    if found.state != "done":  # the last job's script may take a moment longer
        lines += [
            f"job {job['id']}: {job['state']}" + (f", {job['reason']}" if "reason" in job else "")
            for job in found.jobs
        ]
    lines += [*_networks(found), *_replicas(found)]
    if found.state == "done":
        lines.append(f"results: hpc-llm results {found.path}")
    shown = failure(found) if found.ended else None
    return Answer(
        data=found.to_json(),
        text="\n".join(lines),
        problems=shown.problems if shown else (),
        exit_code=failed.exit_code if failed else 0,
    )


def _networks(found: RunStatus) -> list[str]:
    """What NCCL uses between nodes, each once, and what is wrong with it."""
    lines = [f"network: {n['network']}" for n in found.networks if n["network"] is not None]
    warnings = (p for n in found.networks for p in n["problems"] if p["severity"] == "warning")
    lines += [f"warning: {w['message']}; {w['hint']}" for w in warnings]
    return list(dict.fromkeys(lines))[:_MOST_SHOWN]


def status_line(found: RunStatus) -> str:
    """One line: state, rows, share of the input, tokens/s and about how long it still takes."""
    from launcher.units import format_duration

    share = found.bytes_done / found.bytes_total if found.bytes_total else 1.0
    rows = found.rows_ok + found.rows_error + found.rows_open
    starting = found.workers and all(w["phase"] == "starting" for w in found.workers)
    parts = [f"{found.state} (engines starting)" if starting else found.state, f"{rows} rows"]
    if found.rows_error:
        parts.append(f"{found.rows_error} errors")
    parts.append(f"{share:.0%} of the input")
    if found.tokens_per_s:
        parts.append(f"{found.tokens_per_s:.0f} tokens/s")
        if any(w["rate_covers_s"] > _MINUTE_S for w in found.workers):
            parts[-1] += f" ({found.tokens_per_s_10m:.0f} over 10 minutes)"
    if found.left_s is not None and not found.ended:
        parts.append(f"about {format_duration(found.left_s)} left")
    return ", ".join(parts)


def _replicas(found: RunStatus) -> list[str]:
    """A line for the one live replica; for several a table, and below it all of them together."""
    from launcher.telemetry.metrics import words

    if len(found.workers) <= 1:
        return [f"replica {w['replica']}: {w['phase']}, {words(w)}" for w in found.workers]
    shown = found.workers[:_MOST_SHOWN]
    phases = Counter(w["phase"] for w in found.workers)
    together = {
        "replica": "all",
        "phase": ", ".join(f"{count} {phase}" for phase, count in phases.items()),
        "rows": sum(w["rows"] for w in found.workers),
        "tokens_per_s": found.tokens_per_s,
        "tokens_per_s_10m": found.tokens_per_s_10m,
        "in_flight": found.in_flight,
        "queued": found.queued,
        "kv_cache_usage": found.kv_cache_usage,
        "engine_restarts": sum(w["engine_restarts"] for w in found.workers),
    }
    lines = columns([_HEAD, *map(_cells, shown), _cells(together)]).split("\n")
    if hidden := len(found.workers) - len(shown):
        lines.insert(-1, f"and {hidden} more")
    return lines


_HEAD = (
    "replica",
    "host",
    "phase",
    "rows",
    "tokens/s",
    "10 min",
    "in flight/queued",
    "KV",
    "restarts",
)


def _cells(worker: Mapping[str, Any]) -> tuple[str, ...]:
    """What is not known is a dash."""
    queued, kv = worker["queued"], worker["kv_cache_usage"]
    long = worker["tokens_per_s_10m"]
    return (
        str(worker["replica"]),
        worker.get("host") or "",
        worker["phase"],
        str(worker["rows"]),
        f"{worker['tokens_per_s']:.0f}",
        "-" if long is None else f"{long:.0f}",
        f"{worker['in_flight']}/" + ("-" if queued is None else f"{queued:.0f}"),
        "-" if kv is None else f"{kv:.0%}",
        str(worker["engine_restarts"]),
    )


def follow(run: RunDir) -> RunStatus:
    """Show on stderr how ``run`` gets on until it has ended; its last status."""
    from launcher.monitor import wait
    from launcher.schedulers.registry import scheduler_for

    scheduler = scheduler_for(run.newest_plan().scheduler)
    with _bar() if sys.stderr.isatty() else _lines() as report:
        return wait(run, scheduler, report)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[RunStatus], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    shown = (BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*shown, console=Console(stderr=True)) as progress:
        bar = progress.add_task("starting", total=None)

        def report(found: RunStatus) -> None:
            progress.update(
                bar,
                completed=found.bytes_done,
                total=found.bytes_total,
                description=status_line(found),
            )

        yield report


@contextlib.contextmanager
def _lines() -> Iterator[Callable[[RunStatus], None]]:
    next_s = 0.0

    def report(found: RunStatus) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s and not found.ended:
            click.echo(status_line(found), err=True)
            next_s = time.monotonic() + PLAIN_EVERY_S

    yield report
