"""Rows that wait for the engine, and which of them goes first.

Long answers are begun first, as those that begin last decide when the run ends (longest processing
time first: Graham, Bounds on Multiprocessing Timing Anomalies, 1969). Which they are is learned
while the run goes on. Short rows are held back for the end, but not for good: a row that waits
keeps its unit open.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import Literal

from launcher.data.open_unit import OpenUnit
from launcher.data.records import RowHead
from launcher.engines.base import Request
from launcher.errors import RowError

__all__ = ["Lengths", "Order", "Prepared", "Ready", "Waiting"]

Order = Literal["auto", "input", "random"]

# A row is overtaken by rows of at most as many later units as this.
_OVERTAKEN_UNITS = 8
# How many answers the memory of a kind reaches back.
_MEMORY = 256
_FIRST_GUESS, _FIRST_COUNT = 0.5, 4.0
# How many answers tell that a kind of rows is unlike the others.
_ENOUGH = 64
# The squared coefficient of variation from which on long rows are told from short ones.
_SPREAD = 0.2


@dataclass(slots=True)
class Prepared:
    """A row on its way to the engine: its ``request``, or the ``error`` that stands for it.

    Attributes
    ----------
    size
        Tokens of the prompt; a guess as long as it is no list of ids.
    """

    head: RowHead
    request: Request | None = None
    error: RowError | None = None
    size: int = 0


@dataclass(slots=True, eq=False)
class Waiting:
    """A prepared row, where its answer goes, and how often it was tried.

    Attributes
    ----------
    number
        Which unit of those that this worker has claimed.
    tokens
        The most that it can take of the KV cache.
    expected
        How long its answer is expected to be.
    tries
        How often the engine was asked for it.
    killed
        How often the engine died while it had this row alone.
    """

    prepared: Prepared
    unit: OpenUnit
    index: int
    number: int
    tokens: int
    expected: float = 0.0
    tries: int = 0
    killed: int = 0


class Lengths:
    """What answers are likely to be long, learned from those that have come.

    Rows are of one kind when their limits, and the lengths of their prompts, are equal up to a
    factor of 2. Within a kind the limit itself decides.
    """

    def __init__(self) -> None:
        # By kind the mean share of their limits that answers took, and how many it is made of.
        self._kinds: dict[int, list[float]] = {}
        self._all = [_FIRST_GUESS, 0.0]
        # By kind how many rows were read, and the sums of their limits and of the squares of these.
        self._read: dict[int, list[float]] = {}
        self.mean_tokens: float | None = None

    def expect(self, prompt_tokens: int, max_tokens: int) -> float:
        """Tokens that the answer is expected to have."""
        kind = self._kinds.get(_kind(prompt_tokens, max_tokens), self._all)
        return kind[0] * max_tokens

    def see(self, prompt_tokens: int, max_tokens: int) -> None:
        """Take in that a row was read."""
        sums = self._read.setdefault(_kind(prompt_tokens, max_tokens), [0.0, 0.0, 0.0])
        sums[0] += 1
        sums[1] += max_tokens
        sums[2] += max_tokens * max_tokens

    def long(self) -> float | None:
        """Tokens of the answer in which the mean token lies; None when all are about as long."""
        rows = mean = square = 0.0
        for number, sums in self._read.items():
            kind = self._kinds.get(number, self._all)
            share = (kind if kind[1] >= _ENOUGH else self._all)[0]
            rows += sums[0]
            mean += share * sums[1]
            square += share * share * sums[2]
        return square / mean if square * rows > (1 + _SPREAD) * mean * mean else None

    def note(self, prompt_tokens: int, max_tokens: int, tokens: int) -> None:
        """Take in how long an answer was."""
        number = _kind(prompt_tokens, max_tokens)
        kind = self._kinds.get(number)
        if kind is None:
            # Begun with what is known of all rows, which a few answers outweigh.
            kind = self._kinds[number] = [self._all[0], _FIRST_COUNT]
        before = self.mean_tokens
        self.mean_tokens = tokens if before is None else before + (tokens - before) / _MEMORY
        share = tokens / max_tokens
        for mean in (kind, self._all):
            mean[1] += mean[1] < _MEMORY
            mean[0] += (share - mean[0]) / mean[1]


def _kind(prompt_tokens: int, max_tokens: int) -> int:
    return prompt_tokens.bit_length() << 8 | max_tokens.bit_length()


class Ready:
    """A bounded heap of rows. Which goes first is decided when a row comes in.

    Parameters
    ----------
    order
        ``auto``: the longest first, as far as known; ``input``: as they came; ``random``.
    most_bytes
        Bound of what the prompts take.
    """

    def __init__(self, order: Order, most_bytes: int) -> None:
        self._order = order
        self._most_bytes = most_bytes
        self._heap: list[tuple[float, int, Waiting]] = []
        self._count = 0
        self._bytes = 0
        self._longest = 1.0
        self._chance = random.Random(0)  # noqa: S311 - an order, not a secret

    def __len__(self) -> int:
        return len(self._heap)

    def full(self, rows: int) -> bool:
        """Whether ``rows`` wait already, or as much as may be kept in memory."""
        return len(self._heap) >= rows or self._bytes >= self._most_bytes

    def push(self, waiting: Waiting) -> None:
        """Take in a row; one that was tried goes after the others of its unit."""
        self._count += 1
        self._bytes += _bytes(waiting.prepared)
        heapq.heappush(self._heap, (self._rank(waiting), self._count, waiting))

    def peek(self) -> Waiting:
        return self._heap[0][2]

    def pop(self) -> Waiting:
        """The row that goes next."""
        waiting = heapq.heappop(self._heap)[2]
        self._bytes -= _bytes(waiting.prepared)
        return waiting

    def _rank(self, waiting: Waiting) -> float:
        request = waiting.prepared.request
        if request is None:
            return -float("inf")  # it costs nothing
        if self._order == "input":
            return 0.0
        late = waiting.number / _OVERTAKEN_UNITS
        if self._order == "random":
            return late + (1.0 if waiting.tries else self._chance.random())
        if waiting.tries:
            return late * self._longest
        self._longest = max(self._longest, waiting.expected)
        return late * self._longest - waiting.expected


def _bytes(prepared: Prepared) -> int:
    return 4 * prepared.size
