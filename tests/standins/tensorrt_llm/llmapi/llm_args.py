"""As ``tensorrt_llm/llmapi/llm_args.py`` of early 2026: fields, defaults, what is refused.

Without pydantic, which a job's interpreter need not have: its words are kept.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

_VALIDATION = "    For further information visit https://errors.pydantic.dev/2.11/v/"

KV_CACHE: dict[str, Any] = {
    "enable_block_reuse": True,
    "max_tokens": None,
    "max_attention_window": None,
    "sink_token_length": None,
    "free_gpu_memory_fraction": 0.9,
    "host_cache_size": None,
    "onboard_blocks": True,
    "cross_kv_cache_fraction": None,
    "secondary_offload_min_priority": None,
    "event_buffer_max_size": 0,
    "enable_partial_reuse": True,
    "copy_on_partial_reuse": True,
    "use_uvm": False,
    "max_gpu_total_bytes": 0,
    "dtype": "auto",
    "mamba_ssm_cache_dtype": "auto",
    "tokens_per_block": 32,
}
NESTED: dict[str, dict[str, Any]] = {
    "kv_cache_config": KV_CACHE,
    "cuda_graph_config": {"batch_sizes": None, "max_batch_size": 0, "enable_padding": False},
    "moe_config": {
        "backend": "CUTLASS",
        "max_num_tokens": None,
        "load_balancer": None,
        "disable_finalize_fusion": False,
        "use_low_precision_moe_combine": False,
    },
    "scheduler_config": {
        "capacity_scheduler_policy": "GUARANTEED_NO_EVICT",
        "context_chunking_policy": None,
        "dynamic_batch_config": None,
    },
    "attention_dp_config": {
        "enable_balance": False,
        "timeout_iters": 50,
        "batching_wait_iters": 10,
    },
}
FIELDS: dict[str, Any] = {
    "model": ...,
    "tokenizer": None,
    "tokenizer_mode": "auto",
    "skip_tokenizer_init": False,
    "trust_remote_code": False,
    "tensor_parallel_size": 1,
    "dtype": "auto",
    "revision": None,
    "tokenizer_revision": None,
    "pipeline_parallel_size": 1,
    "context_parallel_size": 1,
    "gpus_per_node": None,
    "moe_cluster_parallel_size": None,
    "moe_tensor_parallel_size": None,
    "moe_expert_parallel_size": None,
    "enable_attention_dp": False,
    "enable_lm_head_tp_in_adp": False,
    "pp_partition": None,
    "cp_config": None,
    "load_format": "auto",
    "enable_lora": False,
    "lora_config": None,
    "kv_cache_config": {},
    "enable_chunked_prefill": False,
    "guided_decoding_backend": None,
    "batched_logits_processor": None,
    "iter_stats_max_iterations": None,
    "request_stats_max_iterations": None,
    "peft_cache_config": None,
    "scheduler_config": {},
    "cache_transceiver_config": None,
    "sparse_attention_config": None,
    "speculative_config": None,
    "max_batch_size": 2048,
    "max_input_len": 1024,
    "max_seq_len": None,
    "max_beam_width": 1,
    "max_num_tokens": 8192,
    "gather_generation_logits": False,
    "num_postprocess_workers": 0,
    "postprocess_tokenizer_dir": None,
    "reasoning_parser": None,
    "decoding_config": None,
    "mpi_session": None,
    "backend": "pytorch",
    "return_perf_metrics": False,
    "orchestrator_type": None,
    "garbage_collection_gen0_threshold": 20000,
    "cuda_graph_config": {},
    "attention_dp_config": None,
    "disable_overlap_scheduler": False,
    "moe_config": {},
    "attn_backend": "TRTLLM",
    "sampler_type": "auto",
    "enable_iter_perf_stats": False,
    "enable_iter_req_stats": False,
    "print_iter_log": False,
    "batch_wait_timeout_ms": 0.0,
    "batch_wait_timeout_iters": 0,
    "batch_wait_max_tokens_ratio": 0.0,
    "torch_compile_config": None,
    "enable_autotuner": True,
    "enable_layerwise_nvtx_marker": False,
    "enable_min_latency": False,
    "stream_interval": 1,
    "force_dynamic_quantization": False,
    "allreduce_strategy": "AUTO",
    "checkpoint_loader": None,
    "checkpoint_format": None,
    "kv_connector_config": None,
    "mm_encoder_only": False,
}
# Fields of TrtLlmArgs that TorchLlmArgs has not.
TENSORRT_ONLY = {
    "quant_config",
    "calib_config",
    "build_config",
    "workspace",
    "enable_tqdm",
    "enable_build_cache",
    "fast_build",
    "batching_type",
    "normalize_log_probs",
    "embedding_parallel_mode",
    "extended_runtime_perf_knob_config",
}


class KvCacheConfig(SimpleNamespace):
    model_fields = KV_CACHE

    def __init__(self, **given: Any) -> None:
        super().__init__(**_nested("KvCacheConfig", "", KV_CACHE, given))


class TorchLlmArgs(SimpleNamespace):
    model_fields = FIELDS

    def __init__(self, **given: Any) -> None:
        for name in given:
            if name not in FIELDS:
                raise ValueError(f"LLM got invalid argument: {name}")
        for name, value in given.items():
            if type(FIELDS[name]) is int:
                _check_int("TorchLlmArgs", name, value)
        for name, fields in NESTED.items():
            value = given.get(name, FIELDS[name])
            if isinstance(value, SimpleNamespace):
                value = vars(value)
            if value is not None:
                given[name] = SimpleNamespace(**_nested("TorchLlmArgs", f"{name}.", fields, value))
        super().__init__(**{**FIELDS, **given})

    @property
    def world_size(self) -> int:
        sizes = (self.tensor_parallel_size, self.pipeline_parallel_size)
        return int(sizes[0] * sizes[1] * self.context_parallel_size)


def _nested(cls: str, path: str, fields: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if name not in fields:
            raise ValueError(
                f"1 validation error for {cls}\n{path}{name}\n  Extra inputs are not permitted "
                f"[type=extra_forbidden, input_value={value!r}, "
                f"input_type={type(value).__name__}]\n{_VALIDATION}extra_forbidden"
            )
    return {**fields, **given}


def _check_int(cls: str, name: str, value: Any) -> None:
    if type(value) is not int:
        raise ValueError(
            f"1 validation error for {cls}\n{name}\n  Input should be a valid integer "
            f"[type=int_type, input_value={value!r}, input_type={type(value).__name__}]\n"
            f"{_VALIDATION}int_type"
        )
