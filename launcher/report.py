"""What a run has produced: its rows in input order, whole or said to be partial."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.data.records import encode, to_openai
from launcher.errors import OutputError, Problem
from launcher.plan import grid
from launcher.rundir import RunDir

__all__ = ["Format", "Merged", "check_complete", "merge", "rows"]

Format = Literal["jsonl", "openai"]

_NEEDED = {"ok": {"response", "usage", "finish_reason"}, "error": {"error"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was written: rows that were answered, rows that are errors, and where they are."""

    ok: int
    error: int
    files: tuple[str, ...]


def check_complete(run: RunDir) -> None:
    """Refuse a run with missing parts.

    Raises
    ------
    OutputError
        ``output.incomplete``, with how many are missing.
    """
    total = grid.count(run.identity().grid)
    missing = total - len(run.published_units())
    if missing:
        message = f"{missing} of {total} units are not there yet"
        hint = f"wait for it, `hpc-llm resume {run.path}`, or take what there is with --partial"
        raise OutputError(Problem("output.incomplete", message, hint=hint))


def rows(run: RunDir) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Every published row in input order, as its line and as data.

    Raises
    ------
    OutputError
        ``output.damaged`` when a part is not what a runner publishes: broken JSON, or rows
        that are not in input order, each once.
    """
    last = (-1, -1)
    for unit in sorted(run.published_units()):
        path = run.part_path(unit)
        with path.open("rb") as part:
            for line in part:
                row = _parse(line, path)
                place = tuple(row["row"])
                if place <= last:
                    raise OutputError(_damaged(path, f"row {place} does not come after {last}"))
                last = place
                yield line, row


def merge(run: RunDir, target: Path, form: Format) -> Merged:
    """Write all rows to ``target``, which appears whole or not at all.

    The OpenAI form has the failed rows in a second file, ``<name>.errors<suffix>``, as the
    Batch API does.

    Raises
    ------
    OutputError
        As `rows`; ``output.unwritable``.
    """
    errors_path = target.with_name(f"{target.stem}.errors{target.suffix}")
    model = run.identity().model.name
    ok = error = 0
    try:
        with _Replacing(target) as good, _Replacing(errors_path) as bad:
            for line, row in rows(run):
                failed = row["status"] != "ok"
                ok, error = ok + (not failed), error + failed
                if form == "openai":
                    shaped = to_openai(row, model=model)
                    (bad if failed else good).write(encode(shaped))
                else:
                    good.write(line)
            bad.wanted = form == "openai"
    except OSError as exc:
        problem = Problem("output.unwritable", f"cannot write {target}: {exc.strerror}")
        raise OutputError(problem) from exc
    written = (target, errors_path) if form == "openai" else (target,)
    return Merged(ok=ok, error=error, files=tuple(map(str, written)))


class _Replacing:
    """A file that takes its name when the block ends well, if it is wanted."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._scratch = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        self.wanted = True

    def __enter__(self) -> _Replacing:  # noqa: PYI034 - private, and Self is not in 3.10
        self._file = self._scratch.open("xb")
        return self

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is None and self.wanted:
            self._scratch.replace(self._target)
        else:
            self._scratch.unlink()


def _parse(line: bytes, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as exc:
        raise OutputError(_damaged(path, str(exc))) from exc
    if not _fits(row):
        raise OutputError(_damaged(path, "a line is no output row"))
    found: dict[str, Any] = row
    return found


def _fits(row: Any) -> bool:
    """Whether ``row`` has what every output row has; see `launcher.data.records`."""
    if not (isinstance(row, dict) and {"id", "row"} <= row.keys()):
        return False
    place, needed = row["row"], _NEEDED.get(str(row.get("status")))
    numbers = isinstance(place, list) and [type(n) for n in place] == [int, int]
    return numbers and needed is not None and needed <= row.keys()


def _damaged(path: Path, what: str) -> Problem:
    hint = "delete this part and resume the run: its unit is answered again"
    return Problem("output.damaged", f"{path}: {what}", hint=hint)
