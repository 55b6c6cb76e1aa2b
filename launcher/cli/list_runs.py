"""``hpc-llm list``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.answer import Answer, AnswerCommand, columns

if TYPE_CHECKING:
    from launcher.rundir import RunDir

__all__ = ["command"]


@click.command("list", cls=AnswerCommand)
def command() -> Answer:
    """List the runs you have submitted from this account."""
    from launcher.errors import OutputError, Problem
    from launcher.runs import known_runs

    rows: list[dict[str, Any]] = []
    damaged: list[Problem] = []
    for run in known_runs():
        try:
            rows.append(_row(run))
        except OutputError as exc:  # noqa: PERF203 - one damaged run hides no other
            damaged += (replace(problem, severity="warning") for problem in exc.problems)
    head = ("run", "published", "directory")
    table = [(r["name"], f"{r['units_done']}/{r['units_total']} units", r["path"]) for r in rows]
    text = columns([head, *table]) if table else "no runs yet"
    return Answer(data={"runs": rows}, text=text, problems=damaged)


def _row(run: RunDir) -> dict[str, Any]:
    from launcher.plan.grid import count

    identity = run.identity()
    return {
        "name": identity.name,
        "path": str(run.path),
        "units_done": len(run.published_units()),
        "units_total": count(identity.grid),
        "done": run.done_path.exists(),
    }
