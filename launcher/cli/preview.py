"""``hpc-llm preview``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.answer import Answer, AnswerCommand, job_options

if TYPE_CHECKING:
    from launcher.preview import PreviewRow

__all__ = ["command"]


@click.command("preview", cls=AnswerCommand)
@job_options
@click.option(
    "-n", "limit", type=click.IntRange(min=1), default=3, show_default=True, help="So many rows."
)
def command(job: str, site: str | None, settings: tuple[str, ...], limit: int) -> Answer:
    """Show the first prompts of JOB as the model would get them, special tokens included."""
    from launcher.prepare import prepare
    from launcher.preview import preview

    prepared = prepare(Path(job), site=site, settings=settings)
    rows = preview(prepared, limit)
    text = "\n\n".join(_shown(row) for row in rows)
    data = {"prompts": [dataclasses.asdict(row) for row in rows]}
    return Answer(data=data, text=text, problems=prepared.warnings)


def _shown(row: PreviewRow) -> str:
    from launcher.errors import printable

    file, offset = row.row
    head = f"--- row {file}:{offset}" + (f" ({printable(row.id)})" if row.id else "")
    if row.text is None:
        return f"{head}: error {printable(row.error or '')}"
    body = "\n".join(printable(line) for line in row.text.split("\n"))
    return f"{head}, up to {row.max_tokens} new tokens\n{body}"
