"""Rows to the engine and answers to parts, with no barrier between units.

Rows of the next unit enter while stragglers of the last one still run; a unit is published
the moment its last row is answered. Memory grows with what is in flight, not with the data.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeVar

from launcher.data.leases import Leases
from launcher.data.open_unit import OpenUnit
from launcher.data.passes import Pass, open_pass
from launcher.data.prompts import PromptBuilder, row_id
from launcher.data.records import encode, error_row, ok_row
from launcher.data.rows import Row, UnitReader
from launcher.data.tally import PartCounts
from launcher.data.wal import Record
from launcher.engines.base import Engine, Request
from launcher.errors import RowError
from launcher.plan.types import RunIdentity
from launcher.rundir import RunDir
from launcher.runner.breaker import Breaker

__all__ = ["Dispatcher", "Totals"]

T = TypeVar("T")

POLL_S = 1.0
# A kill loses what was finished in the last FLUSH_S, the death of a node that of SYNC_S.
FLUSH_S = 0.5
SYNC_S = 5.0
# Complete units that wait for a slow disk keep their rows in memory.
_MOST_PUBLISHING = 4
_READ_ROWS = 64
_READ_BYTES = 256 * 1024


@dataclass
class Totals:
    """What a dispatcher has done so far."""

    rows: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class _Answering:
    """What a row needs to be answered."""

    engine: Engine
    reader: UnitReader
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
    breaker: Breaker
    totals: Totals = field(default_factory=Totals)
    phase: Literal["starting", "running", "leaving"] = "starting"
    _pass: Pass | None = None
    _left: set[int] = field(default_factory=set)
    _untried: Iterator[int] = field(default_factory=lambda: iter(()))
    _open: dict[int, OpenUnit] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _publishing: set[asyncio.Task[None]] = field(default_factory=set)
    _failure: asyncio.Future[None] | None = None

    def leave(self) -> None:
        """Hand over no more rows; what is in flight may still end."""
        self.phase = "leaving"

    async def work(self, engine: Engine, window: int, first: OpenUnit) -> bool:
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
            The engine died, or all rows fail. What is finished is kept.
        OSError
            A file of the run could not be written.
        """
        self.phase = "leaving" if self._leaving else "running"
        self._failure = asyncio.get_running_loop().create_future()
        builder = PromptBuilder(self.identity.prompt, self.identity.sampling)
        reader = UnitReader(self.identity.inputs, self.identity.grid)
        answering = _Answering(engine, reader, builder, asyncio.Semaphore(window))
        keeping = asyncio.create_task(self._keep_finished())
        keeping.add_done_callback(self._ended)
        unit: OpenUnit | None = first
        try:
            while unit is not None and not self._leaving:
                await self._feed(unit, answering)
                unit = await self._next()
                if unit is None:
                    await self._drain()
                    unit = await self._next()  # the end of one pass may open another
        finally:
            for task in (keeping, *self._tasks):
                task.cancel()
            if self._failure.done():
                self._failure.exception()  # looked at, whatever else ended the work
            self._let_go()
            reader.close()
        return not self._left or self._is_done()

    def claim(self) -> OpenUnit | None:
        """A unit that is neither published nor another living worker's, or None.

        Units are tried in order, each once before any is tried again, so that finding work
        costs about one `link` a unit however many workers share a run.
        """
        for _ in range(2):
            for unit in self._untried:
                # Before too: the listing may lag, and each claim of what is out leaves a lease.
                part = self.run.part_path(unit, self.leases.overlay)
                generation = None if part.exists() else self.leases.claim(unit)
                if generation and not part.exists():
                    return OpenUnit(self.run, unit, generation, self.leases.overlay)
            if self._is_done():
                return None
        return None

    def _is_done(self) -> bool:
        """Look at what is published; whether that is all."""
        found = open_pass(self.run, self.identity)
        if found is None:
            self._pass, self._left = None, set()
            return True
        self._pass, self._left = found
        self.leases.overlay = self._pass.overlay
        left = self._left - self._open.keys()
        self._untried = (unit for unit in self._pass.units if unit in left)
        return False

    async def _next(self) -> OpenUnit | None:
        """The next unit; waits while others still work on the last ones and might die."""
        while not self._leaving:
            unit = await self._unless_failed(asyncio.to_thread(self.claim))
            if unit is not None:
                return unit
            if self._left <= self._open.keys():  # all that is not published is answered here
                return None
            await self._unless_failed(asyncio.sleep(POLL_S))
        return None

    @property
    def _leaving(self) -> bool:
        return self.phase == "leaving"

    async def _feed(self, unit: OpenUnit, answering: _Answering) -> None:
        """Hand the rows of ``unit`` to the engine, as fast as it takes them."""
        self._open[unit.unit] = unit
        while len(self._publishing) >= _MOST_PUBLISHING:
            first = asyncio.wait(self._publishing, return_when=asyncio.FIRST_COMPLETED)
            await self._unless_failed(first)
        assert self._pass is not None  # noqa: S101 - the unit was claimed in it
        wanted = await asyncio.to_thread(self._pass.wanted, unit.unit)
        rows = answering.reader.read(unit.unit)
        while batch := await self._unless_failed(asyncio.to_thread(_some, rows)):
            for row in batch:
                key = (row.file, row.offset)
                if wanted is not None and key not in wanted:
                    continue
                index = unit.add(key)
                if index is None:
                    self.totals.rows += 1  # an earlier owner's, and in this worker's part
                else:
                    await self._slot(answering.slots)
                    if self._leaving:
                        return
                    self._start(self._answer(unit, index, row, answering))
        unit.all_read = True
        self._publish_if_complete(unit)

    async def _slot(self, slots: asyncio.Semaphore) -> None:
        if slots.locked():
            await self._unless_failed(slots.acquire())
        else:
            await slots.acquire()

    async def _answer(self, unit: OpenUnit, index: int, row: Row, answering: _Answering) -> None:
        self.totals.in_flight += 1
        try:
            record = await self._record(row, answering)
        finally:
            self.totals.in_flight -= 1
            answering.slots.release()
        self.totals.rows += 1
        unit.finish(index, record)
        self._publish_if_complete(unit)

    async def _record(self, row: Row, answering: _Answering) -> Record:
        prompt_id = row_id(row)
        plan, keep = self.plan_number, self.identity.keep
        asked = False
        try:
            prompt = answering.builder.build(row)
            request = Request(
                id=f"{row.file}:{row.offset}",
                sampling=prompt.sampling,
                text=prompt.text,
                messages=prompt.messages,
                tokens=prompt.tokens,
            )
            asked = True
            completion = await answering.engine.generate(request)
        except RowError as exc:
            self._judge(exc, asked=asked)
            line = encode(error_row(row, prompt_id, exc, plan=plan, keep=keep))
            return Record((row.file, row.offset), False, 0, 0, line)
        self._judge(None, asked=True)
        tokens = completion.prompt_tokens, completion.completion_tokens
        self.totals.prompt_tokens += tokens[0]
        self.totals.completion_tokens += tokens[1]
        line = encode(ok_row(row, prompt_id, completion, plan=plan, keep=keep))
        return Record((row.file, row.offset), True, *tokens, line)

    def _judge(self, error: RowError | None, *, asked: bool) -> None:
        if not self.leases.overlay:  # rows that were errors once may well all be so again
            self.breaker.note(error, asked=asked)

    def _publish_if_complete(self, unit: OpenUnit) -> None:
        if unit.complete:
            task = self._start(self._publish(unit))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    async def _publish(self, unit: OpenUnit) -> None:
        counts = await asyncio.to_thread(unit.publish)
        self._open.pop(unit.unit).close()
        if counts is not None:
            self.published(counts)

    async def _keep_finished(self) -> None:
        """Write what is finished to the logs, every so often."""
        clock = asyncio.get_running_loop().time
        synced_s = clock()
        while True:
            await asyncio.sleep(FLUSH_S)
            sync = clock() - synced_s >= SYNC_S
            synced_s = clock() if sync else synced_s
            await asyncio.to_thread(_flush, list(self._open.values()), sync=sync)

    def _let_go(self) -> None:
        """Keep what is finished of the units that stay open."""
        for unit in self._open.values():
            with contextlib.suppress(OSError):  # why the work ended is worth more
                unit.flush(sync=True)
            unit.close()

    async def _drain(self) -> None:
        """Wait for what is in flight, for as long as the caller lets it."""
        while self._tasks:
            await self._unless_failed(asyncio.wait(tuple(self._tasks)))
        await self._unless_failed(asyncio.sleep(0))  # the last row's failure counts too

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None and self._failure is not None and not self._failure.done():
            self._failure.set_exception(failure)

    async def _unless_failed(self, waiting: Awaitable[T]) -> T:
        """Await ``waiting``, or raise as soon as the engine is found dead."""
        assert self._failure is not None  # noqa: S101 - work() made it
        task = asyncio.ensure_future(waiting)
        both: set[asyncio.Future[Any]] = {task, self._failure}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            task.cancel()
            self._failure.result()
        return task.result()


def _flush(units: Iterable[OpenUnit], *, sync: bool) -> None:
    for unit in units:
        unit.flush(sync=sync)


def _some(rows: Iterator[Row]) -> list[Row]:
    """The next rows: few enough that others get their turn in between."""
    found: list[Row] = []
    for row in islice(rows, _READ_ROWS):
        found.append(row)
        if row.offset - found[0].offset > _READ_BYTES:
            break
    return found
