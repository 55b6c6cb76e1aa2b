"""Rows that the engine had when it died, run apart until it is known which of them it dies of."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from launcher.runner.ready import Waiting

__all__ = ["Quarantine"]

# Each death costs a start of the engine, each group the time of its longest row.
_GROUPS = 16
_MOST_KILLED = 2


@dataclass
class Quarantine:
    """Groups of suspects; the engine is to have one at a time, and nothing beside it.

    It is true until the last group has come through.
    """

    _groups: deque[list[Waiting]] = field(default_factory=deque)
    _trying: bool = False

    def __bool__(self) -> bool:
        return self._trying or bool(self._groups)

    def add(self, suspects: list[Waiting]) -> list[Waiting]:
        """The engine died while it had ``suspects`` and nothing else.

        Returns
        -------
        list of Waiting
            Those it is given no more: it died twice of each of them alone.
        """
        if len(suspects) == 1:
            suspects[0].killed += 1
            if suspects[0].killed >= _MOST_KILLED:
                return suspects
            # After the others: what they come to tells the row's fault from the engine's.
            self._groups.append(suspects)
            return []
        size = max(1, -(-len(suspects) // _GROUPS))
        parts = [suspects[at : at + size] for at in range(0, len(suspects), size)]
        self._groups.extendleft(reversed(parts))
        return []

    def pop(self) -> list[Waiting]:
        """The next group, when the one before has ended; empty when that was the last."""
        self._trying = bool(self._groups)
        return self._groups.popleft() if self._groups else []
