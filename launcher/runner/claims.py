"""Which unit is next, and which of its rows.

Units are taken in input order. Towards the end the few longest rows decide when the run ends, and
they lie anywhere in what is left: so the last units are gone through several times, by all
workers, the first times for their long rows alone. In between a unit is anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from launcher.data.leases import Leases
from launcher.data.open_unit import OpenUnit
from launcher.data.passes import Pass, open_pass
from launcher.data.wal import Key
from launcher.plan.types import RunIdentity
from launcher.rundir import RunDir
from launcher.runner.ready import Lengths

__all__ = ["Claims"]

# What a row must be expected to take on each visit but the last, in answers of the length in
# which the mean token lies. Chosen by benchmarks/makespan.py.
_LONG = (1.5, 0.5)


@dataclass
class Claims:
    """Claims units for one worker.

    Attributes
    ----------
    held
        Units that are this worker's alone.
    left
        Units that were not published when last looked.
    untried
        How many of them have not been tried since.
    visit
        The place in `_LONG` of the rows that are wanted of the next units; its length for all.
    """

    run: RunDir
    identity: RunIdentity
    leases: Leases
    held: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    untried: int = 0
    visit: int = len(_LONG)
    visited: bool = False
    _pass: Pass | None = None
    _rest: Iterator[int] = field(default_factory=lambda: iter(()))

    def next(self) -> OpenUnit | None:
        """A unit that is neither published nor another living worker's, or None.

        Units are tried in order, each once before any is tried again, so that finding work
        costs about one `link` a unit however many workers share a run.
        """
        looks = 2
        while looks:
            for unit in self._rest:
                self.untried -= 1
                if opened := self._open(unit):
                    return opened
            if self.visit < len(_LONG):
                self.visit += 1
            else:
                looks -= 1
            if self.is_done():
                return None
        return None

    def is_done(self) -> bool:
        """Look at what is published; whether that is all."""
        found = open_pass(self.run, self.identity)
        if found is None:
            self._pass, self.left = None, set()
            return True
        self._pass, self.left = found
        self.leases.overlay = self._pass.overlay
        left = self.left - self.held
        self._rest = (unit for unit in self._pass.units if unit in left)
        self.untried = len(left)
        return False

    def begin_visits(self) -> None:
        """Want the long rows of the units that are left, before their others. Happens once."""
        if not self.visited and not self.leases.overlay:
            self.visit, self.visited = 0, True

    def least_expected(self, lengths: Lengths) -> float:
        """What a row of the next unit must be expected to take to be begun on this visit."""
        long = lengths.long() if self.visit < len(_LONG) else None
        return 0.0 if long is None else _LONG[self.visit] * long

    def wanted(self, unit: OpenUnit) -> set[Key] | None:
        """The rows of a claimed unit to be answered; None for all."""
        assert self._pass is not None  # noqa: S101 - the unit was claimed in it
        return self._pass.wanted(unit.unit)

    def share(self, unit: OpenUnit) -> None:
        """Leave the rows of ``unit`` that were not begun to anybody."""
        self.leases.share(unit.unit, unit.generation, unit.begun)
        self.held.discard(unit.unit)

    def _open(self, unit: int) -> OpenUnit | None:
        # Looked for before too: the listing may lag, and each claim of what is out leaves a lease.
        overlay = self.leases.overlay
        part = self.run.part_path(unit, overlay)
        most_shared = self.visit if self.visit < len(_LONG) else None
        generation = None if part.exists() else self.leases.claim(unit, most_shared)
        if not generation or part.exists():
            return None
        self.held.add(unit)
        elsewhere = self.leases.elsewhere(unit, generation)
        return OpenUnit(self.run, unit, generation, overlay, elsewhere)
