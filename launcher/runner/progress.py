"""Whether an engine still gets on, and how long its answers take."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

__all__ = ["Latencies", "Progress"]

# Before the first sign of life kernels may be compiled, graphs captured, caches filled.
_WARM_UP_S = 600.0
_LEAST_S = 120.0
_LONGEST_GAPS = 10
_LATENCIES = 2000
_SHARE = 0.95


class Progress:
    """Notices that nothing happens: no iteration of the engine, no row, while it has requests."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._seen: tuple[float, float, float] | None = None
        self._longest_gap_s = 0.0
        self._signs = 0

    def stalled_s(self, rows: int, stats: Mapping[str, float], now_s: float) -> float | None:
        """Seconds without a sign of life, once they are too many.

        Parameters
        ----------
        rows
            Finished so far.
        stats
            The engine's; ``iterations`` and ``generated_tokens`` tell that it works.
        """
        seen = (float(rows), stats.get("iterations", 0.0), stats.get("generated_tokens", 0.0))
        gap_s = now_s - self._since_s
        if seen != self._seen:
            if self._signs > 1:  # the first is the look at an engine that was idle
                self._longest_gap_s = max(self._longest_gap_s, gap_s)
            self._signs += 1
            self._seen, self._since_s = seen, now_s
            return None
        limit_s = max(_LEAST_S, _LONGEST_GAPS * self._longest_gap_s)
        limit_s = limit_s if self._signs > 1 else _WARM_UP_S
        return gap_s if gap_s > limit_s else None

    def idle(self, now_s: float) -> None:
        """The engine has no request, so nothing can be expected of it."""
        self._since_s = now_s


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
