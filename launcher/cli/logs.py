"""``hpc-llm logs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.cli.answer import Answer, AnswerCommand

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["command"]

_CHUNK_BYTES = 1 << 16


@click.command("logs", cls=AnswerCommand)
@click.argument("run")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Last lines of each log.",
)
def command(run: str, lines: int) -> Answer:
    """Show the end of each log of RUN's newest job."""
    from launcher.errors import printable
    from launcher.runs import find_run

    found = find_run(run)
    jobs = found.jobs()
    newest = jobs[-1]["id"] if jobs else ""
    # Its own log, those of an array's tasks, and those of its steps; job 12 is not 123.
    names = (f"{newest}.log", f"{newest}_*.log", f"{newest}.s*.log")
    logs = sorted({log for name in names for log in (found.path / "logs").glob(name)})
    shown = {str(path): _tail(path, lines) for path in logs}
    text = "\n".join(
        f"==> {path} <==\n" + "\n".join(printable(line) for line in tail)
        for path, tail in shown.items()
    )
    return Answer(data={"logs": shown}, text=text or "there are no logs yet")


def _tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` lines, reading the end of the file only."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        data = b""
        while size and data.count(b"\n") <= lines:
            step = min(size, _CHUNK_BYTES)
            size -= step
            file.seek(size)
            data = file.read(step) + data
    return data.decode(errors="replace").splitlines()[-lines:]
