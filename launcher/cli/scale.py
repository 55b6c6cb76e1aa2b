"""``hpc-llm scale``."""

from __future__ import annotations

import click

from launcher.cli.answer import Answer, AnswerCommand

__all__ = ["command"]


@click.command("scale", cls=AnswerCommand)
@click.argument("run")
@click.option("--replicas", type=click.IntRange(min=1), required=True, help="How many in all.")
def command(run: str, replicas: int) -> Answer:
    """Add replicas to RUN until so many are queued or running; they share what is left."""
    from launcher.cli.follow import started
    from launcher.runs import find_run
    from launcher.submit import scale

    return started(scale(find_run(run), replicas), waiting=False)
