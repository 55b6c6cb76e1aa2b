"""How many requests the engine holds at once: enough to keep it busy, no more.

What it holds beyond that costs memory, is redone after a kill, and can no longer be reordered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from launcher.engines.base import Capabilities

__all__ = ["InFlight"]

# Tokens in flight, prompts and the most that may be answered, for each token of the KV cache:
# most answers end before their limit.
_OVERCOMMITTED = 1.5
# So many steps of the engine may end requests before our next ones are there.
_STEPS = 4.0
_FEWEST = 2.0
_MOST_TIMES = 4


class InFlight:
    """Counts what is in flight, and moves its bound after what the engine says of itself."""

    def __init__(self, capabilities: Capabilities) -> None:
        most = capabilities.max_in_flight
        self.bound = most
        self.rows = 0
        self.tokens = 0
        self._queues = capabilities.queues
        self._most = most * _MOST_TIMES
        kv = capabilities.kv_tokens
        self._most_tokens = math.inf if kv is None else kv * _OVERCOMMITTED

    def may(self, tokens: int) -> bool:
        """Whether a request that can take ``tokens`` of the KV cache may follow."""
        fits = self.tokens + tokens <= self._most_tokens
        return self.rows < self.bound and (fits or not self.rows)

    def take(self, tokens: int) -> None:
        self.rows += 1
        self.tokens += tokens

    def give(self, tokens: int) -> None:
        self.rows -= 1
        self.tokens -= tokens

    def adapt(self, stats: Mapping[str, float], mean_tokens: float | None) -> None:
        """Move the bound, so that about as many requests queue as will end before others come.

        Parameters
        ----------
        stats
            The engine's, of a moment at which rows were waiting.
        mean_tokens
            New tokens of an answer: one of so many requests ends in each step.
        """
        running, queued = stats.get("running"), stats.get("queued")
        if not self._queues or not running or queued is None or self.rows < self.bound:
            return
        if mean_tokens is None:  # nothing has ended yet
            return
        few = max(_FEWEST, running * _STEPS / mean_tokens)
        if queued < few:
            self.bound = min(self._most, math.ceil(self.bound + 2 * few))
        elif queued > 4 * few:
            self.bound = math.ceil((self.bound + running + 2 * few) / 2)
