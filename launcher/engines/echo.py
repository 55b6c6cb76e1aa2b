"""The engine without a model: answers with the prompt's tail, slowly or badly where asked to.

It stands in for a real one in tests, demonstrations and benchmarks of everything around it. Its
tokens are words, cut at white space.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.logprobs import entry, listed, spelled
from launcher.engines.registry import decode_options
from launcher.errors import Problem, RowError, RunError

__all__ = ["EchoEngine", "EchoOptions", "follow"]

_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoOptions:
    """``engine_options`` of the echo engine.

    Attributes
    ----------
    latency_ms
        What every answer takes at least.
    tokens_per_s
        What the whole engine gives, over all its requests; None is no limit.
    fail_rate
        Share of rows that fail with ``engine_error``. A row's seed decides, so that the same
        rows fail however often they are tried.
    die_after
        Answers after which the engine dies.
    max_in_flight
        Requests it says are worth handing over at once.
    """

    latency_ms: float = 0.0
    tokens_per_s: float | None = None
    fail_rate: float = 0.0
    die_after: int | None = None
    max_in_flight: int = 256

    def __post_init__(self) -> None:
        if self.latency_ms < 0:
            raise ValueError(f"option latency_ms is {self.latency_ms}, below 0")
        if self.tokens_per_s is not None and self.tokens_per_s <= 0:
            raise ValueError(f"option tokens_per_s is {self.tokens_per_s}, not above 0")
        if not 0 <= self.fail_rate <= 1:
            raise ValueError(f"option fail_rate is {self.fail_rate}, not between 0 and 1")
        if self.die_after is not None and self.die_after < 0:
            raise ValueError(f"option die_after is {self.die_after}, below 0")
        if self.max_in_flight < 1:
            raise ValueError(f"option max_in_flight is {self.max_in_flight}, below 1")


class EchoEngine:
    """Answers a request with the last ``max_tokens`` words of its prompt.

    For ``messages`` that is the content of the last one. It is sure of each word: log probability
    0, and no other word is likely. Without latency and rate an answer
    comes without ever giving way to the event loop.

    Raises
    ------
    RunError
        ``engine.options`` for options that are not those of `EchoOptions`.
    """

    def __init__(self, setup: EngineSetup) -> None:
        self._options = decode_options(EchoOptions, setup.options, engine="echo")
        self._waiting: dict[asyncio.Future[None], str] = {}
        self._gone: str | None = "the engine was not started"
        self._free_at_s = 0.0
        self._answers = 0

    async def start(self) -> Capabilities:
        self._gone = None
        return Capabilities(max_in_flight=self._options.max_in_flight, chat_template=True)

    async def generate(self, request: Request) -> Completion:
        self._check_alive()
        prompt = _prompt(request)
        words = prompt.split()
        tail = words[max(0, len(words) - request.sampling.max_tokens) :]
        await self._take_time(request.id, tokens=len(tail))
        if _draw(request.sampling.seed) < self._options.fail_rate:
            raise RowError("engine_error", f"one of the {self._options.fail_rate:.0%} that fail")
        self._count()
        return Completion(
            text=" ".join(tail),
            finish_reason="stop" if len(tail) == len(words) else "length",
            prompt_tokens=len(words),
            completion_tokens=len(tail),
            logprobs=_logprobs(tail, request.sampling.logprobs),
        )

    async def abort(self, request_id: str) -> None:
        for gate, waiting in self._waiting.items():
            if waiting == request_id and not gate.done():
                gate.set_exception(RowError("cancelled", "given up while it ran"))

    def stats(self) -> Mapping[str, float]:
        return {"queued": 0, "running": len(self._waiting)}

    async def close(self) -> None:
        self._stop("the engine was closed")

    def _check_alive(self) -> None:
        if self._gone is not None:
            raise RunError(Problem("engine.died", self._gone))

    def _count(self) -> None:
        if self._answers == self._options.die_after:
            self._stop(f"the echo engine died as told, after {self._answers} answers")
            self._check_alive()
        self._answers += 1

    async def _take_time(self, request_id: str, *, tokens: int) -> None:
        options = self._options
        if not options.latency_ms and options.tokens_per_s is None:
            return
        loop = asyncio.get_running_loop()
        until_s = loop.time() + options.latency_ms / 1000
        if options.tokens_per_s is not None:
            self._free_at_s = max(self._free_at_s, loop.time()) + tokens / options.tokens_per_s
            until_s = max(until_s, self._free_at_s)
        gate: asyncio.Future[None] = loop.create_future()
        timer = loop.call_at(until_s, _open, gate)
        self._waiting[gate] = request_id
        try:
            await gate
        finally:
            timer.cancel()
            del self._waiting[gate]

    def _stop(self, reason: str) -> None:
        self._gone = self._gone or reason
        for gate in self._waiting:
            if not gate.done():
                gate.set_exception(RunError(Problem("engine.died", self._gone)))


def _open(gate: asyncio.Future[None]) -> None:
    if not gate.done():  # an abort may have come in the same turn of the loop
        gate.set_result(None)


def _prompt(request: Request) -> str:
    if request.text is not None:
        return request.text
    if request.tokens is not None:
        return " ".join(map(str, request.tokens))
    content = request.messages[-1].get("content") if request.messages else None
    if not isinstance(content, str):
        raise RowError("template_error", f"the last message's content is {content!r}, not text")
    return content


def _logprobs(words: Sequence[str], count: int | None) -> str | None:
    if count is None:
        return None
    spell = lambda at: spelled(f" {words[at]}" if at else words[at])  # noqa: E731 - said once
    return listed(entry(spell, at, 0.0, [(at, 0.0)][:count]) for at in range(len(words)))


def _draw(seed: int) -> float:
    """A number in [0, 1) that only ``seed`` decides, on any machine and Python."""
    digest = hashlib.sha256(f"echo:{seed}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def follow(setup: EngineSetup) -> None:
    """Be a rank after the first: there is nothing to do but to stay until that one has closed."""
    while setup.meeting is not None and not setup.meeting.exists():
        time.sleep(_POLL_S)
