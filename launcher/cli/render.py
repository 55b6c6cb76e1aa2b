"""``hpc-llm render``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from launcher.cli.answer import Answer, AnswerCommand, job_options

__all__ = ["command"]


@click.command("render", cls=AnswerCommand)
@job_options
@click.option(
    "--out", type=click.Path(path_type=Path), help="Directory to write, else the job's output.path."
)
def command(job: str, site: str | None, settings: tuple[str, ...], out: Path | None) -> Answer:
    """Write the run directory of JOB without submitting it.

    `sbatch DIR/script.sh`, or `bash DIR/script.sh` inside an allocation, does the job.
    """
    from launcher.prepare import prepare, run_directory
    from launcher.submit import render_to

    prepared = prepare(Path(job), site=site, settings=settings)
    if out is not None:
        prepared = dataclasses.replace(prepared, run=run_directory(out.absolute()))
    files = render_to(prepared)
    text = "\n".join(str((out or prepared.run.path) / name) for name in files)
    data = {"directory": str(prepared.run.path), "files": files}
    return Answer(data=data, text=text, problems=prepared.warnings)
