"""``hpc-llm list``."""

from __future__ import annotations

import click

from launcher.cli.answer import Answer, AnswerCommand, columns

__all__ = ["command"]


@click.command("list", cls=AnswerCommand)
def command() -> Answer:
    """List the runs you have submitted from this account."""
    from launcher.plan.grid import count
    from launcher.runs import known_runs

    rows = [
        {
            "name": run.identity().name,
            "path": str(run.path),
            "units_done": len(run.published_units()),
            "units_total": count(run.identity().grid),
            "done": run.done_path.exists(),
        }
        for run in known_runs()
    ]
    head = ("run", "published", "directory")
    table = [(r["name"], f"{r['units_done']}/{r['units_total']} units", r["path"]) for r in rows]
    text = columns([head, *table]) if table else "no runs yet"
    return Answer(data={"runs": rows}, text=text)
