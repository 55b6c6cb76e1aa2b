"""Passes over the input: the first answers every row, each later one repeats some errors."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.data.wal import Key
from launcher.errors import OutputError, Problem
from launcher.plan import grid
from launcher.plan.types import RunIdentity
from launcher.rundir import RunDir

__all__ = ["Pass", "all_passes", "damaged", "error_codes", "open_pass"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass: its ``units``, and of these the rows whose error has one of ``codes``.

    Attributes
    ----------
    overlay
        0 for the pass over all rows.
    codes
        Of the errors that are repeated; None for all errors. Nothing to the first pass.
    """

    run: RunDir
    overlay: int
    units: Sequence[int]
    codes: Collection[str] | None = None

    def wanted(self, unit: int) -> set[Key] | None:
        """The rows of ``unit`` to be answered; None for all."""
        if not self.overlay:
            return None
        codes = error_codes(self.run, unit, below=self.overlay)
        return {key for key, code in codes.items() if self.codes is None or code in self.codes}


def all_passes(run: RunDir, identity: RunIdentity) -> list[Pass]:
    """Every pass of ``run``, in the order in which they are made."""
    first = Pass(run=run, overlay=0, units=range(grid.count(identity.grid)))
    told = ((number, run.overlay(number)) for number in run.overlays())
    return [first] + [
        Pass(run=run, overlay=number, units=what["units"], codes=what["codes"])
        for number, what in told
    ]


def open_pass(run: RunDir, identity: RunIdentity) -> tuple[Pass, set[int]] | None:
    """The pass to work on, and its units that are not published; None when all of all are."""
    for found in all_passes(run, identity):
        if left := set(found.units) - run.published_units(found.overlay):
            return found, left
    return None


def error_codes(run: RunDir, unit: int, *, below: int) -> Mapping[Key, str]:
    """The rows of ``unit`` that are errors after the overlays before ``below``, with their code."""
    found: dict[Key, str] = {}
    for overlay in [0, *(number for number in run.overlays() if number < below)]:
        path = run.part_path(unit, overlay)
        if not path.exists():  # an overlay has only the units that it repeats
            continue
        for key, code in _codes(path):
            if code is None:
                found.pop(key, None)
            else:
                found[key] = code
    return found


def _codes(path: Path) -> Iterator[tuple[Key, str | None]]:
    """Each row of a part, and its error's code."""
    try:
        with path.open("rb") as part:
            for row in map(json.loads, part):
                file, offset = row["row"]
                yield (file, offset), None if row["status"] == "ok" else row["error"]["code"]
    except (ValueError, KeyError, TypeError) as exc:
        raise damaged(path, repr(exc)) from exc


def damaged(path: Path, what: str) -> OutputError:
    """The error that says what is wrong with the part ``path``."""
    hint = "delete this part and resume the run: its unit is answered again"
    return OutputError(Problem("output.damaged", f"{path}: {what}", hint=hint))
