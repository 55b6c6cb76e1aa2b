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
    """Counts how the last `WINDOW_ROWS` rows went.

    Attributes
    ----------
    tolerated
        Share of bad rows that the job allows; when that is most of them, nothing is stopped.
    """

    tolerated: float
    _recent: deque[str | None] = field(default_factory=lambda: deque(maxlen=WINDOW_ROWS))
    _bad: int = 0
    _in_a_row: int = 0

    def note(self, error: RowError | None) -> None:
        """Take in how one row went.

        Raises
        ------
        RunError
            ``run.rows-fail`` when more than half of the last 200 rows and the last 20 in sequence
            are errors.
        """
        if len(self._recent) == WINDOW_ROWS:
            self._bad -= self._recent[0] is not None
        self._recent.append(error.code if error else None)
        self._bad += error is not None
        self._in_a_row = self._in_a_row + 1 if error else 0
        if error and self._in_a_row > IN_A_ROW and len(self._recent) == WINDOW_ROWS:
            self._judge(error)

    def _judge(self, last: RowError) -> None:
        if self._bad <= max(0.5, self.tolerated) * WINDOW_ROWS:
            return
        code, count = Counter(filter(None, self._recent)).most_common(1)[0]
        message = (
            f"{self._bad} of the last {WINDOW_ROWS} rows are errors, {count} of them {code}; "
            f"the last one: {last.message}"
        )
        hint = "mend the job file or the input and submit to a new output.path"
        raise RunError(Problem("run.rows-fail", message, hint=hint))
