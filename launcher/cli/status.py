"""``hpc-llm status``."""

from __future__ import annotations

import click

from launcher.cli.answer import Answer, AnswerCommand

__all__ = ["command"]


@click.command("status", cls=AnswerCommand)
@click.argument("run")
def command(run: str) -> Answer:
    """Say how RUN (a path, or a name from `list`) stands. Always exits with 0."""
    from launcher.cli.follow import status_answer
    from launcher.monitor import status
    from launcher.runs import find_run

    return status_answer(status(find_run(run)), ended=False)
