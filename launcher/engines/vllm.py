"""vLLM as an engine: its ``AsyncLLM`` in this process, which starts workers of its own.

A replica has a process on each of its nodes, which sees the replica's GPUs there. The first one is
the engine; the others only start workers (`launcher.engines.vllm_nodes`).
"""

from __future__ import annotations

import asyncio
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
from launcher.engines.vllm_causes import death_of
from launcher.engines.vllm_nodes import FIRST_WORD_S, Lead, follow, may_follow
from launcher.engines.vllm_start import Started, check_owned, start
from launcher.errors import Problem, RowError, RunError
from launcher.process import adopt_orphans, descendants, kill

__all__ = ["VllmEngine", "follow"]

# What told the step to leave has told vLLM's processes too, and then that word stands. The
# processes' own last words arrive by then as well.
LAST_WORDS_S = 1.0
# vLLM asks its processes to end, and kills those that are left after this.
SHUTDOWN_S = 15
CLOSE_S = 20.0


@dataclass
class _Counted:
    """What the last iteration said."""

    running: int = 0
    queued: int = 0
    kv_cache_usage: float = 0.0
    iterations: int = 0
    generated_tokens: int = 0

    def record(self, scheduler: Any, iteration: Any) -> None:
        if scheduler is not None:
            self.running = scheduler.num_running_reqs
            self.queued = scheduler.num_waiting_reqs
            self.kv_cache_usage = scheduler.kv_cache_usage
        if iteration is not None:
            self.iterations += 1
            self.generated_tokens += iteration.num_generation_tokens


