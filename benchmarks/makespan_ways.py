"""Other ways to divide rows among replicas, without files: what `makespan.py` compares with.

``static``      the rows are divided beforehand, as many for each
``barriers``    units are taken in turn, the next one only when the last has ended
``in-order``    one list for all replicas, row by row: what no knowledge of lengths gives at best
``longest``     the same, the longest row first: all lengths known
``longest:N``   each replica has N rows before it, of which it takes the longest first
``fitting``     the longest row that a replica of its speed can end by the bound, else the shortest
``shared:N``    the longest of the next N rows that nobody has taken

Rows that a dead replica had are taken by the others at once, as if its death were known.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

from launcher.engines.base import Engine, Request
from launcher.plan.types import Sampling

__all__ = ["FIXED_WAYS", "Order", "feed", "know_end", "order_of"]

FIXED_WAYS = ("static", "barriers", "in-order", "longest", "fitting")
READ_ROWS = 64


class Order:
    """Who gets which row when; one list for all, in input order.

    Parameters
    ----------
    costs
        Of each row: how long its answer is.
    """

    def __init__(self, costs: Sequence[int], replicas: int) -> None:
        self.costs = costs
        self.left = len(costs)
        self.held: list[set[int]] = [set() for _ in range(replicas)]
        self.changed = asyncio.Event()
        self._orphans: deque[int] = deque()
        self._shared: deque[int] = deque(self.sequence())

    def sequence(self) -> Sequence[int]:
        return range(len(self.costs))

    async def next(self, replica: int) -> int | None:
        """A row for ``replica``, once there is one; None when all are answered."""
        while self.left:
            row = self.take(replica)
            if row is None and self._orphans:
                row = self._orphans.popleft()
            if row is not None:
                self.held[replica].add(row)
                return row
            await self.changed.wait()
        return None

    def take(self, replica: int) -> int | None:  # noqa: ARG002 - others need it
        return self._shared.popleft() if self._shared else None

    def answered(self, replica: int, row: int) -> None:
        self.held[replica].remove(row)
        self.left -= 1
        if not self.left or not self.held[replica]:
            self._wake()

    def lost(self, replica: int) -> None:
        """``replica`` is gone, and its rows are anybody's."""
        self._orphans.extend(sorted(self.held[replica]))
        self._orphans.extend(self.promised(replica))
        self.held[replica].clear()
        self._wake()

    def promised(self, replica: int) -> Sequence[int]:  # noqa: ARG002 - as above
        """Rows that only ``replica`` would have begun; it will not."""
        return ()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Longest(Order):
    def sequence(self) -> Sequence[int]:
        return sorted(range(len(self.costs)), key=lambda row: -self.costs[row])


class Fitting(Order):
    """``most`` says how many tokens a replica can still give one row in time."""

    most: Callable[[int], float]

    def __init__(self, costs: Sequence[int], replicas: int) -> None:
        super().__init__(costs, replicas)
        self._rising = sorted((cost, row) for row, cost in enumerate(costs))

    def take(self, replica: int) -> int | None:
        if not self._rising:
            return None
        fits = bisect_right(self._rising, (self.most(replica), len(self.costs)))
        return self._rising.pop(max(0, fits - 1))[1]


class Static(Order):
    def __init__(self, costs: Sequence[int], replicas: int) -> None:
        super().__init__(costs, replicas)
        share = -(-len(costs) // replicas)
        self._own = [
            deque(range(len(costs))[start * share : (start + 1) * share])
            for start in range(replicas)
        ]

    def take(self, replica: int) -> int | None:
        own = self._own[replica]
        return own.popleft() if own else None

    def promised(self, replica: int) -> Sequence[int]:
        left = list(self._own[replica])
        self._own[replica].clear()
        return left


class Barriers(Static):
    """The rows of a unit are a replica's own; ``units`` as the run's grid cuts them."""

    def __init__(self, costs: Sequence[int], replicas: int, units: Sequence[int]) -> None:
        super().__init__(costs, replicas)
        for own in self._own:
            own.clear()
        self._units = deque(units)

    def take(self, replica: int) -> int | None:
        own = self._own[replica]
        if not own and not self.held[replica] and self._units:
            own.extend(self._shared.popleft() for _ in range(self._units.popleft()))
        return super().take(replica)


class Ahead(Order):
    """The longest of ``ahead`` rows, which are each replica's own, or before all of them."""

    def __init__(self, costs: Sequence[int], replicas: int, ahead: int, *, together: bool) -> None:
        super().__init__(costs, replicas)
        heaps: list[list[tuple[int, int]]] = [[] for _ in range(1 if together else replicas)]
        self._ready = heaps * replicas if together else heaps
        self._ahead = ahead

    def take(self, replica: int) -> int | None:
        ready = self._ready[replica]
        if len(ready) < self._ahead:
            for _ in range(min(READ_ROWS, len(self._shared))):
                row = self._shared.popleft()
                heapq.heappush(ready, (-self.costs[row], row))
            if len(ready) < self._ahead and self._shared:
                return self.take(replica)
        return heapq.heappop(ready)[1] if ready else None

    def promised(self, replica: int) -> Sequence[int]:
        if self._ready.count(self._ready[replica]) > 1:
            return ()
        left = [row for _, row in sorted(self._ready[replica])]
        self._ready[replica].clear()
        return left


def order_of(way: str, costs: Sequence[int], replicas: int, units: Sequence[int]) -> Order:
    """The order that ``way`` names, as in the table above."""
    name, _, number = way.partition(":")
    if name in {"longest", "shared"} and number:
        return Ahead(costs, replicas, int(number), together=name == "shared")
    if way == "barriers":
        return Barriers(costs, replicas, units)
    fixed = {"static": Static, "in-order": Order, "longest": Longest, "fitting": Fitting}
    return fixed[way](costs, replicas)


def know_end(order: Order, end_s: float, speeds: Sequence[float], step_s: float) -> None:
    """Tell ``fitting`` when all should have ended, and how fast the replicas are."""
    if isinstance(order, Fitting):
        clock = asyncio.get_running_loop().time
        order.most = lambda replica: (end_s - clock()) * speeds[replica] / step_s


async def feed(engine: Engine, texts: Sequence[str], order: Order, replica: int) -> None:
    """Have ``engine`` answer what ``order`` gives ``replica``, until all rows are answered.

    Raises
    ------
    RunError
        The engine died.
    """

    async def in_turn() -> None:
        while (row := await order.next(replica)) is not None:
            sampling = Sampling(max_tokens=order.costs[row])
            await engine.generate(Request(id=str(row), sampling=sampling, text=texts[row]))
            order.answered(replica, row)

    tasks: list[asyncio.Task[None]] = []
    try:
        window = (await engine.start()).max_in_flight
        tasks += [asyncio.create_task(in_turn()) for _ in range(window)]
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        order.lost(replica)
