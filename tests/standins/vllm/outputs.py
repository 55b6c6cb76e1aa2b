"""As ``vllm/outputs.py`` of 0.24.0, less what the engine vllm never reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .logprobs import Logprob


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool
