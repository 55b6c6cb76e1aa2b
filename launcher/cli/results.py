"""``hpc-llm results``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from launcher.cli.answer import Answer, AnswerCommand

__all__ = ["command"]


@click.command("results", cls=AnswerCommand)
@click.argument("run")
@click.option("--merge", type=click.Path(path_type=Path), help="Write all rows to this file.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "openai"]),
    default="jsonl",
    show_default=True,
    help="Form of the rows; openai writes errors to a second file.",
)
@click.option("--partial", is_flag=True, help="Take what there is of an unfinished run.")
@click.pass_context
def command(
    ctx: click.Context,
    run: str,
    merge: Path | None,
    form: Literal["jsonl", "openai"],
    *,
    partial: bool,
) -> Answer:
    """Give the rows of RUN in input order: to stdout, or with --merge to a file."""
    import dataclasses

    from launcher import report
    from launcher.runs import find_run

    if form == "openai" and merge is None:
        raise click.UsageError("--format openai makes two files: name the first with --merge")
    found = find_run(run)
    if not partial:
        report.check_complete(found)
    if merge is not None:
        merged = report.merge(found, merge, form)
        files = " and ".join(merged.files)
        text = f"{merged.ok} answered rows and {merged.error} errors in {files}"
        return Answer(data=dataclasses.asdict(merged), text=text)
    if ctx.meta["hpc_llm.output"] == "json":
        return Answer(data={"rows": [row for _, row in report.rows(found)]})
    for line, _ in report.rows(found):
        click.echo(line, nl=False)
    return Answer()
