"""``hpc-llm status``."""

from __future__ import annotations

from typing import Any

import click

from launcher.cli.answer import Answer, AnswerCommand, columns

__all__ = ["command"]


@click.command("status", cls=AnswerCommand)
@click.argument("run")
@click.option(
    "--follow",
    "-f",
    "following",
    is_flag=True,
    help="Show on stderr how it gets on until it has ended, and then how it stands.",
)
def command(run: str, *, following: bool) -> Answer:
    """Say how RUN (a path, or a name from `list`) stands. Always exits with 0."""
    import dataclasses

    from launcher.cli.follow import follow, status_answer
    from launcher.monitor import status
    from launcher.runs import find_run
    from launcher.telemetry.ranks import read_ranks

    found = find_run(run)
    now = follow(found) if following else status(found)
    answer = status_answer(now, ended=False)
    live = [job["id"] for job in now.jobs if job["state"] == "running"]
    ranks = read_ranks(found.path / "logs", live or [job["id"] for job in now.jobs[-1:]])
    table = [_words(rank) for rank in ranks] if len(ranks) > 1 else []
    text = "\n".join([answer.text, columns([_HEAD, *table])] if table else [answer.text])
    return dataclasses.replace(answer, data={**answer.data, "ranks": ranks}, text=text)


_HEAD = ("job", "replica", "rank", "stage.tp", "host", "GPUs", "CPUs")


def _words(rank: dict[str, Any]) -> tuple[str, ...]:
    place = f"{rank['pp_rank']}.{rank['tp_rank']}"
    gpus = rank["gpus"] or "none"
    first, last = rank["rank"], rank.get("last_rank", rank["rank"])
    which = first if first == last else f"{first}-{last}"
    cells = (rank["job"], rank["replica"], which, place, rank["host"], gpus, rank["cpus"])
    return tuple(map(str, cells))
