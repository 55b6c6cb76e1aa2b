"""Whether an engine still gets on, and how long its answers take."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Latencies", "Progress", "Totals"]

# Before the first sign of life kernels may be compiled, graphs captured, caches filled.
_WARM_UP_S = 600.0
_LEAST_S = 120.0
_LONGEST_GAPS = 10
# The first gap is that of warming up, but a pass over long prompts, too, which may come again.
_FIRST_GAPS = 2
# No engine worth waiting for is slower. Wrongly found dead, it would be so in every start.
_MOST_S_PER_TOKEN = 1.0
_FINER = ("iterations", "generated_tokens")
_LATENCIES = 2000
_SHARE = 0.95


class Progress:
    """Notices that nothing happens: no iteration of the engine, no row, while it has requests.

    An engine that tells what it does between its answers has 10 minutes for the first sign, and
    then may be silent for 10 times as long as it was before, for twice as long as the first sign
    took, and for 2 minutes at least. Of one that has nothing but answers, silence says little: it
    has the time of the longest answer that was asked of it, too, and always 10 minutes at least.
    """

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._seen: tuple[int, Mapping[str, float]] | None = None
        self._first_gap_s = self._longest_gap_s = 0.0
        self._most_tokens = 0
        self._works = False

    def given(self, max_tokens: int) -> None:
        """The engine has a request whose answer may have so many tokens."""
        self._most_tokens = max(self._most_tokens, max_tokens)

    def stalled_s(self, rows: int, stats: Mapping[str, float], now_s: float) -> float | None:
        """Seconds without a sign of life, once they are too many.

        Parameters
        ----------
        rows
            Finished so far.
        stats
            The engine's; ``iterations`` and ``generated_tokens`` tell that it works.
        """
        figures = {name: stats[name] for name in _FINER if name in stats}
        gap_s = now_s - self._since_s
        if self._seen != (rows, figures):
            if self._seen is not None:  # the first is the look at an engine that was idle
                self._note(gap_s, figures, self._seen[1])
            self._seen, self._since_s = (rows, figures), now_s
            return None
        return gap_s if gap_s > self._limit_s(tells=bool(figures)) else None

    def _note(
        self, gap_s: float, figures: Mapping[str, float], before: Mapping[str, float]
    ) -> None:
        if self._works or not figures:
            self._longest_gap_s = max(self._longest_gap_s, gap_s)
        else:
            self._first_gap_s = gap_s
        # Rows alone are no proof: they may be adopted, or refused before the model sees them.
        self._works = self._works or figures != before

    def _limit_s(self, *, tells: bool) -> float:
        least_s = _LEAST_S if self._works else _WARM_UP_S
        answer_s = 0.0 if tells else _MOST_S_PER_TOKEN * self._most_tokens
        gaps_s = _FIRST_GAPS * self._first_gap_s, _LONGEST_GAPS * self._longest_gap_s
        return max(least_s, answer_s, *gaps_s)

    def idle(self, now_s: float) -> None:
        """The engine has no request, so nothing can be expected of it."""
        self._since_s = now_s


@dataclass
class Totals:
    """What a worker has done so far."""

    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Latencies:
    """How long the last answers took."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_LATENCIES)

    def note(self, seconds: float) -> None:
        self._last.append(seconds)

    def p95_s(self) -> float | None:
        """What 95 % of them took at most; None before the first."""
        if not self._last:
            return None
        ordered = sorted(self._last)
        return ordered[min(len(ordered) - 1, math.ceil(_SHARE * len(ordered)) - 1)]
