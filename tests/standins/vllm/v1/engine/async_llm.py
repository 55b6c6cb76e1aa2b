"""As ``vllm/v1/engine/async_llm.py`` of 0.24.0: what it raises when, over a process that dies.

It answers with the text of its prompt, cut to ``max_tokens`` bytes, each byte a token. As for log
probabilities, the token that comes is the third likeliest, after the two that follow it.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ... import core
from ...exceptions import VLLMValidationError
from ...logprobs import Logprob
from ...outputs import CompletionOutput, RequestOutput
from ...sampling_params import SamplingParams
from ...usage.usage_lib import UsageContext
from .exceptions import EngineDeadError, EngineGenerateError

BOS = 256


class Tokenizer:
    """As far as ``vllm/tokenizers/protocol.py`` is used: a token is a byte, or BOS."""

    chat_template: str | None = "{{ messages }}"

    def encode(
        self,
        text: str,
        truncation: bool | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> list[int]:
        if "\ufffe" in text:
            raise TypeError("not a character")
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, ids: Sequence[int] | int, skip_special_tokens: bool = False) -> str:
        given = [ids] if isinstance(ids, int) else ids
        return bytes(i for i in given if i < BOS).decode(errors="replace")

    def apply_chat_template(
        self, messages: list[Any], tools: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> str | list[int]:
        assert kwargs == {"add_generation_prompt": True, "tokenize": False}
        for message in messages:
            if message["role"] not in ("system", "user", "assistant"):
                raise ValueError(f"no role {message['role']}")
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in messages) + "<assistant>"


class AsyncLLM:
    def __init__(self, vllm_config: Any, stat_loggers: list[Any] | None) -> None:
        self.vllm_config = vllm_config
        self._how: Mapping[str, Any] = vllm_config.standin
        self._loggers = [make(vllm_config, [0]) for make in stat_loggers or ()]
        self._answers = 0
        self._queues: dict[str, asyncio.Queue[Any]] = {}
        self._dead = False
        # vllm/v1/core/sched/scheduler.py, max_num_running_reqs
        self._most = vllm_config.scheduler_config.max_num_seqs
        self._slots = asyncio.Semaphore(self._most)
        model = vllm_config.model_config
        # vllm/renderers/base.py, before anything is started
        if not model.skip_tokenizer_init and not Path(model.model, "tokenizer.model").exists():
            raise OSError(f"Can't load tokenizer for '{model.model}'")
        self._core = self._start_core()

    @classmethod
    def from_vllm_config(
        cls,
        vllm_config: Any,
        start_engine_loop: bool = True,
        usage_context: UsageContext = UsageContext.ENGINE_CONTEXT,
        stat_loggers: list[Any] | None = None,
        enable_log_requests: bool = False,
        aggregate_engine_logging: bool = False,
        disable_log_stats: bool = False,
        client_addresses: dict[str, Any] | None = None,
        client_count: int = 1,
        client_index: int = 0,
    ) -> AsyncLLM:
        assert disable_log_stats
        return cls(vllm_config, stat_loggers)

    def _start_core(self) -> subprocess.Popen[bytes]:
        ready, pipe = os.pipe()
        commands, self._commands = os.pipe()
        config = self.vllm_config.parallel_config
        words = [str(pipe), self.vllm_config.start, str(config.local_world_size)]
        words.append("1" if self._how.get("stubborn") else "0")
        words.append(json.dumps(config.place if config.nnodes > 1 else None))
        process = subprocess.Popen(
            [sys.executable, core.__file__, *words],
            stdin=commands,
            pass_fds=[pipe],
        )
        os.close(pipe)
        os.close(commands)
        select.select([ready], [], [])
        begun = os.read(ready, 1)
        os.close(ready)
        if not begun:
            # vllm/v1/engine/utils.py, wait_for_engine_startup
            raise RuntimeError(
                "Engine core initialization failed. See root cause above. "
                f"Failed core proc(s): {{'EngineCore': {process.wait()}}}"
            )
        return process

    def get_tokenizer(self) -> Tokenizer:
        # vllm/renderers/base.py, BaseRenderer.get_tokenizer
        if self.vllm_config.model_config.skip_tokenizer_init:
            raise ValueError("Tokenizer not available when `skip_tokenizer_init=True`")
        return Tokenizer()

    async def get_supported_tasks(self) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        # vllm/v1/engine/core_client.py, MPClient.start_engine_core_monitor
        threading.Thread(target=self._monitor, args=(loop,), daemon=True).start()
        return ("generate",)

    def _monitor(self, loop: asyncio.AbstractEventLoop) -> None:
        self._core.wait()
        self._dead = True

        def propagate() -> None:
            for queue in self._queues.values():
                queue.put_nowait(EngineDeadError())

        if not loop.is_closed():
            loop.call_soon_threadsafe(propagate)

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: Any = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: dict[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        if self._dead:
            raise EngineDeadError
        ids = prompt["prompt_token_ids"]
        self._validate(prompt, sampling_params)
        if bytes(i for i in ids if i < BOS) == b"break":
            raise EngineGenerateError from KeyError("no such request")
        self._note("asked", ids)
        queue = self._queues[request_id] = asyncio.Queue()
        task = asyncio.ensure_future(self._work(request_id, ids, sampling_params))
        try:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            self._note("answered", ids)
            yield found
        finally:
            task.cancel()
            self._queues.pop(request_id, None)

    def _note(self, what: str, ids: list[int]) -> None:
        """One line of the journal, where there is to be one: whole, whoever else writes to it."""
        if path := self._how.get("journal"):
            line = f"{os.getpid()} {what} {bytes(i for i in ids if i < BOS).decode()}\n"
            with Path(path).open("ab", buffering=0) as journal:
                journal.write(line.encode())

    def _validate(self, prompt: Any, params: SamplingParams) -> None:
        """``vllm/v1/engine/input_processor.py``, process_inputs."""
        assert prompt["type"] == "token"
        config = self.vllm_config.model_config
        length, limit = len(prompt["prompt_token_ids"]), config.max_model_len
        if length == 0:
            raise ValueError("The decoder prompt cannot be empty")
        assert params.max_tokens is not None
        if length + params.max_tokens > limit:
            raise AssertionError("max_tokens was to be cut")
        # vllm/sampling_params.py, _validate_logprobs
        if (wanted := params.logprobs) and wanted > config.max_logprobs:
            raise VLLMValidationError(
                f"Requested sample logprobs of {wanted}, "
                f"which is greater than max allowed: {config.max_logprobs}",
                parameter="logprobs",
                value=wanted,
            )
        if bytes(i for i in prompt["prompt_token_ids"] if i < BOS) == b"refuse":
            raise ValueError("This model does not support generation")

    async def _work(self, request_id: str, ids: list[int], params: SamplingParams) -> None:
        answer = [i for i in ids if i != BOS]
        reason = "stop"
        assert params.max_tokens is not None
        if len(answer) > params.max_tokens:
            answer, reason = answer[: params.max_tokens], "length"
        text = bytes(i % 256 for i in answer).decode(errors="replace") if params.detokenize else ""
        for stop in params.stop or ():
            if stop in text:
                text, reason = text[: text.index(stop)], "stop"
        async with self._slots:
            await asyncio.sleep(self._how.get("latency_s", 0))
            if text == "wait" or self._answers == self._how.get("silent_after"):
                await asyncio.sleep(1e6)
        if text == "fail":
            reason = "error"
        self._answers += 1
        running = min(len(self._queues), self._most)
        for logger in self._loggers:
            waiting = SimpleNamespace(
                num_running_reqs=running,
                num_waiting_reqs=len(self._queues) - running,
                kv_cache_usage=0.25,
            )
            logger.record(waiting, SimpleNamespace(num_generation_tokens=len(answer)))
        if self._answers == self._how.get("die_after"):
            os.write(self._commands, b"die\n")
            return
        told = None
        if params.logprobs is not None and "no_logprobs" not in self._how:
            told = [_logprobs(token, params.logprobs) for token in answer]
        self._put(request_id, ids, text, answer, reason, told)

    def _put(
        self,
        request_id: str,
        ids: list[int],
        text: str,
        answer: list[int],
        why: str,
        logprobs: list[dict[int, Logprob]] | None = None,
    ) -> None:
        output = CompletionOutput(
            index=0, text=text, token_ids=answer, logprobs=logprobs, finish_reason=why
        )
        if request_id in self._queues:
            self._queues[request_id].put_nowait(RequestOutput(request_id, ids, [output], True))

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        assert isinstance(request_id, str)
        # vllm/v1/engine/output_processor.py, abort_requests: a last output with this reason
        self._put(request_id, [], "", [], "abort")

    def give_up(self) -> None:
        """What its core does on SIGTERM (``vllm/v1/engine/core.py``, _handle_shutdown)."""
        for request_id in list(self._queues):
            self._put(request_id, [], "", [], "abort")

    def shutdown(self, timeout: float | None = None) -> None:
        if self._how.get("shutdown_hangs"):
            time.sleep(1e6)
        self._core.terminate()
        try:
            self._core.wait(0.5 if self._how.get("stubborn") else timeout)
        except subprocess.TimeoutExpired:
            self._core.kill()


def _logprobs(token: int, count: int) -> dict[int, Logprob]:
    """``vllm/logprobs.py``, append_logprobs_for_next_position: the chosen one, then the likeliest.

    The chosen one is not there twice, and beside the others if it is none of them.
    """
    likeliest = [(token + 1) % BOS, (token + 2) % BOS, token, *range(BOS, BOS + count)][:count]
    ranks = {other: rank for rank, other in enumerate(likeliest, start=1)}
    found = {token: 3, **ranks}
    return {other: Logprob(-0.5 * rank, rank, f"<{other}>") for other, rank in found.items()}
