"""As ``tensorrt_llm/llmapi/__init__.py`` @5ca85aff, less what is never used."""

from __future__ import annotations

from ..sampling_params import SamplingParams
from .llm import LLM, CompletionOutput, RequestError, RequestOutput
from .llm_args import KvCacheConfig, TorchLlmArgs

__all__ = [
    "LLM",
    "CompletionOutput",
    "KvCacheConfig",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "TorchLlmArgs",
]
