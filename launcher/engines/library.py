"""What engines have in common that are a library in this process with workers of its own."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.logprobs import Speller, by_id, given, speller
from launcher.engines.overheard import Overheard
from launcher.engines.prompting import encode
from launcher.errors import Problem, RowError, RunError
from launcher.process import adopt_orphans, descendants, kill

__all__ = ["LAST_WORDS_S", "LibraryEngine", "cancelled"]

# What told the step to leave has told the workers too, and then that word stands. Their own last
# words arrive by then as well.
LAST_WORDS_S = 1.0
CLOSE_S = 20.0


class _Started(Protocol):
    """A started library. A limit that nobody tells is None."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def max_seq_len(self) -> int | None: ...
    @property
    def vocabulary(self) -> int | None: ...


_S = TypeVar("_S", bound=_Started)


class LibraryEngine(ABC, Generic[_S]):
    """Starts the library in a thread, checks prompts, and tells a row's error from its death.

    Raises
    ------
    RunError
        From `start` what `_begin` raises. From `generate` ``engine.died`` once the engine has,
        the same for all requests in flight.
    RowError
        From `generate`: ``template_error``, ``empty_prompt``, ``prompt_too_long``,
        ``request_rejected`` (the library does not take it), ``cancelled``, and ``engine_error``
        when the tokenizer or the library fails on this row alone.
    """

    name: str  # what people call the library

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._overheard: Overheard | None = None
        self._started: _S | None = None
        self._spell: Speller = by_id
        self._gone: Problem | None = _died("the engine was not started")
        self._dying: asyncio.Task[None] | None = None
        self._starting: threading.Thread | None = None
        self._closing = threading.Event()
        self._others: frozenset[tuple[int, int]] = frozenset()  # processes that are not its own
        self._in_flight: dict[str, Any] = {}  # with what `_give_up` needs, once there is any
        self._aborted: set[str] = set()
        # One thread: a tokenizer may be used by one beside the event loop.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix=f"{self.name}-tokenizer")

    @abstractmethod
    def _begin(self, overheard: Overheard) -> _S:
        """Start it; in a thread."""

    @abstractmethod
    async def _opened(self, started: _S) -> Capabilities: ...

    @abstractmethod
    async def _answer(
        self, started: _S, request: Request, prompt: list[int], room: int
    ) -> Completion:
        """Answer ``prompt`` by at most ``room`` tokens. What is no `RowError` is its death."""

    @abstractmethod
    async def _give_up(self, started: _S, request_id: str) -> None: ...

    @abstractmethod
    def _end(self, started: _S) -> None:
        """Shut it down; in a thread."""

    def _held_up(self, after_s: float) -> None:
        """What is done when the above has not ended, beside killing its processes."""

    @abstractmethod
    async def _cause(self, exc: Exception) -> Problem:
        """Why it died, once its workers have had time to say so."""

    async def start(self) -> Capabilities:
        self._others = descendants()
        adopt_orphans()  # of a process that dies the workers may live on
        self._overheard = Overheard()
        begun: Future[_S] = Future()
        # A daemon, so that a start which never ends holds nobody up.
        self._starting = threading.Thread(
            target=self._start,
            args=(self._overheard, begun),
            name=f"{self.name}-start",
            daemon=True,
        )
        self._starting.start()
        self._started = found = await asyncio.wrap_future(begun)
        self._spell = by_id if found.tokenizer is None else speller(found.tokenizer)
        self._gone = None
        try:
            return await self._opened(found)
        except Exception as exc:
            raise await self._death(exc) from exc

    def _start(self, overheard: Overheard, begun: Future[_S]) -> None:
        try:
            found = self._begin(overheard)
        except BaseException as exc:  # noqa: BLE001 - handed to `start`, which raises it
            with suppress(InvalidStateError):  # nobody waits any more
                begun.set_exception(exc)
            return
        if self._closing.is_set():
            self._end(found)
        with suppress(InvalidStateError):  # as above
            begun.set_result(found)

    async def generate(self, request: Request) -> Completion:
        started = self._alive()
        self._in_flight[request.id] = None
        try:
            prompt = await self._prompt(started, request)
            if request.id in self._aborted:
                raise cancelled()
            return await self._answer(started, request, prompt, _room(started, request, prompt))
        except (asyncio.CancelledError, RowError):
            raise
        except Exception as exc:
            raise await self._death(exc) from exc
        finally:
            self._in_flight.pop(request.id, None)
            self._aborted.discard(request.id)

    async def abort(self, request_id: str) -> None:
        if request_id in self._in_flight and self._started is not None and self._gone is None:
            self._aborted.add(request_id)
            await self._give_up(self._started, request_id)

    async def close(self) -> None:
        self._gone = _died("the engine was closed")
        self._closing.set()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        if self._starting is None or self._overheard is None:
            return
        own = descendants()
        if self._started is not None:
            await self._shut_down(self._started)
        kill((own | descendants()) - self._others)
        self._overheard.stop()

    async def _shut_down(self, started: _S) -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                self._end(started)
            finally:
                with suppress(RuntimeError):  # the loop has not waited
                    loop.call_soon_threadsafe(done.set)

        threading.Thread(target=work, name=f"{self.name}-shutdown", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), CLOSE_S)
        except asyncio.TimeoutError:
            self._held_up(CLOSE_S)

    def _alive(self) -> _S:
        if self._gone is not None:
            raise RunError(self._gone)
        assert self._started is not None  # noqa: S101 - set before `_gone` is cleared
        return self._started

    async def _prompt(self, started: _S, request: Request) -> list[int]:
        """Token ids of the prompt, such as will not be refused, and none that ends the engine."""
        if started.tokenizer is None and request.sampling.stop:
            raise RowError("request_rejected", "stop texts need a tokenizer")
        if request.tokens is not None:
            ids = list(request.tokens)
        elif started.tokenizer is None:
            message = "the engine has no tokenizer, so prompts must be lists of token ids"
            raise RowError("request_rejected", message)
        else:
            loop = asyncio.get_running_loop()
            ids = await loop.run_in_executor(self._tokenizing, encode, started.tokenizer, request)
        if not ids:
            raise RowError("empty_prompt", "the prompt has no tokens")
        if started.max_seq_len is not None and len(ids) >= started.max_seq_len:
            most = started.max_seq_len - 1
            message = f"the prompt has {len(ids)} tokens, the model takes {most}"
            raise RowError("prompt_too_long", message)
        if request.tokens is not None and started.vocabulary is not None:
            _check_vocabulary(ids, started.vocabulary)
        return ids

    def _logprobs(self, answer: Any, count: int | None) -> str | None:
        if count is None:
            return None
        return given(self._spell, answer.token_ids, answer.logprobs, count, library=self.name)

    async def _death(self, exc: Exception) -> RunError:
        """The end of the engine, the same for whoever asks."""
        if self._dying is None:
            self._dying = asyncio.ensure_future(self._find_cause(exc))
        await asyncio.shield(self._dying)
        assert self._gone is not None  # noqa: S101 - the line above sets it
        return RunError(self._gone)

    async def _find_cause(self, exc: Exception) -> None:
        found = await self._cause(exc)
        self._gone = self._gone or found


def _room(started: _Started, request: Request, prompt: list[int]) -> int:
    wanted = request.sampling.max_tokens
    if started.max_seq_len is None:
        return wanted
    return min(wanted, started.max_seq_len - len(prompt))


def _check_vocabulary(ids: list[int], vocabulary: int) -> None:
    """Refuse what nobody looks at: an index outside of the embedding ends the GPU's work."""
    if max(ids) >= vocabulary or min(ids) < 0:
        wrong = max(ids) if max(ids) >= vocabulary else min(ids)
        message = f"token id {wrong} is outside the vocabulary of {vocabulary}"
        raise RowError("request_rejected", message)


def cancelled() -> RowError:
    """What `generate` raises for a request that was given up."""
    return RowError("cancelled", "given up before it was answered")


def _died(message: str) -> Problem:
    return Problem("engine.died", message)
