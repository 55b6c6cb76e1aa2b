"""Rows to the engine and answers to parts, with no barrier between units.

Rows of the next unit enter while stragglers of the last one still run; a unit is published
the moment its last row is answered. Memory grows with what is in flight, not with the data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.data.leases import Leases
from launcher.data.prompts import PromptBuilder, row_id
from launcher.data.records import encode, error_row, ok_row
from launcher.data.rows import Row, read_unit
from launcher.engines.base import Engine, Request
from launcher.errors import RowError
from launcher.plan import grid
from launcher.plan.types import RunIdentity
from launcher.rundir import RunDir, publish
from launcher.telemetry.metrics import PartCounts

__all__ = ["Dispatcher", "Totals"]

POLL_S = 1.0


@dataclass
class Totals:
    """What a dispatcher has done so far."""

    rows: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class _OpenUnit:
    """A unit being answered: one slot a row, filled as answers come."""

    unit: int
    records: list[dict[str, Any] | None] = field(default_factory=list)
    waiting: int = 0
    read: bool = False

    @property
    def complete(self) -> bool:
        return self.read and self.waiting == 0


@dataclass(frozen=True)
class _Answering:
    """What a row needs to be answered."""

    engine: Engine
    builder: PromptBuilder
    slots: asyncio.Semaphore


@dataclass
class Dispatcher:
    """Answers every unit that this worker can claim.

    Attributes
    ----------
    published
        Called with the counts of each part that this worker published.
    phase
        ``starting`` until there is an engine, then ``running``, then perhaps ``leaving``.
    """

    run: RunDir
    identity: RunIdentity
    plan_number: str
    leases: Leases
    published: Callable[[PartCounts], None]
    totals: Totals = field(default_factory=Totals)
    phase: Literal["starting", "running", "leaving"] = "starting"
    _open: set[int] = field(default_factory=set)
    _untried: Iterator[int] = field(default_factory=lambda: iter(()))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _failure: asyncio.Future[None] | None = None

    def leave(self) -> None:
        """Hand over no more rows; what is in flight may still end."""
        self.phase = "leaving"

    async def work(self, engine: Engine, window: int, first: int) -> bool:
        """Answer units, beginning with the already claimed ``first``, until none is left.

        Parameters
        ----------
        window
            Rows handed to the engine at once.

        Returns
        -------
        bool
            Whether every unit of the run is published; False when it left early.

        Raises
        ------
        RunError
            The engine died. What was in flight is lost; published parts stay.
        """
        self.phase = "leaving" if self._leaving else "running"
        self._failure = asyncio.get_running_loop().create_future()
        builder = PromptBuilder(self.identity.prompt, self.identity.sampling)
        answering = _Answering(engine, builder, asyncio.Semaphore(window))
        unit: int | None = first
        try:
            while unit is not None and not self._leaving:
                await self._feed(_OpenUnit(unit), answering)
                unit = await self._next()
            await self._drain()
        finally:
            for task in self._tasks:
                task.cancel()
            if self._failure.done():
                self._failure.exception()  # looked at, whatever else ended the work
        return len(self.run.published_units()) == grid.count(self.identity.grid)

    def claim(self) -> int | None:
        """A unit that is neither published nor another living worker's, or None.

        Units are tried in order, each once before any is tried again, so that finding work
        costs about one `link` a unit however many workers share a run.
        """
        for _ in range(2):
            for unit in self._untried:
                if self.leases.claim(unit) and not self.run.part_path(unit).exists():
                    return unit
            published = self.run.published_units()
            self._untried = (
                unit
                for unit in range(grid.count(self.identity.grid))
                if unit not in published and unit not in self._open
            )
        return None

    async def _next(self) -> int | None:
        """The next unit; waits while others still work on the last ones and might die."""
        while not self._leaving:
            unit = await asyncio.to_thread(self.claim)
            if unit is not None:
                return unit
            answered = await asyncio.to_thread(self.run.published_units) | self._open
            if len(answered) >= grid.count(self.identity.grid):
                return None
            await self._unless_failed(asyncio.sleep(POLL_S))
        return None

    @property
    def _leaving(self) -> bool:
        return self.phase == "leaving"

    async def _feed(self, unit: _OpenUnit, answering: _Answering) -> None:
        slots = answering.slots
        self._open.add(unit.unit)
        for row in read_unit(self.identity.inputs, self.identity.grid, unit.unit):
            if slots.locked():
                await self._unless_failed(slots.acquire())
            else:
                await slots.acquire()
            if self._leaving:
                return
            unit.records.append(None)
            unit.waiting += 1
            answer = self._answer(unit, len(unit.records) - 1, row, answering)
            task = asyncio.create_task(answer)
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        unit.read = True
        await self._publish_if_complete(unit)

    async def _answer(self, unit: _OpenUnit, index: int, row: Row, answering: _Answering) -> None:
        self.totals.in_flight += 1
        try:
            unit.records[index] = await self._record(row, answering)
        finally:
            self.totals.in_flight -= 1
            answering.slots.release()
        self.totals.rows += 1
        unit.waiting -= 1
        await self._publish_if_complete(unit)

    async def _record(self, row: Row, answering: _Answering) -> dict[str, Any]:
        prompt_id = row_id(row)
        try:
            prompt = answering.builder.build(row)
            request = Request(
                id=f"{row.file}:{row.offset}",
                sampling=prompt.sampling,
                text=prompt.text,
                messages=prompt.messages,
            )
            completion = await answering.engine.generate(request)
        except RowError as exc:
            return error_row(row, prompt_id, exc, plan=self.plan_number, keep=self.identity.keep)
        self.totals.prompt_tokens += completion.prompt_tokens
        self.totals.completion_tokens += completion.completion_tokens
        return ok_row(row, prompt_id, completion, plan=self.plan_number, keep=self.identity.keep)

    async def _publish_if_complete(self, unit: _OpenUnit) -> None:
        if not unit.complete:
            return
        records = [record for record in unit.records if record is not None]
        if await asyncio.to_thread(self._publish, unit.unit, records):
            self.published(_counts(unit.unit, records))
        self._open.discard(unit.unit)

    def _publish(self, unit: int, records: list[dict[str, Any]]) -> bool:
        return publish(self.run.part_path(unit), b"".join(map(encode, records)))

    async def _drain(self) -> None:
        """Wait for what is in flight, for as long as the caller lets it."""
        while self._tasks:
            await self._unless_failed(asyncio.wait(tuple(self._tasks)))
        await self._unless_failed(asyncio.sleep(0))  # the last row's failure counts too

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None and self._failure is not None and not self._failure.done():
            self._failure.set_exception(failure)

    async def _unless_failed(self, waiting: Awaitable[object]) -> None:
        """Await ``waiting``, or raise as soon as the engine is found dead."""
        assert self._failure is not None  # noqa: S101 - work() made it
        task: asyncio.Future[Any] = asyncio.ensure_future(waiting)
        await asyncio.wait({task, self._failure}, return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            task.cancel()
            self._failure.result()
        task.result()


def _counts(unit: int, records: list[dict[str, Any]]) -> PartCounts:
    usages = [r["usage"] for r in records if r["status"] == "ok"]
    return PartCounts(
        unit=unit,
        ok=len(usages),
        error=len(records) - len(usages),
        prompt_tokens=sum(u["prompt_tokens"] for u in usages),
        completion_tokens=sum(u["completion_tokens"] for u in usages),
    )
