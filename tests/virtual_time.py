"""An event loop whose clock jumps: what would take hours takes as long as its computing.

While anything can run, time stands still. When nothing is ready, work handed to threads
(`run_in_executor`, `asyncio.to_thread`) is done, one piece at a time; when there is none either,
the clock jumps to the next timer. So a run is the same whenever it is repeated.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any, TypeVar

__all__ = ["VirtualLoop", "run"]

T = TypeVar("T")
_Events = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.SelectSelector):
    """Asks ``idle`` what to do with time in which nothing is ready."""

    def __init__(self, idle: Callable[[float | None], _Events]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> _Events:
        if timeout is not None and timeout <= 0:
            return self.really(0)
        return self._idle(timeout)

    def really(self, timeout: float | None) -> _Events:
        return super().select(timeout)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at time 0.

    Parameters
    ----------
    seed
        Shuffles the order in which work that waits for a thread is done; None: as it came.

    Notes
    -----
    Work in a thread takes no time of this clock. It begins when nothing else is ready, so who
    turns round with ``sleep(0)`` until it is done turns round forever. While a file descriptor
    is awaited, time passes as on any other loop. Threads that the loop did not start may not wake
    it when nothing else would.

    Raises
    ------
    RuntimeError
        From whatever runs the loop: every task waits, and nothing is left that could wake one.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._now_s = 0.0
        self._random = None if seed is None else Random(seed)
        self._waiting: list[tuple[asyncio.Future[Any], Callable[[], Any]]] = []
        self._working = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="virtual-time")
        self._idle_selector = _Selector(self._idle)
        super().__init__(self._idle_selector)
        self._own_descriptors = len(self._idle_selector.get_map())

    def time(self) -> float:
        return self._now_s

    def run_in_executor(  # type: ignore[override] # typeshed's has a TypeVarTuple
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()
        self._waiting.append((done, lambda: func(*args)))
        return done

    def close(self) -> None:
        super().close()
        self._thread.shutdown()

    def _idle(self, timeout: float | None) -> _Events:
        if not self._working:
            self._begin_work()
        if self._working:
            return self._idle_selector.really(None)
        found: _Events = []
        if len(self._idle_selector.get_map()) > self._own_descriptors:
            found = self._idle_selector.really(timeout)
        elif timeout is None:
            raise RuntimeError("every task waits, and nothing is left that could wake one")
        if not found:
            self._now_s += timeout or 0.0
        return found

    def _begin_work(self) -> None:
        while self._waiting and not self._working:
            number = self._random.randrange(len(self._waiting)) if self._random else 0
            done, work = self._waiting.pop(number)
            if not done.cancelled():
                self._hand_over(done, work)

    def _hand_over(self, done: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        def end(ended: Future[Any]) -> None:
            self.call_soon_threadsafe(self._end_work, done, ended)

        self._working = True
        self._thread.submit(work).add_done_callback(end)

    def _end_work(self, done: asyncio.Future[Any], ended: Future[Any]) -> None:
        self._working = False
        if done.cancelled():
            return
        if (error := ended.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_result(ended.result())


def run(main: Coroutine[Any, Any, T], *, seed: int | None = None) -> T:
    """As `asyncio.run`, on a `VirtualLoop`."""
    loop = VirtualLoop(seed)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
