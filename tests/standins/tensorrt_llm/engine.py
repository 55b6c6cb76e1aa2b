"""The engine of one rank: the landmarks of its start, and answers that are its prompts.

An answer is the ids of the prompt (with a seed and a temperature: in another order) and the end's
id, cut by what cuts it. Some prompts are special, see `_SPECIAL`.
"""

from __future__ import annotations

import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .executor.result import CompletionOutput, Logprob, Request, Response
from .faults import STAGES, Faults
from .logger import logger, write
from .mapping import Mapping
from .tokenizer import BOS

if TYPE_CHECKING:
    from .executor.team import Team
    from .executor.worker import Start

BLOCK = 32
# By prompt, what becomes of it instead of an answer.
_SPECIAL = {b"fail": "error", b"wait": "never", b"late": "timeout"}


class Engine:
    def __init__(self, start: Start, mapping: Mapping, faults: Faults) -> None:
        self.faults = faults
        self._start, self._mapping = start, mapping
        room = start.how.get("kv_tokens", 1_000_000)
        self._room: int = min(room, start.kv_max_tokens or room)
        self._max_seq_len = start.max_seq_len
        self._waiting: deque[Request] = deque()
        self._active: dict[int, tuple[Request, float]] = {}
        self._answers = self._iteration = 0

    def stages(self) -> Iterator[str]:
        """Each stage of the start as it is logged, by the name that it fails under.

        As a log of 1.1.0rc3 on a DGX Spark has it: a small pool first, of which a warning may say
        that it cuts max_seq_len, and the real one when it has been estimated.
        """
        logs = dict(zip(STAGES, self._logs(), strict=True))
        for stage, log in logs.items():
            time.sleep(self._start.how.get("stage_s", 0))
            log()
            yield stage
        self._log_warm_up(self._max_seq_len)

    def _logs(self) -> list[Callable[[], object]]:
        small = (self._start.max_num_tokens // BLOCK + 1) * BLOCK
        return [
            self._log_model,
            lambda: logger.info("Using Sampler: TorchSampler"),
            lambda: self._log_pool(small, small, "0.56"),
            lambda: None,
            lambda: self._log_warm_up(min(small, self._max_seq_len)),
            self._log_kv_cache,
            lambda: None,
        ]

    def _log_model(self) -> None:
        # ``_torch/models/checkpoints/hf/weight_loader.py``
        logger.info("Prefetching 0.27GB checkpoint files.")
        write("\rLoading safetensors weights in parallel: 100%|##########| 1/1 [00:00<00:00]\n")
        write("\rLoading weights: 100%|##########| 81/81 [00:00<00:00]\n")
        write("Model init total -- 0.01s\n")

    def _log_kv_cache(self) -> None:
        """``_torch/pyexecutor/_util.py``."""
        usage = "in memory usage profiling"
        peak = (
            "Peak memory during memory usage profiling (torch + non-torch): 17.18 GiB, available "
            "KV cache memory when calculating max tokens: 55.74 GiB, fraction is set "
            f"{self._start.kv_fraction}, kv size is 131072. device total memory 79.11 GiB, , tmp "
            "kv_mem 0.56 GiB"
        )
        for text in (
            f"Memory used after loading model weights (inside torch) {usage}: 15.08 GiB",
            f"Memory used after loading model weights (outside torch) {usage}: 0.93 GiB",
            f"Memory dynamically allocated during inference (inside torch) {usage}: 1.20 GiB",
            f"Memory used outside torch (e.g., NCCL and CUDA graphs) {usage}: 0.90 GiB",
            peak,
            "Estimated max memory in KV cache : 55.74 GiB",
        ):
            logger.info(text)
        self._max_seq_len = self._log_pool(self._room, self._room // BLOCK * BLOCK, "55.74")

    def _log_pool(self, most: int, tokens: int, gib: str) -> int:
        """``_torch/pyexecutor/resource_manager.py``; the length that ``tokens`` allow."""
        logger.warning(
            "Both free_gpu_memory_fraction and max_tokens are set (to "
            f"{self._start.kv_fraction} and {most}, respectively). The smaller value will be used."
        )
        whole = self._max_seq_len
        if tokens < whole:
            logger.warning(
                f"Attention window size {whole} exceeds upper bound {tokens} for available blocks. "
                f"Reducing to {tokens}."
            )
            logger.warning(f"Adjusted max_attention_window_vec to [{tokens}]")
            logger.warning(f"Adjusted window size {whole} to {tokens} in blocks_per_window")
            logger.warning(f"Adjusted max_seq_len to {tokens}")
        length = min(tokens, whole)
        logger.cpp(
            "INFO",
            f"Max KV cache blocks per sequence: {-(-length // BLOCK)} [window size={length}], "
            f"tokens per block={BLOCK}, primary blocks={tokens // BLOCK}, secondary blocks=0, max "
            f"sequence length={length}",
        )
        logger.cpp(
            "INFO",
            f"[MemUsageChange] Allocated {gib} GiB for max tokens in paged KV cache ({tokens}).",
        )
        return length

    def _log_warm_up(self, length: int) -> None:
        start = self._start
        logger.info(
            f"max_seq_len={length}, max_num_requests={start.max_batch_size}, "
            f"max_num_tokens={start.max_num_tokens}, max_batch_size={start.max_batch_size}"
        )
        logger.info("[Autotuner] Autotuning process starts ...")
        logger.info("[Autotuner] Autotuning process ends")
        if start.cuda_graphs:
            logger.info("Creating CUDA graph instances for 2 batch sizes.")
            for size in (2, 1):
                logger.info(
                    f"Run generation only CUDA graph warmup for batch size={size}, draft_len=0"
                )

    def follow(self, team: Team) -> None:
        """A rank above 0: its part of every step, until rank 0 has no more."""
        while (answers := team.told()) is not None:
            self.faults.at(answers)
            team.done()
        self.faults.at("shutdown")

    def serve(self, team: Team, inbox: Any, outbox: Any) -> None:
        """Rank 0: requests in, steps of all ranks, responses out."""
        while True:
            while inbox.poll(self._pause_s()):
                message = inbox.get()
                if message is None:
                    team.tell(None)
                    self.faults.at("shutdown")
                    self._set_deaf()
                    return
                self._take(message, outbox)
            self._schedule()
            done = [key for key, (_, due) in self._active.items() if due <= time.monotonic()]
            if done:
                team.step(self._answers)
                self.faults.at(self._answers)
            for key in done:
                outbox.put(self._respond(self._active.pop(key)[0]))
                self._answers += 1
            if done:
                self._after_step(outbox)

    def _pause_s(self) -> float:
        if not self._active:
            return 0.1
        next_s = min(due for _, due in self._active.values()) - time.monotonic()
        return min(max(next_s, 0), 0.1)

    def _take(self, message: Request | int, outbox: Any) -> None:
        if isinstance(message, Request):
            self._note("asked", message)
            if error := self._refusal(message):
                logger.error(f"submit request failed: {error}")
                outbox.put(Response(message.id, [], error))
            else:
                self._waiting.append(message)
            return
        for request in [r for r in self._waiting if r.id == message]:
            self._waiting.remove(request)
            outbox.put(Response(message, [CompletionOutput(0, finish_reason="cancelled")]))
        if self._active.pop(message, None):
            outbox.put(Response(message, [CompletionOutput(0, finish_reason="cancelled")]))

    def _refusal(self, request: Request) -> str | None:
        """``executor/base_worker.py`` @000bd1a6, _deduce_max_tokens, in the words of 1.2.1."""
        length = len(request.prompt_token_ids)
        if (room := self._max_seq_len - length) <= 0:
            return (
                f"`default_max_tokens` ({room}) must be greater than 0, `default_max_tokens` "
                f"({room}) = max_seq_len ({self._max_seq_len}) - `splited_prompt_len` ({length}) "
                "- `query_token_len` (0)"
            )
        if (most := request.params.max_tokens) <= 0:
            return f"`max_tokens` ({most}) must be greater than 0"
        if most > room:
            logger.warning(
                f"User-specified `max_tokens` ({most}) is greater than deduced "
                f"`default_max_tokens` ({room}), using default_max_tokens instead."
            )
        return None

    def _schedule(self) -> None:
        while self._waiting and len(self._active) < self._start.max_batch_size:
            request = self._waiting.popleft()
            wait_s = self._start.how.get("latency_s", 0)
            if _text(request) in _SPECIAL and _SPECIAL[_text(request)] == "never":
                wait_s = 1e6
            self._active[request.id] = (request, time.monotonic() + wait_s)

    def _respond(self, request: Request) -> Response:
        self._note("answered", request)
        special = _SPECIAL.get(_text(request))
        if special == "error":
            return Response(request.id, [], "stand-in: this request failed")
        outputs = [self._answer(request, index) for index in range(request.params.n)]
        if special == "timeout":
            outputs = [CompletionOutput(0, finish_reason="timeout")]
        return Response(request.id, outputs)

    def _answer(self, request: Request, index: int) -> CompletionOutput:
        params = request.params
        ids = [i for i in request.prompt_token_ids if i != BOS]
        if not params.is_greedy:
            random.Random((params.seed or 0) + index).shuffle(ids)
        if params.ignore_eos:
            ids = (ids or [0]) * params.max_tokens
        elif params.end_id is not None:
            ids.append(params.end_id)
        room = self._max_seq_len - len(request.prompt_token_ids)
        output = CompletionOutput(index, token_ids=ids[: min(params.max_tokens, room)])
        output.finish_reason = "length" if len(output.token_ids) < len(ids) else "stop"
        if params.logprobs:
            output.logprobs = [_logprobs(i, params.logprobs) for i in output.token_ids]
            chosen = (each[i] for i, each in zip(output.token_ids, output.logprobs, strict=True))
            output.cumulative_logprob = sum(each.logprob for each in chosen)
        _stop(output, request)  # which leaves the log probabilities as they are
        return output

    def _after_step(self, outbox: Any) -> None:
        from .executor.worker import Fatal, Stats

        self._iteration += 1
        if self._start.stats:
            outbox.put(Stats(json.dumps(self._stats())))
        if (text := self.faults.breaks("forward", self._answers)) is not None:
            self._break(text, outbox)
        if (text := self.faults.breaks("die", self._answers)) is not None:
            logger.error(f"Error in event loop: {text}")
            outbox.put(Fatal(f"Remote MPI worker died: RuntimeError: {text}"))
            self.faults.hang()

    def _break(self, text: str, outbox: Any) -> None:
        """A pass that fails takes what is active with it (``_torch/pyexecutor/py_executor.py``).

        So it is with _forward_step and _handle_errors; afterwards its thread dies of having no
        samples (_event_loop_wrapper logs it), and nobody is told.
        """
        logger.error(f"Encountered an error in forward function: {text}")
        for request, _ in self._active.values():
            outbox.put(Response(request.id, [], text))
        logger.error("Error in event loop: Sampling failed")
        write("AssertionError: Sampling failed\n")
        self.faults.hang()

    def _stats(self) -> dict[str, Any]:
        """Keys of ``cpp/tensorrt_llm/executor/jsonSerialization.cpp`` @092229bb."""
        blocks = self._room // BLOCK
        used = sum(-(-len(r.prompt_token_ids) // BLOCK) for r, _ in self._active.values())
        return {
            "iter": self._iteration,
            "iterLatencyMS": 10.0,
            "numActiveRequests": len(self._active),
            "numQueuedRequests": len(self._waiting),
            "numCompletedRequests": 1,
            "maxNumActiveRequests": self._start.max_batch_size,
            "gpuMemUsage": 72 << 30,
            "cpuMemUsage": 0,
            "pinnedMemUsage": 0,
            "kvCacheStats": {
                "maxNumBlocks": blocks,
                "freeNumBlocks": blocks - used,
                "usedNumBlocks": used,
                "tokensPerBlock": BLOCK,
                "allocTotalBlocks": used,
                "allocNewBlocks": used,
                "reusedBlocks": 0,
                "missedBlocks": used,
                "cacheHitRate": 0.0,
            },
            "inflightBatchingStats": {
                "numScheduledRequests": len(self._active),
                "numContextRequests": 0,
                "numGenRequests": len(self._active),
                "numPausedRequests": 0,
                "numCtxTokens": 0,
            },
        }

    def _set_deaf(self) -> None:
        if self._start.how.get("leader") == "deaf":
            from .llmapi.mpi_session import RemoteMpiCommSessionServer

            RemoteMpiCommSessionServer.deaf.set()

    def _note(self, what: str, request: Request) -> None:
        """One line of the journal, where there is to be one."""
        if path := self._start.how.get("journal"):
            with Path(path).open("ab", buffering=0) as journal:
                journal.write(f"{what} {_text(request).decode(errors='replace')}\n".encode())


def _text(request: Request) -> bytes:
    return bytes(i for i in request.prompt_token_ids if i < BOS)


def _stop(output: CompletionOutput, request: Request) -> None:
    """``executor/result.py`` @005bc848, _handle_sequence: at the first of the words."""
    params, ids = request.params, output.token_ids
    for end in range(1, len(ids) + 1):
        for reason, word in params.stops():
            if word and ids[:end][-len(word) :] == word:
                kept = end if params.include_stop_str_in_output else end - len(word)
                output.token_ids = ids[:kept]
                output.finish_reason, output.stop_reason = "stop", reason
                return


def _logprobs(token: int, count: int) -> dict[int, Logprob]:
    others = {token + i: Logprob(-1.0 - i, i + 1) for i in range(1, count)}
    return {token: Logprob(-0.25, 1), **others}
