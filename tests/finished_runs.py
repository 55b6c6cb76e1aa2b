"""Runs as their workers leave them, without the work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from run_making import json_lines, make_identity, make_run

from launcher.data.records import encode, error_line, head_of, ok_line
from launcher.data.rows import Row, UnitReader
from launcher.engines.base import Completion
from launcher.errors import RowError
from launcher.plan import grid
from launcher.plan.types import RunIdentity
from launcher.rundir import RunDir

__all__ = [
    "Place",
    "add_overlay",
    "answer",
    "answered",
    "edit",
    "finished_run",
    "fresh_run",
    "lines",
]

Place = tuple[int, int]
Answered = Callable[[Row], dict[str, Any]]


def answer(row: Row, text: str | None = None, *, keep: Any = "none") -> dict[str, Any]:
    """The output row of a row that was answered with its own text; of ``"bad"`` an error."""
    fields = row.fields or {}
    given = str(fields.get("text", "")) if text is None else text
    head = head_of(row, keep)._replace(id=fields.get("id", fields.get("custom_id")))
    if text is None and given == "bad":
        return _record(error_line(head, RowError("engine_error", "no luck"), plan="0001"))
    completion = Completion(
        text=given, finish_reason="stop", prompt_tokens=2, completion_tokens=len(given.split())
    )
    return _record(ok_line(head, completion, plan="0001"))


def fresh_run(
    folder: Path, rows: Sequence[Mapping[str, Any]], *, keep: Any = "none", **prompt: Any
) -> RunDir:
    """A run over ``rows`` that has not begun; ``prompt`` replaces fields of its `PromptSpec`."""
    identity = make_identity(folder, json_lines(rows))
    spec = dataclasses.replace(identity.prompt, **prompt)
    return make_run(folder / "run", dataclasses.replace(identity, prompt=spec, keep=keep))


def finished_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    keep: Any = "none",
    by: Answered | None = None,
    **prompt: Any,
) -> RunDir:
    """A run whose every row is answered by ``by``, or else by `answer`."""
    run = fresh_run(folder, rows, keep=keep, **prompt)
    identity = run.identity()
    respond = by or (lambda row: answer(row, keep=keep))
    for unit, found in _by_unit(identity):
        part = b"".join(encode(respond(row)) for row in found)
        run.part_path(unit).write_bytes(part)
    run.done_path.write_text("{}")
    return run


def add_overlay(run: RunDir, number: int, answers: Mapping[Place, str]) -> None:
    """An overlay with other answers for the rows at these places."""
    parts = {
        unit: [answer(row, text) for row in rows if (text := answers.get((row.file, row.offset)))]
        for unit, rows in _by_unit(run.identity())
    }
    units = [unit for unit, rows in parts.items() if rows]
    folder = run.part_path(0, number).parent
    folder.mkdir(parents=True)
    overlay = {"codes": None, "units": units}
    (folder.parent / "overlay.json").write_text(json.dumps(overlay))
    for unit in units:
        run.part_path(unit, number).write_bytes(b"".join(map(encode, parts[unit])))


def answered(run: RunDir) -> list[tuple[int, Row]]:
    """Each input row with its unit, in input order."""
    return [(unit, row) for unit, rows in _by_unit(run.identity()) for row in rows]


def lines(path: Path) -> list[bytes]:
    """The lines of a part, each with its end."""
    return path.read_bytes().splitlines(keepends=True)


def edit(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Put what ``change`` makes of the lines of a part in their place."""
    path.write_bytes(b"".join(change(lines(path))))


def _by_unit(identity: RunIdentity) -> list[tuple[int, list[Row]]]:
    with UnitReader(identity.inputs, identity.grid) as reader:
        return [(unit, list(reader.read(unit))) for unit in grid.units(identity.grid)]


def _record(line: bytes) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(line)
    return record
