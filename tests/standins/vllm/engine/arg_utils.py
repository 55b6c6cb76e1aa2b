"""As ``vllm/engine/arg_utils.py`` of 0.24.0: some of the fields, with their defaults."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..usage.usage_lib import UsageContext

# _set_default_max_num_seqs_and_batched_tokens_args on a GPU with 70 GB or more, and
# SchedulerConfig.DEFAULT_MAX_NUM_SEQS in vllm/config/scheduler.py for any other context.
_MAX_NUM_SEQS = {UsageContext.LLM_CLASS: 1024, UsageContext.OPENAI_API_SERVER: 1024}
_MAX_NUM_SEQS_ELSE = 128


@dataclass
class EngineArgs:
    model: str = "Qwen/Qwen3-0.6B"
    tokenizer: str | None = None
    skip_tokenizer_init: bool = False
    load_format: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    distributed_executor_backend: str | None = None
    pipeline_parallel_size: int = 1
    tensor_parallel_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 29501
    nnodes: int = 1
    node_rank: int = 0
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    _api_process_count: int = 1
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    enable_prefix_caching: bool | None = None
    enable_flashinfer_autotune: bool | None = None
    moe_backend: str = "auto"
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    disable_log_stats: bool = False
    max_logprobs: int = 20
    enforce_eager: bool = False
    hf_overrides: dict[str, Any] = field(default_factory=dict)
    generation_config: str = "auto"

    def create_engine_config(
        self, usage_context: UsageContext | None = None, headless: bool = False
    ) -> Any:
        found = json.loads(Path(self.model, "config.json").read_bytes())
        behaviour = Path(self.model, "standin.cfg")
        how = json.loads(behaviour.read_bytes()) if behaviour.exists() else {}
        how = how or found.get("standin", {})
        limit = found.get("max_position_embeddings", 2048)
        if self.max_model_len is not None and self.max_model_len > limit:
            # vllm/config/model.py, _get_and_verify_max_len, through pydantic
            raise ValueError(
                "1 validation error for ModelConfig\n"
                f"  Value error, User-specified max_model_len ({self.max_model_len}) is greater "
                f"than the derived max_model_len (max_position_embeddings={limit}) "
                "[type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]\n"
                "    For further information visit https://errors.pydantic.dev/2.12/v/value_error"
            )
        sequences = self.max_num_seqs
        if sequences is None:
            assert usage_context is not None
            sequences = _MAX_NUM_SEQS.get(usage_context, _MAX_NUM_SEQS_ELSE)
        return SimpleNamespace(
            model_config=SimpleNamespace(
                model=self.model,
                max_model_len=self.max_model_len or limit,
                skip_tokenizer_init=self.skip_tokenizer_init,
                max_logprobs=self.max_logprobs,
                get_vocab_size=lambda: found.get("vocab_size", 512),
            ),
            cache_config=SimpleNamespace(kv_cache_size_tokens=how.get("kv_tokens")),
            scheduler_config=SimpleNamespace(max_num_seqs=sequences),
            parallel_config=self._parallel_config(),
            args=self,
            standin=how,
            headless=headless,
            start=self._start(how),
        )

    def _start(self, how: dict[str, Any]) -> str:
        if (self.kv_cache_memory_bytes or 0) > how.get("room_bytes", math.inf):
            return "out-of-memory"
        return str(how.get("start_of_node", {}).get(str(self.node_rank), how.get("start", "ready")))

    def _parallel_config(self) -> Any:
        """``vllm/config/parallel.py``: what follows from the number of nodes."""
        if self.nnodes > 1 and self.distributed_executor_backend != "mp":
            raise ValueError(
                "nnodes > 1 can only be set when distributed executor backend is mp, uni or "
                "external_launcher."
            )
        assert self._world_size % self.nnodes == 0, (
            f"world_size={self._world_size} must be divisible by nnodes={self.nnodes}."
        )
        local = self._world_size // self.nnodes
        return SimpleNamespace(
            world_size=self._world_size,
            local_world_size=local,
            nnodes=self.nnodes,
            node_rank=self.node_rank,
            place={
                "world_size": self._world_size,
                "local_world_size": local,
                "address": self.master_addr,
                "port": self.master_port,
            },
        )

    @property
    def _world_size(self) -> int:
        return self.pipeline_parallel_size * self.tensor_parallel_size


@dataclass
class AsyncEngineArgs(EngineArgs):
    enable_log_requests: bool = False
