"""Rows to the engine and answers to parts, with no barrier between units.

Rows of the next unit enter while stragglers of the last one still run; a unit is published
the moment its last row is answered. Memory grows with what is in flight, not with the data.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from launcher.data.leases import Leases
from launcher.data.open_unit import OpenUnit
from launcher.data.records import error_line, ok_line
from launcher.data.tally import PartCounts
from launcher.data.wal import Record
from launcher.engines.base import Completion
from launcher.errors import Problem, RowError, RunError
from launcher.plan.types import RunIdentity
from launcher.rundir import RunDir
from launcher.runner.breaker import Breaker
from launcher.runner.claims import Claims
from launcher.runner.fitting import fitted
from launcher.runner.inflight import InFlight
from launcher.runner.keeper import EngineKeeper
from launcher.runner.preparing import Rows
from launcher.runner.progress import Latencies, Progress, Totals
from launcher.runner.quarantine import Quarantine
from launcher.runner.ready import Lengths, Order, Prepared, Ready, Waiting

__all__ = ["Dispatcher"]

T = TypeVar("T")

POLL_S, _MOST_POLL_S = 1.0, 5.0
# A kill loses what was finished in the last FLUSH_S, the death of a node that of SYNC_S.
FLUSH_S = 0.5
SYNC_S = 5.0
# How often the engine's own figures are looked at.
LOOK_S = 1.0
# Longer than any engine takes to kill its processes.
_CLOSE_S = 60.0
# Complete units that wait for a slow disk keep their rows in memory.
_MOST_PUBLISHING = 4
_READY_BYTES = 64 * 1024**2
# From so many on no row is as long as all that is left; benchmarks/makespan.py.
_VISITED_ROWS_A_SLOT = 24
# Asked once more, at the end of its unit: what an engine failed on may have been its neighbours.
_MOST_TRIES = 2
_TRIED_AGAIN = frozenset({"engine_error"})


@dataclass
class Dispatcher:
    """Answers every unit that this worker can claim.

    Attributes
    ----------
    published
        Called with the counts of each part that this worker published.
    replicas
        How many share the run, as far as the plan knows.
    phase
        ``starting`` until there is an engine, then ``running``, then perhaps ``leaving``.
    """

    run: RunDir
    identity: RunIdentity
    plan_number: str
    leases: Leases
    published: Callable[[PartCounts], None]
    breaker: Breaker
    order: Order = "auto"
    replicas: int = 1
    totals: Totals = field(default_factory=Totals)
    latencies: Latencies = field(default_factory=Latencies)
    phase: Literal["starting", "running", "leaving"] = "starting"
    _open: set[OpenUnit] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _answering: dict[Waiting, asyncio.Task[None]] = field(default_factory=dict)
    _publishing: set[asyncio.Task[None]] = field(default_factory=set)
    _quarantine: Quarantine = field(default_factory=Quarantine)
    _mending: asyncio.Task[None] | None = None
    _failure: asyncio.Future[None] | None = None
    _over: bool = False

    def __post_init__(self) -> None:
        self._claims = Claims(self.run, self.identity, self.leases)

    def leave(self) -> None:
        """Hand over no more rows; what is in flight may still end."""
        if self.phase == "running":
            self._room.set()
        if self._mending is not None and not self._answering:
            self._mending.cancel()  # nobody needs the engine that it starts
        self.phase = "leaving"

    def figures(self) -> Mapping[str, float]:
        """What is in flight, and what the engine says of itself; nothing before `work`."""
        if self._failure is None:
            return {}
        stats = self._keeper.engine.stats() if self._mending is None else {}
        own = {"in_flight": self._flight.rows, "engine_restarts": self._keeper.restarted}
        return {**stats, **own}

    @property
    def engine_version(self) -> str | None:
        """What the engine is a version of, once there is one; see `Capabilities`."""
        return None if self._failure is None else self._keeper.capabilities.version

    async def work(self, keeper: EngineKeeper, rows: Rows, first: OpenUnit) -> bool:
        """Answer units, beginning with the already claimed ``first``, until none is left.

        Parameters
        ----------
        keeper
            Of an engine that was started.

        Returns
        -------
        bool
            Whether every unit of the run is published; False when it left early.

        Raises
        ------
        RunError
            The engine died for good, or all rows fail. What is finished is kept.
        OSError
            A file of the run could not be written.
        """
        self._loop = loop = asyncio.get_running_loop()
        self._keeper, self._rows = keeper, rows
        self._flight = InFlight(keeper.capabilities)
        self._lengths = Lengths()
        self._ready = Ready(self.order, _READY_BYTES)
        self._room = asyncio.Event()
        self._unit_rows = 0
        self._claimed = 0
        self._clock = loop.time
        self._progress = Progress(self._clock())
        self._suspects: list[Waiting] = []
        self._rows_at_start = self.totals.rows
        self._failure = loop.create_future()
        self.phase = "leaving" if self._leaving else "running"
        watching = [asyncio.create_task(w) for w in (self._keep_finished(), self._look())]
        for task in watching:
            task.add_done_callback(self._ended)
        unit: OpenUnit | None = first
        try:
            while unit is not None and not self._leaving:
                await self._feed(unit)
                unit = await self._next()
                if unit is None:
                    await self._drain()
                    unit = await self._next()  # the end of one pass may open another
        finally:
            self._over = True  # those that are cancelled here give up their places to nobody
            for task in (*watching, *self._tasks, *self._answering.values()):
                task.cancel()
            if self._failure.done():
                self._failure.exception()  # looked at, whatever else ended the work
            self._let_go()
        return not self._claims.left or self._claims.is_done()

    def claim(self) -> OpenUnit | None:
        """As `Claims.next`."""
        return self._claims.next()

    async def _next(self) -> OpenUnit | None:
        """The next unit; waits while others still work on the last ones and might die."""
        wait_s = POLL_S
        while not self._leaving:
            unit = await self._unless_failed(asyncio.to_thread(self.claim))
            if unit is not None:
                return unit
            if self._claims.left <= self._claims.held:  # the rest is answered here
                return None
            await self._unless_failed(asyncio.sleep(wait_s))
            # Each look opens the lease of every unit that is left, on a disk that all share.
            wait_s = min(_MOST_POLL_S, wait_s * 1.5)
        return None

    @property
    def _leaving(self) -> bool:
        return self.phase == "leaving"

    async def _feed(self, unit: OpenUnit) -> None:
        """Let the rows of ``unit`` wait for the engine, no more of them than are worth it."""
        self._open.add(unit)
        self._claimed += 1
        while len(self._publishing) >= _MOST_PUBLISHING:
            first = asyncio.wait(self._publishing, return_when=asyncio.FIRST_COMPLETED)
            await self._unless_failed(first)
        wanted = await asyncio.to_thread(self._claims.wanted, unit)
        limit = self._keeper.capabilities.max_seq_len
        least = self._claims.least_expected(self._lengths)
        self._unit_rows = 0
        while batch := await self._unless_failed(self._rows.some(unit.unit)):
            self._unit_rows += len(batch)
            for prepared in batch:
                if wanted is None or prepared.head[:2] in wanted:
                    self._take_in(
                        fitted(prepared, limit, self.identity.prompt.too_long), unit, least
                    )
            self._pump()
            await self._room_for_more()
            if self._leaving:
                return
        if least:
            await self._unless_failed(asyncio.to_thread(self._claims.share, unit))
            unit.share()
        unit.all_read = True
        self._end_if_complete(unit)
        self._begin_visits()

    def _begin_visits(self) -> None:
        """Go for long rows first, once not much more is left than the longest of them may take."""
        rows = self._claims.untried * self._unit_rows
        slots = self.replicas * self._flight.bound
        if self.order == "auto" and slots < rows < _VISITED_ROWS_A_SLOT * slots:
            self._claims.begin_visits()

    def _take_in(self, prepared: Prepared, unit: OpenUnit, least: float) -> None:
        request, expected, tokens = prepared.request, 0.0, 0
        if request is not None:
            tokens = request.sampling.max_tokens
            expected = self._lengths.expect(prepared.size, tokens)
            self._lengths.see(prepared.size, tokens)
            tokens += prepared.size
        if expected < least:
            return
        key = prepared.head[:2]
        index = unit.add(key)
        if index is None:
            # An earlier owner's, and in this worker's part; those who live count their own.
            self.totals.rows += key not in unit.elsewhere
            return
        waiting = Waiting(prepared, unit, index, self._claimed, tokens, expected)
        if not self._ready and self._may(tokens):
            self._submit(waiting)
        else:
            self._ready.push(waiting)

    async def _room_for_more(self) -> None:
        while self._ready.full(self._worth_holding()) and not self._leaving:
            self._room.clear()
            await self._unless_failed(self._room.wait())

    def _worth_holding(self) -> int:
        """How many rows may wait here: so many that long ones can be told from short ones.

        Towards the end, what waits here keeps others idle.
        """
        bound = self._flight.bound
        others = self._claims.untried * max(1, self._unit_rows) // (2 * self.replicas)
        return max(1, bound // 8, 0 if self._claims.visited else min(bound, others))

    def _pump(self) -> None:
        """Give the engine what it can take."""
        if self._quarantine and not (self._halted or self._flight.rows):
            for waiting in self._quarantine.pop():
                self._submit(waiting)
        while self._ready and self._may(self._ready.peek().tokens):
            self._submit(self._ready.pop())
        self._room.set()

    def _may(self, tokens: int) -> bool:
        return not (self._halted or self._quarantine) and self._flight.may(tokens)

    @property
    def _halted(self) -> bool:
        return self._over or self._mending is not None or self.phase == "leaving"

    def _submit(self, waiting: Waiting) -> None:
        self._flight.take(waiting.tokens)
        self._answering[waiting] = self._loop.create_task(self._answer(waiting))

    async def _answer(self, waiting: Waiting) -> None:
        """Answer a row; it fails for itself, as a callback costs half as much as a task."""
        try:
            await self._ask(waiting)
        except Exception as exc:  # noqa: BLE001 - `work` raises it; `_pump` is to know before
            self._fail(exc)
        finally:
            del self._answering[waiting]
            self._flight.give(waiting.tokens)
            self._pump()

    async def _ask(self, waiting: Waiting) -> None:
        prepared = waiting.prepared
        try:
            if prepared.request is None:
                assert prepared.error is not None  # noqa: S101 - a row without a request has one
                self._take_error(waiting, prepared.error)
                return
            begun_s = self._clock()
            self._progress.given(prepared.request.sampling.max_tokens)
            completion = await self._keeper.engine.generate(prepared.request)
            self._take_answer(waiting, completion, self._clock() - begun_s)
        except RowError as exc:
            self._take_error(waiting, exc)
        except RunError as exc:
            self._mend(exc, waiting)
        except asyncio.CancelledError:
            if self._mending is None:
                raise
            self._suspects.append(waiting)

    def _take_answer(self, waiting: Waiting, completion: Completion, took_s: float) -> None:
        prepared = waiting.prepared
        assert prepared.request is not None  # noqa: S101 - it was answered
        self._judge(None, asked=True)
        self.latencies.note(took_s)
        tokens = completion.prompt_tokens, completion.completion_tokens
        self._lengths.note(prepared.size, prepared.request.sampling.max_tokens, tokens[1])
        self.totals.prompt_tokens += tokens[0]
        self.totals.completion_tokens += tokens[1]
        line = ok_line(prepared.head, completion, plan=self.plan_number)
        self._finish(waiting, Record(prepared.head[:2], True, *tokens, line))

    def _take_error(self, waiting: Waiting, error: RowError) -> None:
        waiting.tries += 1
        if error.code in _TRIED_AGAIN and waiting.tries < _MOST_TRIES:
            self._ready.push(waiting)
            return
        self._judge(error, asked=waiting.prepared.request is not None)
        head = waiting.prepared.head
        line = error_line(head, error, plan=self.plan_number)
        self._finish(waiting, Record(head[:2], False, 0, 0, line))

    def _finish(self, waiting: Waiting, record: Record) -> None:
        self.totals.rows += 1
        waiting.unit.finish(waiting.index, record)
        self._end_if_complete(waiting.unit)

    # --- when the engine dies -----------------------------------------------------------------

    def _mend(self, died: RunError, *suspects: Waiting) -> None:
        """Have another engine started, unless one is; then try ``suspects`` apart."""
        if self._over:
            return
        if not self._keeper.mends(died):
            self._fail(died)
            return
        self._suspects += suspects
        if self._mending is None:
            self._mending = self._start(self._mended(died))

    async def _mended(self, died: RunError) -> None:
        progress = self.totals.rows > self._rows_at_start
        try:
            await asyncio.wait_for(self._keeper.close(), _CLOSE_S)
        except asyncio.TimeoutError:  # it holds what another one needs
            self._fail(died)
            return
        for task in self._answering.values():  # those that wait for it still
            task.cancel()
        if self._answering:
            await asyncio.wait(tuple(self._answering.values()))
        if self._leaving:
            return
        await self._keeper.replace(died, progress=progress)
        self._rows_at_start = self.totals.rows
        for waiting in self._quarantine.add(self._suspects):
            message = (
                f"the engine died twice while it had this row alone: {died.problems[0].message}"
            )
            self._take_error(waiting, RowError("engine_crash", message))
        self._suspects = []
        self._flight = InFlight(self._keeper.capabilities)
        self._progress = Progress(self._clock())
        self._mending = None
        self._pump()

    async def _look(self) -> None:
        """Look at the engine every so often: how much it can take, and whether it gets on."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._mending is not None:
                continue
            stats = self._keeper.engine.stats()
            if self._ready:
                self._flight.adapt(stats, self._lengths.mean_tokens)
                self._pump()
            if not self._flight.rows:
                self._progress.idle(self._clock())
                continue
            gap_s = self._progress.stalled_s(self.totals.rows, stats, self._clock())
            if gap_s is not None:
                message = f"the engine has shown no sign of life for {gap_s:.0f} s"
                self._mend(RunError(Problem("engine.died", message)))

    # --- rows that are finished ---------------------------------------------------------------

    def _judge(self, error: RowError | None, *, asked: bool) -> None:
        if not self.leases.overlay:  # rows that were errors once may well all be so again
            try:
                self.breaker.note(error, asked=asked)
            except RunError as exc:
                self._fail(exc)

    def _end_if_complete(self, unit: OpenUnit) -> None:
        if unit.complete:
            task = self._start(self._close(unit) if unit.shared else self._publish(unit))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)
        elif unit.only_awaits:  # from now on: its own last row has just ended
            self._start(self._wait_for_others(unit))

    async def _publish(self, unit: OpenUnit) -> None:
        counts = await asyncio.to_thread(unit.publish)
        self._claims.held.discard(unit.unit)
        self._open.discard(unit)
        unit.close()
        if counts is not None:
            self.published(counts)

    async def _close(self, unit: OpenUnit) -> None:
        """Let whoever makes the part know the rows that were begun here."""
        await asyncio.to_thread(unit.flush, sync=True)
        self._open.discard(unit)
        unit.close()

    async def _wait_for_others(self, unit: OpenUnit) -> None:
        """Take in what others finish of ``unit``; when they die, let it be claimed anew."""
        wait_s = POLL_S
        while unit.awaited:
            await asyncio.sleep(wait_s)
            if self._leaving:
                return
            dead = await asyncio.to_thread(lambda: any(map(self.leases.dead, unit.awaited)))
            unit.adopt(await asyncio.to_thread(unit.finished_elsewhere))
            if dead and unit.awaited:
                await self._close(unit)
                unit.begun.clear()
                await asyncio.to_thread(self._claims.share, unit)
                return
            wait_s = min(_MOST_POLL_S, wait_s * 1.5)
        self._end_if_complete(unit)

    async def _keep_finished(self) -> None:
        """Write what is finished to the logs, every so often."""
        synced_s = self._clock()
        while True:
            await asyncio.sleep(FLUSH_S)
            sync = self._clock() - synced_s >= SYNC_S
            synced_s = self._clock() if sync else synced_s
            await asyncio.to_thread(_flush, list(self._open), sync=sync)

    def _let_go(self) -> None:
        """Keep what is finished of the units that stay open."""
        for unit in self._open:
            with contextlib.suppress(OSError):  # why the work ended is worth more
                unit.flush(sync=True)
            unit.close()

    async def _drain(self) -> None:
        """Wait for what is in flight, for as long as the caller lets it."""
        while tasks := (*self._tasks, *self._answering.values()):
            await self._unless_failed(asyncio.wait(tasks))
        await self._unless_failed(asyncio.sleep(0))  # the last row's failure counts too

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            self._fail(failure)

    def _fail(self, failure: BaseException) -> None:
        self._over = True
        if self._failure is not None and not self._failure.done():
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
