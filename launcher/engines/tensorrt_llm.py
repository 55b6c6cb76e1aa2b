"""TensorRT-LLM as an engine: its ``LLM`` in this process, over ranks that the step has started.

A replica of one rank computes in this process. One of several has its ranks under MPI
(`launcher.runner.leader`), and this process, which is none of them, talks to the first.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.logprobs import Speller, by_id, given, speller
from launcher.engines.overheard import Overheard
from launcher.engines.prompting import encode
from launcher.engines.sampler import GREEDY_BELOW
from launcher.engines.tensorrt_llm_causes import deepest
from launcher.engines.tensorrt_llm_marks import fails_all
from launcher.engines.tensorrt_llm_start import Started, start
from launcher.engines.wording import died, said
from launcher.errors import Problem, RowError, RunError
from launcher.plan.types import Sampling
from launcher.process import adopt_orphans, descendants, kill

__all__ = ["TensorRtLlmEngine"]

# What told the step to leave has told the ranks too. Last words arrive by then as well.
LAST_WORDS_S = 1.0
CLOSE_S = 20.0
# A shutdown that has not ended by then would be called once more when Python exits, and hold it.
HELD_UP_S = 30.0
# A look at the statistics waits so long for the next ones.
STATISTICS_S = 2.0
_BETWEEN_S = 0.5
# llm.py, _check_arguments; executor/base_worker.py, _deduce_max_tokens
_TOO_LONG = re.compile(
    r"should not exceed max_num_tokens|`default_max_tokens` \(-?\d+\) must be greater than 0"
)
# What is said of one request may be said of all: by then the wrapper of the rank that failed has
# ended this process, or its line is here.
WHOSE_S = 3.0


@dataclass
class _Counted:
    """What iterations have said, and the tokens of finished answers.

    Keys are those of ``IterationStats`` (cpp/tensorrt_llm/executor/jsonSerialization.cpp); each
    version has its own selection of them.
    """

    told: bool = False
    running: float | None = None
    queued: float | None = None
    kv_cache_usage: float | None = None
    iterations: float = 0
    generated_tokens: int = 0

    def record(self, entry: Any) -> None:
        if isinstance(entry, (str, bytes)):
            entry = json.loads(entry)
        if not isinstance(entry, Mapping):
            return
        self.told = True
        self.iterations = max(self.iterations + 1, _number(entry.get("iter")) or 0)
        batch = entry.get("inflightBatchingStats") or {}
        active, waiting = (
            _number(entry.get(f"num{kind}Requests")) for kind in ("Active", "Queued")
        )
        self.running = scheduled = _first(_number(batch.get("numScheduledRequests")), active)
        if waiting is not None:
            # Active ones that are in no step wait for room in the KV cache.
            self.queued = waiting + max(0.0, (active or 0.0) - (scheduled or 0.0))
        cache = entry.get("kvCacheStats") or {}
        most, used = _number(cache.get("maxNumBlocks")), _number(cache.get("usedNumBlocks"))
        if most and used is not None:
            self.kv_cache_usage = used / most

    def figures(self) -> dict[str, float]:
        """What is known: nothing that would stand still while a long answer is made."""
        if not self.told:
            return {}
        found = {name: value for name, value in vars(self).items() if name != "told"}
        return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


class TensorRtLlmEngine:
    """Answers requests with TensorRT-LLM's PyTorch backend.

    Raises
    ------
    RunError
        From `start` what `launcher.engines.tensorrt_llm_start.start` raises. From `generate`
        ``engine.died`` once the engine has, the same for all requests in flight.
    RowError
        From `generate`: ``template_error``, ``empty_prompt``, ``prompt_too_long``,
        ``request_rejected`` (TensorRT-LLM does not take it), ``cancelled``, and ``engine_error``
        when the tokenizer or TensorRT-LLM fails on this row alone.

    Notes
    -----
    Prompts are always token ids. A seed goes with each request; TorchSampler, the sampler of 1.1
    and later, has one generator for all of them and does not look at it
    (tensorrt_llm/_torch/pyexecutor/sampler.py, ``get_generator``), TRTLLMSampler does.
    """

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._counted = _Counted()
        self._overheard: Overheard | None = None
        self._started: Started | None = None
        self._spell: Speller = by_id
        self._gone: Problem | None = _died("the engine was not started")
        self._dying: asyncio.Task[None] | None = None
        self._starting: threading.Thread | None = None
        self._closing = threading.Event()
        self._statistics: asyncio.Task[None] | None = None
        self._others: frozenset[tuple[int, int]] = frozenset()  # processes that are not its own
        self._in_flight: dict[str, Any] = {}  # the RequestOutput, once there is one
        self._aborted: set[str] = set()
        # One thread: a tokenizer is used by one beside the event loop.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tensorrt-llm-tokenizer")

    async def start(self) -> Capabilities:
        self._others = descendants()
        adopt_orphans()
        self._overheard = Overheard()
        begun: Future[Started] = Future()
        # A daemon, so that a start which never ends holds nobody up.
        self._starting = threading.Thread(
            target=self._start,
            args=(self._overheard, begun),
            name="tensorrt-llm-start",
            daemon=True,
        )
        self._starting.start()
        self._started = found = await asyncio.wrap_future(begun)
        self._spell = by_id if found.tokenizer is None else speller(found.tokenizer)
        self._gone = None
        return Capabilities(
            max_in_flight=found.max_batch_size,
            chat_template=getattr(found.tokenizer, "chat_template", None) is not None,
            max_seq_len=found.max_seq_len,
            queues=True,
            kv_tokens=found.kv_tokens,
            version=found.version,
            # After an error of its GPU a process can use it no more, and ranks end with the step.
            replaceable=False,
        )

    def _start(self, overheard: Overheard, begun: Future[Started]) -> None:
        try:
            found = start(self._setup, overheard)
        except BaseException as exc:  # noqa: BLE001 - handed to `start`, which raises it
            with suppress(InvalidStateError):  # nobody waits any more
                begun.set_exception(exc)
            return
        if self._closing.is_set():
            found.llm.shutdown()
        with suppress(InvalidStateError):  # as above
            begun.set_result(found)

    async def generate(self, request: Request) -> Completion:
        engine = self._alive()
        self._in_flight[request.id] = None
        try:
            prompt = await self._prompt(engine, request)
            if request.id in self._aborted:
                raise _cancelled()
            output = self._submit(engine, request, prompt)
            return self._completion(await self._answer(engine, output), request, prompt)
        except (asyncio.CancelledError, RowError):
            raise
        except Exception as exc:
            raise await self._death(exc) from exc
        finally:
            self._in_flight.pop(request.id, None)
            self._aborted.discard(request.id)

    async def abort(self, request_id: str) -> None:
        if request_id not in self._in_flight or self._gone is not None:
            return
        self._aborted.add(request_id)
        if (output := self._in_flight[request_id]) is not None:
            output.abort()

    def stats(self) -> Mapping[str, float]:
        return self._counted.figures()

    async def close(self) -> None:
        self._gone = _died("the engine was closed")
        self._closing.set()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        if self._statistics is not None:
            self._statistics.cancel()
        if self._starting is None or self._overheard is None:
            return
        own = descendants()
        if self._started is not None:
            await self._shut_down(self._started.llm)
        kill((own | descendants()) - self._others)
        self._overheard.stop()

    async def _shut_down(self, llm: Any) -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                llm.shutdown()
            except Exception as exc:  # noqa: BLE001 - it is to end, in whatever state it is
                _say(f"TensorRT-LLM did not end well: {said(exc)}")
            finally:
                with suppress(RuntimeError):  # the loop has not waited
                    loop.call_soon_threadsafe(done.set)

        threading.Thread(target=work, name="tensorrt-llm-shutdown", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), CLOSE_S)
        except asyncio.TimeoutError:
            _say(f"TensorRT-LLM has not ended within {CLOSE_S:.0f} s")
            _end_within(HELD_UP_S)

    def _alive(self) -> Started:
        if self._gone is not None:
            raise RunError(self._gone)
        assert self._started is not None  # noqa: S101 - set before `_gone` is cleared
        return self._started

    async def _prompt(self, engine: Started, request: Request) -> list[int]:
        """Token ids of the prompt, such as TensorRT-LLM will not refuse, and none that ends it."""
        if request.tokens is not None:
            ids = list(request.tokens)
        elif engine.tokenizer is None:
            message = "the engine has no tokenizer, so prompts must be lists of token ids"
            raise RowError("request_rejected", message)
        else:
            loop = asyncio.get_running_loop()
            ids = await loop.run_in_executor(self._tokenizing, encode, engine.tokenizer, request)
        if not ids:
            raise RowError("empty_prompt", "the prompt has no tokens")
        if engine.max_seq_len is not None and len(ids) >= engine.max_seq_len:
            most = engine.max_seq_len - 1
            message = f"the prompt has {len(ids)} tokens, the model takes {most}"
            raise RowError("prompt_too_long", message)
        if engine.vocabulary is not None and max(ids) >= engine.vocabulary:
            # An index outside the embedding ends the engine, not the request.
            message = f"token id {max(ids)} is outside the vocabulary of {engine.vocabulary}"
            raise RowError("request_rejected", message)
        return ids

    def _submit(self, engine: Started, request: Request, prompt: list[int]) -> Any:
        """The ``RequestOutput``; on the event loop, where its answer is awaited."""
        sampling = request.sampling
        if sampling.stop and engine.tokenizer is None:
            raise RowError("request_rejected", "stop texts need a tokenizer")
        room = sampling.max_tokens
        if engine.max_seq_len is not None:
            room = min(room, engine.max_seq_len - len(prompt))
        try:
            params = engine.params(max_tokens=room, **_drawn(sampling))
            output = engine.llm.generate_async(prompt, params)
        except (engine.refused, ValueError, TypeError) as exc:
            raise _refusal(exc) from exc
        self._in_flight[request.id] = output
        if self._statistics is None:  # there are none before the first request
            self._statistics = asyncio.ensure_future(self._drain(engine))
        return output

    async def _answer(self, engine: Started, output: Any) -> Any:
        try:
            return await output
        except engine.refused as exc:
            if not _TOO_LONG.search(str(exc)):
                await self._check_alone(exc)
            raise _refusal(exc) from exc
        except asyncio.CancelledError:
            if self._gone is None:  # nobody waits for it any more
                with suppress(Exception):
                    output.abort()
            raise

    async def _check_alone(self, exc: Exception) -> None:
        """Raise unless ``exc`` is about one request.

        A pass that fails ends all that are active with the same kind of error, and the engine with
        them (_torch/pyexecutor/py_executor.py, ``_handle_errors``); only the log tells which it is.
        """
        await asyncio.sleep(WHOSE_S)
        if self._overheard and any(map(fails_all, self._overheard.lines())):
            raise RuntimeError(str(exc))

    def _completion(self, output: Any, request: Request, prompt: list[int]) -> Completion:
        answer = output.outputs[0]
        reason = answer.finish_reason
        if reason == "cancelled":
            if request.id in self._aborted:
                raise _cancelled()
            raise RuntimeError("TensorRT-LLM gave up the requests in flight")
        if reason not in ("stop", "length"):
            message = f"TensorRT-LLM ended this request with {reason!r}"
            raise RowError("engine_error", message)
        self._counted.generated_tokens += len(answer.token_ids)
        return Completion(
            text=answer.text,
            finish_reason=reason,
            prompt_tokens=len(prompt),
            completion_tokens=len(answer.token_ids),
            logprobs=self._logprobs(answer, request.sampling.logprobs),
        )

    def _logprobs(self, answer: Any, count: int | None) -> str | None:
        if count is None:
            return None
        return given(self._spell, answer.token_ids, answer.logprobs, count, library="TensorRT-LLM")

    async def _drain(self, engine: Started) -> None:
        """Read the statistics of iterations for as long as they come; without them rows tell."""
        try:
            while True:
                # In a thread: where the worker is asked over RPC, this call waits for its answer.
                found = await asyncio.to_thread(engine.llm.get_stats_async, STATISTICS_S)
                # After a pause it would tell nothing more until the next request (executor/
                # result.py, IterationResult).
                getattr(found, "mark_undone", lambda: None)()
                async for entry in found:
                    self._counted.record(entry)
                await asyncio.sleep(_BETWEEN_S)
        except Exception as exc:  # noqa: BLE001 - figures alone are no reason to end the work
            self._counted.told = False
            if self._gone is None:
                _say(f"TensorRT-LLM gives no more statistics: {said(exc)}")

    async def _death(self, exc: Exception) -> RunError:
        """The end of the engine, the same for whoever asks."""
        if self._dying is None:
            self._dying = asyncio.ensure_future(self._find_cause(exc))
        await asyncio.shield(self._dying)
        assert self._gone is not None  # noqa: S101 - the line above sets it
        return RunError(self._gone)

    async def _find_cause(self, exc: Exception) -> None:
        await asyncio.sleep(LAST_WORDS_S)
        found = deepest(self._overheard.lines()) if self._overheard else None
        self._gone = self._gone or died("tensorrt-llm", found, said(exc))


def _drawn(sampling: Sampling) -> dict[str, Any]:
    """How tokens are drawn, in TensorRT-LLM's words.

    What counts as greedy differs between versions (sampling_params.py); ``top_k`` 1 does in all.
    """
    common: dict[str, Any] = {"seed": sampling.seed % 2**63, "stop": list(sampling.stop) or None}
    if sampling.logprobs is not None:  # 0 is none at all for the versions before 1.2
        common["logprobs"] = max(1, sampling.logprobs)
    if sampling.temperature < GREEDY_BELOW:
        return {"top_k": 1, **common}
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        **common,
    }


def _refusal(exc: Exception) -> RowError:
    code = "prompt_too_long" if _TOO_LONG.search(str(exc)) else "request_rejected"
    return RowError(code, f"TensorRT-LLM refuses the request: {' '.join(str(exc).split())}")


def _end_within(seconds: float) -> None:
    """End this process if it still lives then: what it has to say has been said."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def _say(text: str) -> None:
    with suppress(OSError):  # a full disk
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _cancelled() -> RowError:
    return RowError("cancelled", "given up before it was answered")


def _died(message: str) -> Problem:
    return Problem("engine.died", message)
