"""A run in which everything fails is stopped before it has burnt its hours."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from launcher.errors import Problem, RowError, RunError

__all__ = ["Breaker"]

WINDOW_ROWS = 200
IN_A_ROW = 20


@dataclass
class Breaker:
    """Counts how rows went: the last `WINDOW_ROWS`, and all of them.

    Attributes
    ----------
    tolerated
        Share of bad rows that the job allows; when that is most of them, nothing is stopped.
    """

    tolerated: float
    _recent: deque[str | None] = field(default_factory=lambda: deque(maxlen=WINDOW_ROWS))
    _bad: int = 0
    _in_a_row: int = 0
    _all: int = 0
    _all_bad: int = 0

    def note(self, error: RowError | None, *, asked: bool) -> None:
        """Take in how one row went, and whether the engine was ``asked`` for it.

        Raises
        ------
        RunError
            ``run.rows-fail`` when more than half of the last 200 rows and more than 20 in sequence
            are errors. Rows that never reached the engine cost little, and bad input comes in
            clusters: with these, more than half of all rows have to be errors.
        """
        self._all += 1
        self._all_bad += error is not None
        if len(self._recent) == WINDOW_ROWS:
            self._bad -= self._recent[0] is not None
        self._recent.append(error.code if error else None)
        self._bad += error is not None
        self._in_a_row = self._in_a_row + 1 if error else 0
        if error and self._in_a_row > IN_A_ROW and len(self._recent) == WINDOW_ROWS:
            self._judge(error, asked=asked)

    def _judge(self, last: RowError, *, asked: bool) -> None:
        most = max(0.5, self.tolerated)
        if self._bad <= most * WINDOW_ROWS or not (asked or self._all_bad > most * self._all):
            return
        code, count = Counter(filter(None, self._recent)).most_common(1)[0]
        message = (
            f"{self._bad} of the last {WINDOW_ROWS} rows are errors, {count} of them {code}; "
            f"the last one: {last.message}"
        )
        hint = "mend the cause and resume; if the prompt must change, take a new output.path"
        raise RunError(Problem("run.rows-fail", message, hint=hint))
