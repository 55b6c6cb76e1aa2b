"""As ``tensorrt_llm/executor/result.py`` @005bc848: results that can be awaited, or waited for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import queue
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..sampling_params import SamplingParams
from .utils import RequestError


@dataclass(slots=True)
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None  # stop, length, timeout, cancelled
    stop_reason: int | str | None = None
    generation_logits: Any = None
    disaggregated_params: Any = None

    @property
    def length(self) -> int:
        return len(self.token_ids)


class Request(NamedTuple):
    id: int
    prompt_token_ids: list[int]
    params: SamplingParams


class Response(NamedTuple):
    """What a worker sends: outputs, or the text of what is wrong with this request."""

    id: int
    outputs: list[CompletionOutput]
    error: str | None = None


class GenerationResult:
    """``abort`` asks for the end; the result comes all the same, as `cancelled`."""

    def __init__(self, request: Request, executor: Any, decode: Callable[..., str] | None) -> None:
        self._request = request
        self._executor = executor
        self._decode = decode
        self._given: concurrent.futures.Future[Response] = concurrent.futures.Future()
        self._aborted = False
        self.outputs: list[CompletionOutput] = []
        self.prompt: str | None = None

    @property
    def request_id(self) -> int:
        return self._request.id

    @property
    def prompt_token_ids(self) -> list[int]:
        return self._request.prompt_token_ids

    @property
    def finished(self) -> bool:
        return bool(self.outputs)

    def abort(self) -> None:
        self._executor.abort_request(self.request_id)
        self._aborted = True

    def aborted(self) -> bool:
        return self._aborted

    def give(self, what: Response | Exception) -> None:
        if self._given.done():
            return
        if isinstance(what, Exception):
            self._given.set_exception(what)
        else:
            self._given.set_result(what)

    def result(self, timeout: float | None = None) -> GenerationResult:
        try:
            return self._finish(self._given.result(timeout))
        except concurrent.futures.TimeoutError:
            raise queue.Empty from None

    async def aresult(self) -> GenerationResult:
        # Shielded: who stops waiting has not aborted anything.
        return self._finish(await asyncio.shield(asyncio.wrap_future(self._given)))

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        return self.aresult().__await__()

    def _finish(self, response: Response) -> GenerationResult:
        if response.error is not None:
            raise RequestError(response.error)
        params = self._request.params
        for output in response.outputs:
            if params.detokenize and self._decode is not None:
                output.text = self._decode(
                    output.token_ids, skip_special_tokens=params.skip_special_tokens
                )
        self.outputs = response.outputs
        return self


class IterationResult:
    """Statistics since the last look, until none has come for the time that was given."""

    def __init__(self) -> None:
        self.queue: queue.Queue[str] = queue.Queue()
        self._timeout: float = 2

    def set_timeout(self, timeout: float) -> None:
        self._timeout = timeout

    def get_results(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(json.loads(self.queue.get(timeout=self._timeout)))
        return found

    def __aiter__(self) -> IterationResult:
        return self

    async def __anext__(self) -> dict[str, Any]:
        deadline = asyncio.get_running_loop().time() + self._timeout
        while self.queue.empty():
            if asyncio.get_running_loop().time() >= deadline:
                raise StopAsyncIteration
            await asyncio.sleep(0.02)
        found: dict[str, Any] = json.loads(self.queue.get_nowait())
        return found
