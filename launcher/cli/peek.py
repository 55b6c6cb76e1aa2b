"""``hpc-llm peek``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.answer import Answer, AnswerCommand

if TYPE_CHECKING:
    from launcher.report.peek import PeekRow

__all__ = ["command"]


@click.command("peek", cls=AnswerCommand)
@click.argument("run")
@click.option(
    "-n", "limit", type=click.IntRange(min=1), default=5, show_default=True, help="So many rows."
)
def command(run: str, limit: int) -> Answer:
    """Show the newest answers of RUN, of units that are not published yet too."""
    from launcher.report.peek import peek
    from launcher.runs import find_run

    found = peek(find_run(run), limit)
    data = {"rows": [{"published": entry.published, **entry.row} for entry in found]}
    text = "\n\n".join(map(_shown, found)) if found else "no row is finished yet"
    return Answer(data=data, text=text)


def _shown(entry: PeekRow) -> str:
    row = entry.row
    file, offset = row["row"]
    name = f" ({row['id']})" if row["id"] is not None else ""
    head = f"--- row {file}:{offset}{name}, {_tokens(row)}"
    question = [f"> {line}" for line in _question(row).split("\n")] if "input" in row else []
    answer = row["response"]["text"] if row["status"] == "ok" else _error(row["error"])
    return "\n".join([head if entry.published else f"{head}, not published yet", *question, answer])


def _tokens(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return "error"
    usage = row["usage"]
    counts = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
    return f"{counts}, ended by {row['finish_reason']}"


def _question(row: dict[str, Any]) -> str:
    kept = row["input"]
    values = list(kept.values()) if isinstance(kept, dict) else []
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return json.dumps(kept, ensure_ascii=False)


def _error(error: dict[str, Any]) -> str:
    return f"{error['code']}: {error['message']}"
