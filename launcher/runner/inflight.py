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
# Of the requests that run, so many may queue in the engine: fewer, and it could run dry between
# two of our turns; more are no use.
_FEW, _MANY = 0.05, 0.3
_STEP = 1.25
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

    def adapt(self, stats: Mapping[str, float]) -> None:
        """Move the bound; ``stats`` are the engine's, of a moment at which rows were waiting."""
        running, queued = stats.get("running"), stats.get("queued")
        if not self._queues or not running or queued is None or self.rows < self.bound:
            return
        if queued < _FEW * running:
            self.bound = min(self._most, math.ceil(self.bound * _STEP))
        elif queued > _MANY * running:
            wanted = running * (1 + (_FEW + _MANY) / 2)
            self.bound = max(1, math.ceil((self.bound + wanted) / 2))
