"""What ``engine_options`` of the engine vllm may hold: fields of vLLM's own ``AsyncEngineArgs``.

Known here for some versions, so that a wrong name, or a value of the wrong kind, is found before a
job waits in a queue; the job itself asks the vLLM that it has. ``python -m benchmarks.vllm_options
WHEEL…`` prints the table at the end anew.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from launcher.plan.engine_options import Complaint, Names

__all__ = ["OWNED", "VERSIONS", "Complaint", "complaints", "kinds", "known_options", "wrong_values"]

# What the plan decides: given twice, the two could disagree.
OWNED: Mapping[str, str] = {
    "model": "model",
    "model_weights": "model",
    "tensor_parallel_size": "parallelism.tp",
    "pipeline_parallel_size": "parallelism.pp",
    "enable_expert_parallel": "parallelism.ep",
    "distributed_executor_backend": "parallelism",
    "nnodes": "parallelism",
    "node_rank": "parallelism",
    "master_addr": "parallelism",
    "master_port": "parallelism",
    "device_ids": "resources.gpus_per_node",
    # Each would need GPUs of its own, of which the plan knows nothing.
    "data_parallel_size": "replicas",
    "data_parallel_size_local": "replicas",
    "data_parallel_rank": "replicas",
    "data_parallel_start_rank": "replicas",
    "data_parallel_address": "replicas",
    "data_parallel_rpc_port": "replicas",
    "data_parallel_backend": "replicas",
    "data_parallel_hybrid_lb": "replicas",
    "data_parallel_external_lb": "replicas",
    "data_parallel_multi_port_external_lb": "replicas",
    "prefill_context_parallel_size": "parallelism.tp",
}

# Names of other engines and of other places, which are no near spelling of the right one.
_MEANT: Mapping[str, str] = {
    "dp": "replicas of the job file",
    "dp_size": "replicas of the job file",
    "ep": "parallelism.ep of the job file",
    "ep_size": "parallelism.ep of the job file",
    "expert_parallel_size": "parallelism.ep of the job file",
    "moe_expert_parallel_size": "parallelism.ep of the job file",
    "free_gpu_memory_fraction": "gpu_memory_utilization",
    "kv_cache_free_gpu_mem_fraction": "gpu_memory_utilization",
    "max_batch_size": "max_num_seqs",
    "logprobs": "sampling.logprobs of the job file",
    "max_length": "max_model_len",
    "max_new_tokens": "sampling.max_tokens of the job file",
    "max_num_tokens": "max_num_batched_tokens",
    "max_seq_len": "max_model_len",
    "max_tokens": "sampling.max_tokens of the job file",
    "mem_fraction_static": "gpu_memory_utilization",
    "pp": "parallelism.pp of the job file",
    "pp_size": "parallelism.pp of the job file",
    "stop": "sampling.stop of the job file",
    "temperature": "sampling.temperature of the job file",
    "top_k": "sampling.top_k of the job file",
    "top_p": "sampling.top_p of the job file",
    "tp": "parallelism.tp of the job file",
    "tp_size": "parallelism.tp of the job file",
}

_NAMES = Names(
    owned={name: f"set {key}" for name, key in OWNED.items()},
    meant={name: f"set {better}" for name, better in _MEANT.items()},
    kind="a field of vLLM's EngineArgs",
)


def complaints(given: Collection[str], known: Collection[str], where: str) -> list[Complaint]:
    """What is wrong with the names of options; see `launcher.plan.engine_options`."""
    return _NAMES.complaints(given, known, where)


def known_options() -> frozenset[str]:
    """What at least one of `VERSIONS` takes."""
    return frozenset(word.partition(":")[0] for word in _OPTIONS.split())


def kinds() -> dict[str, str]:
    """What each of `VERSIONS` takes of some options, as in ``int>=1``; of others that is not sure.

    They are fields of pydantic dataclasses (vllm/config), with the bounds that these state.
    """
    return dict(word.split(":") for word in _OPTIONS.split() if ":" in word)


def wrong_values(given: Mapping[str, Any]) -> list[Complaint]:
    """The values in ``engine_options`` that are not of the kind that vLLM takes."""
    known, found = kinds(), []
    for name, value in given.items():
        kind = None if name in OWNED or value is None else known.get(name)
        if kind is not None and not _takes(kind, value):
            words = _words(kind)
            message = f"engine option `{name}` is {value!r:.80}, and vLLM takes {words}"
            quoted = kind != "str" and isinstance(value, str)
            how = f"write {words}{' without quotes' * quoted}, or remove it"
            found.append(Complaint(name, message, how))
    return found


# A bound, and what it is in words.
_BOUND = re.compile(r"([<>]=?)([-\d.]+)")
_BOUNDS: Mapping[str, tuple[Callable[[float, float], bool], str]] = {
    ">=": (operator.ge, "of at least"),
    ">": (operator.gt, "above"),
    "<=": (operator.le, "up to"),
    "<": (operator.lt, "below"),
}
_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text, in quotes if it looks like a number",
}


def _takes(kind: str, value: Any) -> bool:
    """Whether it is of that kind as it stands: "16" vLLM would convert, but the plan counts it."""
    if kind == "str":
        return isinstance(value, str)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    numbers = (int, float) if kind.startswith("float") else int
    if not isinstance(value, numbers):
        return False
    return all(_BOUNDS[sign][0](value, float(n)) for sign, n in _BOUND.findall(kind))


def _words(kind: str) -> str:
    """``a number above 0 and up to 1``."""
    bounds = " and ".join(f"{_BOUNDS[sign][1]} {n}" for sign, n in _BOUND.findall(kind))
    return f"{_KINDS[re.split('[<>]', kind)[0]]} {bounds}".rstrip()


VERSIONS = (
    "0.20.0",
    "0.24.0",
    "0.33.0",
)
_OPTIONS = """
additional_config aggregate_engine_logging all2all_backend allow_deprecated_quantization:bool
allowed_local_media_path:str allowed_media_domains async_scheduling:bool attention_backend
attention_config aux_output_config block_size calculate_kv_scales:bool code_revision:str
collect_detailed_traces compilation_config config_format convert cp_kv_cache_interleave_size
cpu_distributed_timeout_seconds:int cpu_offload_gb:float>=0 cpu_offload_params
cudagraph_capture_sizes cudagraph_metrics:bool custom_histogram_buckets data_parallel_address
data_parallel_backend data_parallel_external_lb data_parallel_hybrid_lb:bool
data_parallel_multi_port_external_lb data_parallel_rank data_parallel_rpc_port
data_parallel_size:int data_parallel_size_local data_parallel_start_rank
dbo_decode_token_threshold:int dbo_prefill_token_threshold:int dcp_comm_backend
dcp_kv_cache_interleave_size:int dcp_q_replicate:bool decode_context_parallel_size:int
default_mm_loras device_ids diffusion_config disable_cascade_attn disable_chunked_mm_input:bool
disable_custom_all_reduce:bool disable_hybrid_kv_cache_manager:bool disable_log_stats
disable_nccl_for_dp_synchronization:bool disable_sliding_window:bool distributed_executor_backend
distributed_timeout_seconds:int download_dir:str dp_sync_interval:int>=1 dtype ec_manager_config
ec_transfer_config elastic_ep_max_dp_size:int>=1 enable_batch_sharded_sampling:bool
enable_chunked_prefill:bool enable_cumem_allocator:bool enable_dbo:bool enable_elastic_ep:bool
enable_ep_weight_filter:bool enable_eplb:bool enable_expert_parallel:bool
enable_fault_tolerance:bool enable_flashinfer_autotune enable_hc_sp:bool
enable_layerwise_nvtx_tracing:bool enable_log_requests enable_logging_iteration_details:bool
enable_lora enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint:bool
enable_mfu_metrics:bool enable_mixed_moe_lora_format enable_mm_embeds enable_mm_processor_stats:bool
enable_moe_shared_loras enable_nccl_comm_suspend:bool enable_prefix_caching:bool
enable_prompt_embeds:bool enable_return_routed_experts enable_shm_tensor_arena:bool
enable_sleep_mode:bool enable_tower_connector_lora enable_trace_replay:bool enforce_eager:bool
engram_config eplb_config expert_placement_strategy fail_on_environ_validation
fault_tolerance_config fully_sharded_loras gdn_prefill_backend generation_config:str
gpu_memory_utilization:float>0<=1 hf_config_path:str hf_overrides hf_token ignore_patterns
interleave_mm_strings io_processor_plugin:str ir_op_priority jit_monitor_mode
jit_monitor_verbose:bool kda_decode_backend kda_prefill_backend kernel_config kv_cache_dtype
kv_cache_dtype_skip_layers kv_cache_memory_bytes:int kv_cache_metrics:bool
kv_cache_metrics_sample:float>0<=1 kv_events_config kv_offloading_backend kv_offloading_size:float
kv_sharing_fast_prefill:bool kv_transfer_config language_model_only limit_mm_per_prompt
linear_backend load_format log_config_file log_level logging_config logits_processors logprobs_mode
long_prefill_token_threshold:int long_prefill_token_threshold_adaptive:bool lora_dtype
lora_target_modules mamba_backend mamba_block_size:int>0 mamba_cache_dtype mamba_cache_mode
mamba_cache_philox_rounds mamba_config mamba_ssm_cache_dtype mamba_ssu_algorithm master_addr:str
master_port:int max_cpu_loras max_cudagraph_capture_size max_logprobs:int
max_long_partial_prefills:int>=1 max_lora_cls_labels max_lora_rank max_loras max_model_len:int>=-1
max_num_active_seqs:int>=1 max_num_batched_tokens:int>=1 max_num_partial_prefills:int>=1
max_num_queued_reqs:int>=0 max_num_queued_tokens:int>=0 max_num_scheduled_tokens:int>=1
max_num_seqs:int>=1 max_parallel_loading_workers:int media_io_kwargs mm_device_do_normalize
mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path
mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path mm_encoder_only mm_encoder_tp_mode
mm_hasher_algorithm mm_ipc_gpu_memory_gb mm_processor_cache_gb mm_processor_cache_type
mm_processor_device mm_processor_kwargs mm_shm_cache_max_object_size_mb mm_tensor_ipc model:str
model_class_overrides model_impl model_loader_extra_config model_weights:str moe_backend monokernel
nnodes:int node_rank:int num_gpu_blocks_override:int numa_bind:bool numa_bind_cpus numa_bind_nodes
offload_backend offload_group_size:int>=0 offload_num_in_group:int>=1 offload_params
offload_prefetch_step:int>=0 optimization_level otlp_traces_endpoint:str
override_attention_dtype:str override_generation_config per_request_spec_decode_metrics
performance_mode pipeline_parallel_size:int pooler_config prefill_context_parallel_size:int
prefill_schedule_interval:int>=1 prefix_cache_retention_interval:int>=0 prefix_caching_hash_algo
prefix_match_unit:int>0 profiler_config pt_load_map_location quantization quantization_config
ray_workers_use_nsight:bool reasoning_config reasoning_parser reasoning_parser_plugin
renderer_num_workers:int replayssm_buffer_len:int>0 return_sampling_mask:bool revision:str runner
safetensors_load_strategy safetensors_prefetch_block_size:int>=1
safetensors_prefetch_num_threads:int>=1 scheduler_cls scheduler_reserve_full_isl:bool
scheduling_policy seed:int served_model_name show_hidden_metrics_for_version:str
shutdown_timeout:int>=0 skip_mm_profiling skip_tokenizer_init:bool sleep_mode_backend:str
sleep_mode_offload_cudagraph:bool sleep_preserve_parameter_names sparse_indexer_topk_backend
spec_method spec_model spec_tokens specialize_active_lora speculative_config stream_interval:int>=1
structured_outputs_config swa_bounded_replay:bool tensor_parallel_size:int tokenizer:str
tokenizer_mode tokenizer_revision:str tokens_only trust_remote_code:bool ubatch_size:int
use_fp64_gumbel:bool use_replayssm:bool use_tqdm_on_load:bool video_pruning_method
video_pruning_rate watchdog_config watermark:float>=0.0<1.0 watermark_config weight_transfer_config
worker_cls:str worker_extension_cls:str
"""
