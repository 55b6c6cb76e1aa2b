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
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.library import LAST_WORDS_S, LibraryEngine, cancelled
from launcher.engines.overheard import Overheard
from launcher.engines.sampler import GREEDY_BELOW
from launcher.engines.tensorrt_llm_causes import deepest
from launcher.engines.tensorrt_llm_marks import fails_all
from launcher.engines.tensorrt_llm_start import Started, start
from launcher.engines.wording import died, said
from launcher.errors import Problem, RowError
from launcher.plan.types import Sampling

__all__ = ["TensorRtLlmEngine"]

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


class TensorRtLlmEngine(LibraryEngine[Started]):
    """Answers requests with TensorRT-LLM's PyTorch backend.

    Raises
    ------
    RunError
        From `start` what `launcher.engines.tensorrt_llm_start.start` raises.

    Notes
    -----
    Prompts are always token ids. A seed goes with each request; TorchSampler, the sampler of 1.1
    and later, has one generator for all of them and does not look at it
    (tensorrt_llm/_torch/pyexecutor/sampler.py, ``get_generator``), TRTLLMSampler does.
    """

    name = "TensorRT-LLM"

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._counted = _Counted()
        self._statistics: asyncio.Task[None] | None = None

    def _begin(self, overheard: Overheard) -> Started:
        return start(self._setup, overheard)

    async def _opened(self, started: Started) -> Capabilities:
        return Capabilities(
            max_in_flight=started.max_batch_size,
            chat_template=getattr(started.tokenizer, "chat_template", None) is not None,
            max_seq_len=started.max_seq_len,
            queues=True,
            kv_tokens=started.kv_tokens,
            version=started.version,
            # After an error of its GPU a process can use it no more, and ranks end with the step.
            replaceable=False,
        )

    async def _give_up(self, started: Started, request_id: str) -> None:  # noqa: ARG002
        if (output := self._in_flight[request_id]) is not None:
            output.abort()

    def stats(self) -> Mapping[str, float]:
        return self._counted.figures()

    async def close(self) -> None:
        if self._statistics is not None:
            self._statistics.cancel()
        await super().close()

    def _end(self, started: Started) -> None:
        try:
            started.llm.shutdown()
        except Exception as exc:  # noqa: BLE001 - it is to end, in whatever state it is
            _say(f"TensorRT-LLM did not end well: {said(exc)}")

    def _held_up(self, after_s: float) -> None:
        _say(f"TensorRT-LLM has not ended within {after_s:.0f} s")
        _end_within(HELD_UP_S)

    async def _answer(
        self, started: Started, request: Request, prompt: list[int], room: int
    ) -> Completion:
        try:
            params = started.params(max_tokens=room, **_drawn(request.sampling))
            # On the event loop, where its answer is awaited.
            output = started.llm.generate_async(prompt, params)
        except (started.refused, ValueError, TypeError) as exc:
            if _has_ended(started.llm):
                raise
            raise _refusal(exc) from exc
        self._in_flight[request.id] = output
        if self._statistics is None:  # there are none before the first request
            self._statistics = asyncio.ensure_future(self._drain(started))
        try:
            return self._completion(await output, request, prompt)
        except started.refused as exc:
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
                raise cancelled()
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

    async def _drain(self, started: Started) -> None:
        """Read the statistics of iterations for as long as they come; without them rows tell."""
        try:
            while True:
                # In a thread: where the worker is asked over RPC, this call waits for its answer.
                found = await asyncio.to_thread(started.llm.get_stats_async, STATISTICS_S)
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

    async def _cause(self, exc: Exception) -> Problem:
        await asyncio.sleep(LAST_WORDS_S)
        found = deepest(self._overheard.lines()) if self._overheard else None
        return died("tensorrt-llm", found, said(exc))


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


def _has_ended(llm: Any) -> bool:
    """Whether it has shut down, and what it raises is of no request.

    An error of one of its threads, of whatever type, is raised by the next request, after a
    shutdown (executor/executor.py, ``_handle_background_error``).
    """
    executor = getattr(llm, "_executor", None)
    return bool(getattr(executor, "is_shutdown", lambda: False)())


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
