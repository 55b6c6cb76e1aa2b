"""One pass over the rows of a run: in input order, each once, and verified on the way.

Base parts never change. What `retry-errors` has answered again lies in overlays, and is laid over
the base rows here; of several overlays the newest wins.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from launcher.data.passes import damaged, open_pass
from launcher.data.readers import place
from launcher.errors import OutputError, Problem
from launcher.plan import grid
from launcher.plan.types import RunIdentity
from launcher.rundir import RunDir

__all__ = [
    "Counts",
    "FileFacts",
    "Found",
    "Place",
    "Reading",
    "check_complete",
    "damaged",
    "parse_row",
]

Place: TypeAlias = tuple[int, int]

_NEEDED = {"ok": {"response", "usage", "finish_reason"}, "error": {"error"}}


class Found(NamedTuple):
    """One row: its line as it was published, and the same as data."""

    line: bytes
    row: dict[str, Any]

    @property
    def place(self) -> Place:
        file, offset = self.row["row"]
        return file, offset


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What identifies a file: a part (``path`` starts at RUN) or a merged one (absolute)."""

    path: str
    sha256: str
    bytes: int
    rows: int


@dataclass(slots=True)
class Counts:
    """What was counted so far. ``error`` is by code; ``parts`` are those read to their end."""

    ok: int = 0
    error: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    plans: set[str] = field(default_factory=set)
    parts: list[FileFacts] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        self.plans.add(str(row["plan"]))
        if row["status"] == "ok":
            self.ok += 1
            self.prompt_tokens += row["usage"]["prompt_tokens"]
            self.completion_tokens += row["usage"]["completion_tokens"]
        else:
            self.error[row["error"]["code"]] += 1


class Reading:
    """One pass over the published rows of ``run``; ``counts`` grows with it.

    Attributes
    ----------
    units
        Numbers of the published units, ascending. A run that still works may publish more.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.identity = run.identity()
        self.units = sorted(run.published_units())
        self.counts = Counts()
        self._overlays = {n: run.published_units(n) for n in run.overlays()}
        self._spans = _Spans(self.identity)

    @property
    def complete(self) -> bool:
        """Whether every unit of the run is there."""
        return len(self.units) == grid.count(self.identity.grid)

    def rows(self) -> Iterator[Found]:
        """Every row in input order.

        Raises
        ------
        OutputError
            ``output.damaged`` when a part is not what a runner publishes: broken JSON, a row
            that is none, rows that are not in input order, each once, or belong to another
            unit; an overlay's row that the base part does not have.
        """
        for unit in self.units:
            yield from self.of_unit(unit)

    def of_unit(self, unit: int) -> Iterator[Found]:
        """The rows of one unit; raises as `rows`. Each unit is read once in a pass."""
        laid = self._part(unit, 0)
        for number in sorted(self._overlays):
            if unit in self._overlays[number]:
                over = self._part(unit, number)
                laid = _laid_over(laid, over, self.run.part_path(unit, number))
        for found in laid:
            self.counts.add(found.row)
            yield found

    def _part(self, unit: int, overlay: int) -> Iterator[Found]:
        path = self.run.part_path(unit, overlay)
        digest, size, count, last = hashlib.sha256(), 0, 0, (-1, -1)
        for line in _lines(path):
            digest.update(line)
            size, count = size + len(line), count + 1
            found = Found(line, parse_row(line, path))
            if found.place <= last:
                raise damaged(path, f"row {found.place} does not come after {last}")
            if not self._spans.hold(unit, found.place):
                raise damaged(path, f"row {found.place} does not belong to unit {unit}")
            last = found.place
            yield found
        name = path.relative_to(self.run.path)
        facts = FileFacts(path=str(name), sha256=digest.hexdigest(), bytes=size, rows=count)
        self.counts.parts.append(facts)


def check_complete(run: RunDir) -> list[Problem]:
    """Refuse a run with missing parts.

    Returns
    -------
    list of Problem
        The warning ``output.retrying`` if errors are to be answered again and some are not yet.

    Raises
    ------
    OutputError
        ``output.incomplete``, with how many are missing.
    """
    identity = run.identity()
    total = grid.count(identity.grid)
    missing = total - len(run.published_units())
    if missing:
        message = f"{missing} of {total} units are not there yet"
        hint = f"wait for it, `hpc-llm resume {run.path}`, or take what there is with --partial"
        raise OutputError(Problem("output.incomplete", message, hint=hint))
    if (repeating := open_pass(run, identity)) is None:
        return []
    found, left = repeating
    message = f"{len(left)} of {len(found.units)} units still have errors that are to be retried"
    hint = f"wait for it, or `hpc-llm resume {run.path}`: these rows are as they were before"
    return [Problem("output.retrying", message, hint=hint, severity="warning")]


def parse_row(line: bytes, path: Path) -> dict[str, Any]:
    """The output row that ``line`` of the part ``path`` holds.

    Raises
    ------
    OutputError
        ``output.damaged``.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise damaged(path, str(exc)) from exc
    if not _fits(row):
        raise damaged(path, "a line is no output row")
    if not line.endswith(b"\n"):
        raise damaged(path, "the last line is cut off")
    found: dict[str, Any] = row
    return found


class _Spans:
    """Which rows belong to which unit."""

    def __init__(self, identity: RunIdentity) -> None:
        self._grid, self._inputs = identity.grid, identity.inputs
        self._starts = list(accumulate((entry.span for entry in identity.inputs), initial=0))

    def hold(self, unit: int, where: Place) -> bool:
        file, offset = where
        if unit not in grid.units(self._grid) or not 0 <= file < len(self._inputs) or offset < 0:
            return False
        first, last = grid.span(self._grid, unit)
        return first <= self._starts[file] + place(self._inputs[file], offset) < last


def _laid_over(base: Iterator[Found], over: Iterator[Found], path: Path) -> Iterator[Found]:
    """``base`` with the rows of ``over`` in place of those with the same place."""
    newer = next(over, None)
    for found in base:
        if newer is not None and newer.place == found.place:
            yield newer
            newer = next(over, None)
        elif newer is not None and newer.place < found.place:
            break
        else:
            yield found
    if newer is not None:
        raise damaged(path, f"row {newer.place} is none of the base part")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as part:
            yield from part
    except OSError as exc:
        raise damaged(path, f"cannot be read: {exc.strerror}") from exc


def _fits(row: Any) -> bool:
    """Whether ``row`` has what every output row has; see `launcher.data.records`."""
    if not (isinstance(row, dict) and {"id", "row", "plan"} <= row.keys()):
        return False
    place, needed = row["row"], _NEEDED.get(str(row.get("status")))
    numbers = isinstance(place, list) and [type(n) for n in place] == [int, int]
    whole = numbers and needed is not None and needed <= row.keys()
    return whole and (_answers(row) if row["status"] == "ok" else _refuses(row["error"]))


def _answers(row: dict[str, Any]) -> bool:
    response, usage = row["response"], row["usage"]
    if not (isinstance(response, dict) and isinstance(usage, dict)):
        return False
    counts = [usage.get(f"{kind}_tokens") for kind in ("prompt", "completion")]
    return isinstance(response.get("text"), str) and [type(n) for n in counts] == [int, int]


def _refuses(error: Any) -> bool:
    return isinstance(error, dict) and all(
        isinstance(error.get(key), str) for key in ("code", "message")
    )
