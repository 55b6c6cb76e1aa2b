"""What the parts of a run hold, counted; and the end of a run that has all of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.data.passes import all_passes
from launcher.errors import OutputError, Problem
from launcher.rundir import RunDir, publish
from launcher.telemetry.metrics import read_parts

__all__ = ["Tally", "finish", "tally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Rows of published parts as they stand after all overlays, and the tokens spent on them."""

    ok: int
    error: int
    prompt_tokens: int
    completion_tokens: int


def tally(run: RunDir, noted: Iterable[Mapping[str, Any]]) -> Tally:
    """Count the rows of ``run``.

    Parameters
    ----------
    noted
        What workers noted of their parts (`read_parts`): only parts that nobody noted are read.

    Raises
    ------
    OutputError
        ``output.damaged`` for a part that is not what a runner publishes.
    """
    known = {(entry["overlay"], entry["unit"]): entry for entry in noted}
    first: list[Mapping[str, int]] = []
    repeated: list[Mapping[str, int]] = []
    for found in all_passes(run, run.identity()):
        for unit in run.published_units(found.overlay):
            place = (found.overlay, unit)
            counts = known.get(place) or _count(run.part_path(unit, found.overlay))
            (repeated if found.overlay else first).append(counts)
    mended = sum(c["ok"] for c in repeated)
    return Tally(
        ok=sum(c["ok"] for c in first) + mended,
        error=sum(c["error"] for c in first) - mended,
        prompt_tokens=sum(c["prompt_tokens"] for c in (*first, *repeated)),
        completion_tokens=sum(c["completion_tokens"] for c in (*first, *repeated)),
    )


def finish(run: RunDir) -> None:
    """Write DONE: every unit is published. Whoever sees it first does; once is enough.

    Raises
    ------
    OutputError
        ``output.no-tokens`` when rows were answered and nothing was generated.
    """
    found = tally(run, read_parts(run.path / "metrics"))
    if found.ok and not found.completion_tokens:
        message = f"{found.ok} rows were answered without one token"
        hint = "look at the rows with `hpc-llm results`, and at sampling.max_tokens"
        raise OutputError(Problem("output.no-tokens", message, hint=hint))
    publish(run.done_path, json.dumps(asdict(found)).encode())
    for path in _left_over(run):
        with contextlib.suppress(OSError):
            path.unlink()


def _left_over(run: RunDir) -> Iterable[Path]:
    """What killed workers left in the place of parts that others made."""
    for root in map(run.pass_path, (0, *run.overlays())):
        yield from (root / "wal").glob("*")
        yield from (root / "parts").glob(".*.tmp")


def _count(path: Path) -> dict[str, int]:
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        ok = [row for row in rows if row["status"] == "ok"]
        return {
            "ok": len(ok),
            "error": len(rows) - len(ok),
            "prompt_tokens": sum(row["usage"]["prompt_tokens"] for row in ok),
            "completion_tokens": sum(row["usage"]["completion_tokens"] for row in ok),
        }
    except (ValueError, KeyError, TypeError) as exc:
        problem = Problem("output.damaged", f"{path} is not what a runner publishes: {exc!r}")
        raise OutputError(problem) from exc
