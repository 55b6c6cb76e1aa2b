"""What the parts of a run hold, counted; and the end of a run that has all of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.data.passes import all_passes, damaged, open_pass
from launcher.errors import OutputError, Problem
from launcher.rundir import RunDir, publish

__all__ = ["PartCounts", "Tally", "count_parts", "finish", "no_tokens", "tally"]

_OF_UNIT = re.compile(r"\.?u(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCounts:
    """What one published part holds; ``overlay`` is that of `RunDir.pass_path`."""

    unit: int
    overlay: int = 0
    ok: int
    error: int
    prompt_tokens: int
    completion_tokens: int


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
        What workers noted of their parts: only parts that nobody noted are read.

    Raises
    ------
    OutputError
        ``output.damaged`` for a part that is not what a runner publishes.
    """
    parts = count_parts(run, noted)
    first = [counts for (overlay, _), counts in parts.items() if not overlay]
    mended = sum(counts["ok"] for (overlay, _), counts in parts.items() if overlay)
    # Below 0 where a part was deleted and made anew after its errors had been mended.
    error = max(0, sum(counts["error"] for counts in first) - mended)
    return Tally(
        ok=sum(counts["ok"] + counts["error"] for counts in first) - error,
        error=error,
        prompt_tokens=sum(counts["prompt_tokens"] for counts in parts.values()),
        completion_tokens=sum(counts["completion_tokens"] for counts in parts.values()),
    )


def count_parts(
    run: RunDir, noted: Iterable[Mapping[str, Any]]
) -> dict[tuple[int, int], Mapping[str, int]]:
    """The counts of every published part by ``(overlay, unit)``; parameters as in `tally`."""
    known = {(entry["overlay"], entry["unit"]): entry for entry in noted}
    places = (
        (found.overlay, unit)
        for found in all_passes(run, run.identity())
        for unit in run.published_units(found.overlay)
    )
    return {
        (overlay, unit): known.get((overlay, unit)) or _count(run.part_path(unit, overlay))
        for overlay, unit in places
    }


def finish(run: RunDir, noted: Iterable[Mapping[str, Any]]) -> None:
    """Write DONE if every unit of every pass is published. Once is enough.

    ``noted`` as for `tally`.

    Raises
    ------
    OutputError
        ``output.no-tokens`` when rows were answered and nothing was generated.
    """
    if open_pass(run, run.identity()) is not None:  # a pass that was begun a moment ago
        return
    found = tally(run, noted)
    if problem := no_tokens(found.ok, found.completion_tokens):
        raise OutputError(problem)
    publish(run.done_path, json.dumps(asdict(found)).encode())
    if open_pass(run, run.identity()) is not None:  # begun while all was counted
        run.done_path.unlink(missing_ok=True)
        return
    for path in _left_over(run):
        with contextlib.suppress(OSError):
            path.unlink()


def no_tokens(ok: int, completion_tokens: int) -> Problem | None:
    """The problem of a run that has ``ok`` answers, and not one token in all of them."""
    if not ok or completion_tokens:
        return None
    message = f"{ok} rows were answered without one token"
    hint = "look at the prompts with `hpc-llm preview JOB`, and at sampling.stop"
    return Problem("output.no-tokens", message, hint=hint)


def _left_over(run: RunDir) -> Iterable[Path]:
    """What killed workers left in the place of parts that others made.

    Nothing of units that are open: a pass may have begun since this worker saw none.
    """
    for overlay in (0, *run.overlays()):
        root, published = run.pass_path(overlay), run.published_units(overlay)
        for path in (*(root / "wal").glob("*.wal"), *(root / "parts").glob(".*.tmp")):
            unit = _OF_UNIT.match(path.name)
            if unit and int(unit[1]) in published:
                yield path


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
        raise damaged(path, repr(exc)) from exc
