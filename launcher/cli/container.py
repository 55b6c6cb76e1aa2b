"""``hpc-llm container pull``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from launcher.cli.answer import Answer, AnswerCommand

__all__ = ["command"]


@click.group("container")
def command() -> None:
    """Know the images that engines run in."""


@command.command("pull", cls=AnswerCommand)
@click.argument("source", metavar="IMAGE|JOB")
@click.option("--site", metavar="NAME|FILE", help="The site; detected when not given.")
@click.option("--out", type=click.Path(path_type=Path), help="The file that the image is to be.")
@click.option("--partition", help="Pull in a job on nodes of this partition, without GPUs.")
@click.option("--account", help="Of that job; else as the job file says.")
@click.option("--time", "duration", default="2h", show_default=True, help="Of that job, at most.")
def pull(
    source: str,
    site: str | None,
    out: Path | None,
    partition: str | None,
    account: str | None,
    duration: str,
) -> Answer:
    """Bring IMAGE, or that of JOB, to one file that all nodes read, by the site's runtime.

    It is called after the image, in $HPC_LLM_IMAGES or where the site file has its images, unless
    --out says otherwise. Passwords of registries stay in the runtime's own files and variables.
    """
    from launcher import pull as images
    from launcher.units import parse_duration

    def relay(chunk: bytes) -> None:
        sys.stderr.buffer.write(chunk)
        sys.stderr.flush()

    def say(text: str) -> None:
        click.echo(text, err=True)

    try:
        time_s = parse_duration(duration)
    except ValueError as exc:
        raise click.UsageError(f"--time: {exc}") from exc
    what = images.wanted(source, site=site, out=out)
    if partition is None:
        found = images.pull(what, relay=relay, say=say)
    else:
        found = images.pull_by_job(what, partition, time_s=time_s, account=account, relay=relay)
    line = f"engines: {{{what.engine}: {{image: {found.path}}}}}"
    data = {"path": str(found.path), "how": found.how, "site_file": line}
    text = f"{found.path} ({found.how})\nin the site file: {line}"
    return Answer(data=data, text=text)
