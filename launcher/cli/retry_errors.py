"""``hpc-llm retry-errors``."""

from __future__ import annotations

import click

from launcher.cli.answer import Answer, AnswerCommand

__all__ = ["command"]


@click.command("retry-errors", cls=AnswerCommand)
@click.argument("run")
@click.option("--code", "codes", multiple=True, help="Only errors of this code; may be repeated.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Change the job; the cut stays, unless this is of parallelism or engine.",
)
def command(run: str, codes: tuple[str, ...], settings: tuple[str, ...]) -> Answer:
    """Answer the rows of a finished RUN again that are errors; what is there is kept beside."""
    from launcher.cli.follow import started
    from launcher.runs import find_run
    from launcher.submit import retry_errors

    return started(retry_errors(find_run(run), codes, settings), waiting=False)
