"""vLLM as an engine: its ``AsyncLLM`` in this process, which starts workers of its own.

A replica has a process on each of its nodes, which sees the replica's GPUs there. The first one is
the engine; the others only start workers (`launcher.engines.vllm_nodes`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.library import LAST_WORDS_S, LibraryEngine, cancelled
from launcher.engines.overheard import Overheard
from launcher.engines.sampler import GREEDY_BELOW
from launcher.engines.vllm_causes import death_of
from launcher.engines.vllm_nodes import FIRST_WORD_S, Lead, follow, may_follow
from launcher.engines.vllm_start import Started, check_owned, start
from launcher.errors import Problem, RowError

__all__ = ["VllmEngine", "follow"]

# vLLM asks its processes to end, and kills those that are left after this.
SHUTDOWN_S = 15


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


class VllmEngine(LibraryEngine[Started]):
    """Answers requests with vLLM on the GPUs of this node and those of the nodes that follow.

    Raises
    ------
    RunError
        From the constructor ``engine.options`` for options that the plan decides. From `start`
        what `launcher.engines.vllm_start.start` raises, and ``run.rendezvous`` when the other
        nodes' processes do not come.

    Notes
    -----
    ``completion_tokens`` counts the end-of-sequence token, which the text does not show.
    Without a tokenizer prompts are token ids, and answers have no text.
    """

    name = "vLLM"

    def __init__(self, setup: EngineSetup) -> None:
        check_owned(setup.options)
        super().__init__(setup)
        self._counted = _Counted()
        self._lead = Lead(setup) if setup.tasks > 1 else None

    def _begin(self, overheard: Overheard) -> Started:
        try:
            node = self._lead.gather() if self._lead else None
            return start(self._setup, overheard, self._counted.record, node)
        except BaseException as exc:
            if self._lead and may_follow(exc):
                self._closing.wait(FIRST_WORD_S)
            raise

    async def _opened(self, started: Started) -> Capabilities:
        # Asked for by the first request otherwise, which could not be aborted meanwhile.
        await started.llm.get_supported_tasks()
        return Capabilities(
            max_in_flight=started.max_num_seqs,
            chat_template=getattr(started.tokenizer, "chat_template", None) is not None,
            max_seq_len=started.max_seq_len,
            queues=True,
            kv_tokens=started.kv_tokens,
        )

    async def _give_up(self, started: Started, request_id: str) -> None:
        await started.llm.abort(request_id)

    def stats(self) -> Mapping[str, float]:
        return dict(vars(self._counted))

    async def close(self) -> None:
        if self._lead is None:
            return await super().close()
        self._lead.announce_end()
        try:
            await super().close()
        finally:
            self._lead.release()

    def _end(self, started: Started) -> None:
        started.llm.shutdown(timeout=SHUTDOWN_S)

    async def _answer(
        self, started: Started, request: Request, prompt: list[int], room: int
    ) -> Completion:
        sampling = request.sampling
        output = None
        try:
            params = started.params(
                max_tokens=room,
                # Below 0.01 vLLM would draw at 0.01 (vllm/sampling_params.py, _MAX_TEMP).
                temperature=sampling.temperature if sampling.temperature >= GREEDY_BELOW else 0.0,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
                stop=list(sampling.stop),
                logprobs=sampling.logprobs,
                detokenize=started.tokenizer is not None,
            )
            answer = started.llm.generate(started.tokens_input(prompt), params, request.id)
            async for output in answer:  # noqa: B007 - the last one is meant
                pass
        except started.refusals as exc:
            raise RowError("request_rejected", f"vLLM refuses the request: {exc}") from exc
        return self._completion(output, request, len(prompt))

    def _completion(self, output: Any, request: Request, prompt_tokens: int) -> Completion:
        if output is None:
            raise RuntimeError("vLLM gave no answer")
        answer = output.outputs[0]
        if answer.finish_reason == "abort":
            if request.id in self._aborted:
                raise cancelled()
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

    async def _cause(self, exc: Exception) -> Problem:
        await asyncio.sleep(FIRST_WORD_S if self._lead else LAST_WORDS_S)
        return death_of(self._overheard.lines() if self._overheard else (), exc)
