"""``hpc-llm resume``."""

from __future__ import annotations

import click

from launcher.cli.answer import Answer, AnswerCommand

__all__ = ["command"]


@click.command("resume", cls=AnswerCommand)
@click.argument("run")
@click.option("--wait", "waiting", is_flag=True, help="Stay until the run has ended.")
def command(run: str, *, waiting: bool) -> Answer:
    """Go on with RUN as it was planned last; `submit JOB` goes on with a new plan."""
    from launcher.cli.follow import started
    from launcher.runs import find_run
    from launcher.submit import resume

    return started(resume(find_run(run)), waiting=waiting)