class VllmEngine:
    """Answers requests with vLLM on the GPUs of this node and those of the nodes that follow.

    Raises
    ------
    RunError
        From the constructor ``engine.options`` for options that the plan decides. From `start`
        what `launcher.engines.vllm_start.start` raises, and ``run.rendezvous`` when the other
        nodes' processes do not come. From `generate` ``engine.died`` once
        the engine has, the same for all requests in flight.
    RowError
        From `generate`: ``template_error``, ``empty_prompt``, ``prompt_too_long``,
        ``request_rejected`` (vLLM does not take it), ``cancelled``, and ``engine_error`` when
        the tokenizer or vLLM fails on this row alone.

    Notes
    -----
    ``completion_tokens`` counts the end-of-sequence token, which the text does not show.
    Without a tokenizer prompts are token ids, and answers have no text.
    """

    def __init__(self, setup: EngineSetup) -> None:
        check_owned(setup.options)
        self._setup = setup
        self._counted = _Counted()
        self._overheard: Overheard | None = None
        self._vllm: Started | None = None
        self._llm: Any = None  # the AsyncLLM of the above
        self._spell: Speller = by_id
        self._gone: Problem | None = _died("the engine was not started")
        self._dying: asyncio.Task[None] | None = None
        self._starting: threading.Thread | None = None
        self._closing = threading.Event()
        self._lead = Lead(setup) if setup.tasks > 1 else None
        self._others: frozenset[tuple[int, int]] = frozenset()  # processes that are not vLLM's
        self._in_flight: set[str] = set()
        self._aborted: set[str] = set()
        # One thread: vLLM's tokenizers may be used by one beside the event loop.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="vllm-tokenizer")

    async def start(self) -> Capabilities:
        self._others = descendants()
        adopt_orphans()  # of a core that dies the workers may live on
        self._overheard = Overheard()
        begun: Future[Started] = Future()
        # A daemon, so that a start which never ends holds nobody up.
        self._starting = threading.Thread(
            target=self._start, args=(self._overheard, begun), name="vllm-start", daemon=True
        )
        self._starting.start()
        self._vllm = vllm = await asyncio.wrap_future(begun)
        self._llm = vllm.llm
        self._spell = by_id if vllm.tokenizer is None else speller(vllm.tokenizer)
        self._gone = None
        try:  # asked for by the first request otherwise, which could not be aborted meanwhile
            await vllm.llm.get_supported_tasks()
        except Exception as exc:
            raise await self._death(exc) from exc
        return Capabilities(
            max_in_flight=vllm.max_num_seqs,
            chat_template=getattr(vllm.tokenizer, "chat_template", None) is not None,
            max_seq_len=vllm.max_model_len,
            queues=True,
            kv_tokens=vllm.kv_tokens,
        )

    def _start(self, overheard: Overheard, begun: Future[Started]) -> None:
        try:
            node = self._lead.gather() if self._lead else None
            vllm = start(self._setup, overheard, self._counted.record, node)
        except BaseException as exc:  # noqa: BLE001 - handed to `start`, which raises it
            if self._lead and may_follow(exc):
                self._closing.wait(FIRST_WORD_S)
            with suppress(InvalidStateError):  # nobody waits any more
                begun.set_exception(exc)
            return
        if self._closing.is_set():
            vllm.llm.shutdown(timeout=SHUTDOWN_S)
        with suppress(InvalidStateError):  # as above
            begun.set_result(vllm)

    async def generate(self, request: Request) -> Completion:
        vllm = self._alive()
        self._in_flight.add(request.id)
        try:
            prompt = await self._prompt(vllm, request)
            room = min(request.sampling.max_tokens, vllm.max_model_len - len(prompt))
            if request.id in self._aborted:
                raise _cancelled()
            output = await self._output(vllm, request, prompt, room)
            return self._completion(output, request, len(prompt))
        except (asyncio.CancelledError, RowError):
            raise
        except Exception as exc:
            raise await self._death(exc) from exc
        finally:
            self._in_flight.discard(request.id)
            self._aborted.discard(request.id)

    async def abort(self, request_id: str) -> None:
        if request_id in self._in_flight and self._vllm is not None and self._gone is None:
            self._aborted.add(request_id)
            await self._vllm.llm.abort(request_id)

    def stats(self) -> Mapping[str, float]:
        return dict(vars(self._counted))

    async def close(self) -> None:
        self._gone = _died("the engine was closed")
        self._closing.set()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        if self._lead is not None:
            self._lead.announce_end()
        try:
            await self._end_processes()
        finally:
            if self._lead is not None:
                self._lead.release()

    async def _end_processes(self) -> None:
        if self._starting is None or self._overheard is None:
            return
        workers = descendants()
        if self._vllm is not None:
            await self._shut_down(self._vllm)
        kill((workers | descendants()) - self._others)
        self._overheard.stop()

    async def _shut_down(self, vllm: Started) -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                vllm.llm.shutdown(timeout=SHUTDOWN_S)
            finally:
                with suppress(RuntimeError):  # the loop has not waited
                    loop.call_soon_threadsafe(done.set)

        threading.Thread(target=work, name="vllm-shutdown", daemon=True).start()
        with suppress(asyncio.TimeoutError):  # what is left is killed
            await asyncio.wait_for(done.wait(), CLOSE_S)

    def _alive(self) -> Started:
        if self._gone is not None:
            raise RunError(self._gone)
        assert self._vllm is not None  # noqa: S101 - set before `_gone` is cleared
        return self._vllm

    async def _prompt(self, vllm: Started, request: Request) -> list[int]:
        """Token ids of the prompt, such as vLLM will not refuse, and none that ends it."""
        if request.tokens is not None:
            ids = list(request.tokens)
        elif vllm.tokenizer is None:
            message = "the checkpoint has no tokenizer, so prompts must be lists of token ids"
            raise RowError("request_rejected", message)
        else:
            loop = asyncio.get_running_loop()
            ids = await loop.run_in_executor(self._tokenizing, encode, vllm.tokenizer, request)
        if not ids:
            raise RowError("empty_prompt", "the prompt has no tokens")
        if len(ids) > vllm.max_model_len - 1:
            most = vllm.max_model_len - 1
            message = f"the prompt has {len(ids)} tokens, the model takes {most}"
            raise RowError("prompt_too_long", message)
        if request.tokens is not None and max(ids) >= vllm.vocabulary:
            # Without a tokenizer vLLM does not look, and the GPU's assertion ends the engine.
            message = f"token id {max(ids)} is outside the vocabulary of {vllm.vocabulary}"
            raise RowError("request_rejected", message)
        return ids

    async def _output(self, vllm: Started, request: Request, prompt: list[int], room: int) -> Any:
        """The last ``RequestOutput`` of the request."""
        sampling = request.sampling
        if sampling.stop and vllm.tokenizer is None:
            raise RowError("request_rejected", "stop texts need a tokenizer")
        output = None
        try:
            params = vllm.params(
                max_tokens=room,
                # Below 0.01 vLLM would draw at 0.01 (vllm/sampling_params.py, _MAX_TEMP).
                temperature=sampling.temperature if sampling.temperature >= GREEDY_BELOW else 0.0,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
                stop=list(sampling.stop),
                logprobs=sampling.logprobs,
                detokenize=vllm.tokenizer is not None,
            )
            answer = vllm.llm.generate(vllm.tokens_input(prompt), params, request.id)
            async for output in answer:  # noqa: B007 - the last one is meant
                pass
        except vllm.refusals as exc:
            raise RowError("request_rejected", f"vLLM refuses the request: {exc}") from exc
        return output

    def _completion(self, output: Any, request: Request, prompt_tokens: int) -> Completion:
        if output is None:
            raise RuntimeError("vLLM gave no answer")
        answer = output.outputs[0]
        if answer.finish_reason == "abort":
            if request.id in self._aborted:
                raise _cancelled()
            # Its core has been told to end (vllm/v1/engine/core.py, _handle_shutdown): no word
            # about this row.
            raise RuntimeError("vLLM gave up the requests in flight")
        if answer.finish_reason == "error":
            raise RowError("engine_error", "vLLM failed on this request")
        return Completion(
            text=answer.text,
            finish_reason="length" if answer.finish_reason == "length" else "stop",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(answer.token_ids),
            logprobs=self._logprobs(answer, request.sampling.logprobs),
        )

    def _logprobs(self, answer: Any, count: int | None) -> str | None:
        if count is None:
            return None
        return given(self._spell, answer.token_ids, answer.logprobs, count, library="vLLM")

    async def _death(self, exc: Exception) -> RunError:
        """The end of the engine, the same for whoever asks."""
        if self._dying is None:
            self._dying = asyncio.ensure_future(self._find_cause(exc))
        await asyncio.shield(self._dying)
        assert self._gone is not None  # noqa: S101 - the line above sets it
        return RunError(self._gone)

    async def _find_cause(self, exc: Exception) -> None:
        await asyncio.sleep(FIRST_WORD_S if self._lead else LAST_WORDS_S)
        lines = self._overheard.lines() if self._overheard else ()
        self._gone = self._gone or death_of(lines, exc)


def _cancelled() -> RowError:
    return RowError("cancelled", "given up before it was answered")


def _died(message: str) -> Problem:
    return Problem("engine.died", message)
