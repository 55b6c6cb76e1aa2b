"""``hpc-llm plan``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.answer import Answer, AnswerCommand, columns, job_options

if TYPE_CHECKING:
    from launcher.prepare import Prepared

__all__ = ["command", "plan_data"]


@click.command("plan", cls=AnswerCommand)
@job_options
@click.option("--explain", is_flag=True, help="Say where each value came from.")
def command(job: str, site: str | None, settings: tuple[str, ...], *, explain: bool) -> Answer:
    """Show how JOB would run and where every rank would sit. Writes nothing."""
    from launcher.plan.picture import draw, summary
    from launcher.prepare import prepare

    prepared = prepare(Path(job), site=site, settings=settings)
    plan = prepared.resolution.plan
    sections = [columns(summary(plan)), draw(plan.layout)]
    if explain:
        rows = [(d.key, d.value, d.source) for d in prepared.resolution.decisions]
        sections.append(columns([("value of", "is", "because of"), *rows]))
    data = plan_data(prepared)
    return Answer(data=data, text="\n\n".join(sections), problems=prepared.warnings)


def plan_data(prepared: Prepared) -> dict[str, Any]:
    """``data`` of ``plan --output json``."""
    plan = prepared.resolution.plan
    return {
        "name": plan.name,
        "site": plan.site,
        "engine": plan.engine,
        "model": plan.model,
        "model_path": plan.model_path,
        "run_directory": str(prepared.run.path),
        "layout": dataclasses.asdict(plan.layout),
        "step": dataclasses.asdict(plan.step),
        "launcher": plan.launcher,
        "directives": [list(pair) for pair in plan.directives],
        "decisions": [dataclasses.asdict(d) for d in prepared.resolution.decisions],
    }
