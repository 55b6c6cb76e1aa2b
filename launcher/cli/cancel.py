"""``hpc-llm cancel``."""

from __future__ import annotations

import click

from launcher.cli.answer import Answer, AnswerCommand

__all__ = ["command"]


@click.command("cancel", cls=AnswerCommand)
@click.argument("run")
def command(run: str) -> Answer:
    """End the live jobs of RUN. What is published stays; `resume` goes on from there."""
    from launcher.runs import find_run
    from launcher.submit import cancel

    found = find_run(run)
    ended = cancel(found)
    text = f"cancelled {', '.join(ended)}" if ended else "no job of it was live"
    text += f"\ngo on with: hpc-llm resume {found.path}"
    return Answer(data={"run": str(found.path), "jobs": ended}, text=text)
