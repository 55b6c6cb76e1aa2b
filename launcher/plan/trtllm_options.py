"""What ``engine_options`` of the engine tensorrt-llm may hold: fields of ``TorchLlmArgs``.

Known here for some versions, so that a wrong name is found before a job waits in a queue; the job
itself asks the TensorRT-LLM that it has. Each version's list was read in its published source,
``tensorrt_llm/llmapi/llm_args.py``, classes ``BaseLlmArgs`` and ``TorchLlmArgs`` (1.0.0, 1.1.0 and
1.2.1: the documentation that NVIDIA publishes with a release holds that file), and for the 1.3 line
in ``tests/unittest/api_stability/references/llm.yaml`` and ``references_committed/llm.yaml``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from launcher.plan.engine_options import Complaint, Names

__all__ = ["OWNED", "VERSIONS", "complaints", "fields_of", "known_options", "with_defaults"]

# What engine.yaml gets from the plan, and the key of the job file that decides it, if any does.
OWNED: Mapping[str, str] = {
    "model": "model",
    "tensor_parallel_size": "parallelism.tp",
    "pipeline_parallel_size": "parallelism.pp",
    "moe_expert_parallel_size": "parallelism.ep",
    "expert_parallel_size": "parallelism.ep",
    # It is tp / ep (tensorrt_llm/mapping.py: moe_tp_size * moe_ep_size == tp_size).
    "moe_tensor_parallel_size": "parallelism.ep",
    "moe_cluster_parallel_size": "parallelism.ep",
    # Each of its ranks is a GPU more, of which the plan knows nothing.
    "context_parallel_size": "parallelism.tp",
    "cp_config": "parallelism.tp",
    "gpus_per_node": "resources.gpus_per_node",
    # The ranks are started by MPI, and driven by the PyTorch backend's LLM.
    "backend": "",
    "orchestrator_type": "",
    "mpi_session": "",
    "_mpi_session": "",
    # Always on: how the engine gets on is read from them.
    "enable_iter_perf_stats": "",
}

_QUANTISED = (
    "use a checkpoint whose weights are quantised so: TensorRT-LLM reads it from the checkpoint"
)
_COUNTED = "remove it: parallelism and replicas of the job file say how many processes there are"
_OTHER_BACKEND = "remove it: it belongs to the TensorRT backend, and this is the PyTorch one"

_MEANT: Mapping[str, str] = {
    "batch_size": "write max_batch_size",
    "batching_type": _OTHER_BACKEND,
    "build_config": _OTHER_BACKEND,
    "calib_config": _OTHER_BACKEND,
    "capacity_scheduler_policy": "write scheduler_config: {capacity_scheduler_policy: …}",
    "chat_template": "set input.messages of the job file: the checkpoint's own template is used",
    "cp_size": "set parallelism.tp of the job file",
    "cuda_graph_batch_sizes": "write cuda_graph_config: {batch_sizes: […]}",
    "cuda_graph_padding_enabled": "write cuda_graph_config: {enable_padding: …}",
    "data_parallel_size": "set replicas of the job file",
    "dp": "set replicas of the job file",
    "dp_size": "set replicas of the job file",
    "enable_block_reuse": "write kv_cache_config: {enable_block_reuse: …}",
    "enable_build_cache": _OTHER_BACKEND,
    "enable_chunked_context": "write enable_chunked_prefill",
    "enable_expert_parallel": "set parallelism.ep of the job file",
    "enable_prefix_caching": "write kv_cache_config: {enable_block_reuse: …}",
    "enforce_eager": "write cuda_graph_config: null",
    "ep": "set parallelism.ep of the job file",
    "ep_size": "set parallelism.ep of the job file",
    "extended_runtime_perf_knob_config": _OTHER_BACKEND,
    "fast_build": _OTHER_BACKEND,
    "free_gpu_memory_fraction": "write kv_cache_config: {free_gpu_memory_fraction: …}",
    "gpu_memory_utilization": "write kv_cache_config: {free_gpu_memory_fraction: …}",
    "kv_cache_dtype": "write kv_cache_config: {dtype: …}",
    "kv_cache_free_gpu_mem_fraction": "write kv_cache_config: {free_gpu_memory_fraction: …}",
    "kv_cache_free_gpu_memory_fraction": "write kv_cache_config: {free_gpu_memory_fraction: …}",
    "logprobs": "set sampling.logprobs of the job file",
    "max_length": "write max_seq_len",
    "max_model_len": "write max_seq_len",
    "max_new_tokens": "set sampling.max_tokens of the job file",
    "max_num_batched_tokens": "write max_num_tokens",
    "max_num_seqs": "write max_batch_size",
    "max_output_len": "set sampling.max_tokens of the job file",
    "max_tokens": "set sampling.max_tokens of the job file",
    "mem_fraction_static": "write kv_cache_config: {free_gpu_memory_fraction: …}",
    "moe_backend": "write moe_config: {backend: …}",
    "num_gpus": _COUNTED,
    "num_nodes": _COUNTED,
    "num_workers": _COUNTED,
    "pp": "set parallelism.pp of the job file",
    "pp_size": "set parallelism.pp of the job file",
    "quant_algo": _QUANTISED,
    "quant_config": _QUANTISED,
    "quantization": _QUANTISED,
    "scheduler_policy": "write scheduler_config: {capacity_scheduler_policy: …}",
    "seed": "set sampling.seed of the job file",
    "stop": "set sampling.stop of the job file",
    "temperature": "set sampling.temperature of the job file",
    "tokens_per_block": "write kv_cache_config: {tokens_per_block: …}",
    "top_k": "set sampling.top_k of the job file",
    "top_p": "set sampling.top_p of the job file",
    "tp": "set parallelism.tp of the job file",
    "tp_size": "set parallelism.tp of the job file",
    "use_cuda_graph": "write cuda_graph_config: {…}, or null for none",
    "workers": _COUNTED,
    "workspace": _OTHER_BACKEND,
    "world_size": _COUNTED,
}

_NAMES = Names(
    owned={name: f"set {key}" if key else "" for name, key in OWNED.items()},
    meant=_MEANT,
    kind="a field of TensorRT-LLM's TorchLlmArgs",
)

# Of `dtype`: what is computed in. llm_args.py lowers `auto` to float16 below compute capability 8.
_COMPUTED_IN = ("auto", "bfloat16", "float16", "float32")
# Arguments that hold others, which a plain value in their place would hide.
_NESTED = (
    "attention_dp_config",
    "cuda_graph_config",
    "kv_cache_config",
    "moe_config",
    "scheduler_config",
    "torch_compile_config",
)
_MAY_BE_NULL = ("attention_dp_config", "cuda_graph_config", "torch_compile_config")
_OR_NULL = (dict, type(None))
# Of sequences and of tokens; the first two have a value in every engine.yaml.
_COUNTS = ("max_batch_size", "max_num_tokens", "max_beam_width", "max_input_len", "max_seq_len")
_ALWAYS_COUNTED = _COUNTS[:2]
# What the names of all switches begin with.
_SWITCHES = ("enable_", "disable_")


def complaints(given: Mapping[str, Any], known: Collection[str], where: str) -> list[Complaint]:
    """What is wrong with ``engine_options``: names, and values that mean another option.

    Parameters
    ----------
    known
        What the engine takes.
    where
        The TensorRT-LLM that takes them, in words, such as ``TensorRT-LLM 1.2.1``.
    """
    free = {n: value for n, value in given.items() if n in known and n not in OWNED}
    return [*_NAMES.complaints(given, known, where), *_wrong_values(free)]


def _wrong_values(given: Mapping[str, Any]) -> list[Complaint]:
    found = []
    dtype = given.get("dtype", "auto")
    if dtype not in _COMPUTED_IN:
        message = (
            f"engine option `dtype` is {dtype!r}; it is what is computed in, "
            f"one of {', '.join(_COMPUTED_IN)}, and no quantisation"
        )
        better = f"remove it and {_QUANTISED}; kv_cache_config: {{dtype: fp8}} is the KV cache's"
        found.append(Complaint("dtype", message, better))
    for name, value in given.items():
        if (right := _right(name, value)) is not None:
            found.append(Complaint(name, f"engine option `{name}` is {value!r}", right))
    return found


def _right(name: str, value: Any) -> str | None:
    """What to write in the place of a value that is of another kind than its argument."""
    if name in _NESTED and not isinstance(value, _OR_NULL if name in _MAY_BE_NULL else dict):
        return f"write {name}: {{option: value}}, as it holds options of its own"
    if name == "kv_cache_config" and not _is_share(value.get("free_gpu_memory_fraction")):
        return "write free_gpu_memory_fraction as a share above 0 and up to 1"
    if name in _COUNTS and (value is not None or name in _ALWAYS_COUNTED):
        whole = type(value) is int and value > 0
        return None if whole else "write a whole number above 0, or remove it"
    if name.startswith(_SWITCHES) and not isinstance(value, (bool, type(None))):
        return "write true or false, without quotes"
    return None


def _is_share(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value <= 1)


# What a batch run wants where the user says nothing else. TensorRT-LLM's own defaults differ
# between versions, and some are left to what the calling process happens to see.
_DEFAULTS: Mapping[str, Any] = {
    # At once in a step. Its own 2048 costs a sampler memory for 2048 sequences of the longest
    # length, and a step of 512 keeps the GPUs of most models busy.
    "max_batch_size": 512,
    "max_num_tokens": 8192,
    # Without it a prompt of more than max_num_tokens is refused (llm.py, _check_arguments).
    "enable_chunked_prefill": True,
    # A request that is running is never thrown out to be computed again.
    "scheduler_config": {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"},
    "kv_cache_config": {
        # Graphs are captured after the cache has taken its share; 0.9, its own default, leaves
        # them little on GPUs whose weights take most.
        "free_gpu_memory_fraction": 0.85,
        # Rows of one job share the beginning of their prompts.
        "enable_block_reuse": True,
        # As the checkpoint says (hf_quant_config.json), and otherwise as is computed.
        "dtype": "auto",
    },
    # A step of 37 sequences runs the graph of 40. Its own graphs end at 128 sequences.
    "cuda_graph_config": {"enable_padding": True},
}


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over what this project asks for, key by key in options that hold others."""
    merged = {**_DEFAULTS, **given}
    for name, default in _DEFAULTS.items():
        own = given.get(name)
        if isinstance(default, dict) and isinstance(own, dict):
            merged[name] = {**default, **own}
    return merged


def known_options() -> frozenset[str]:
    """What at least one of `VERSIONS` takes."""
    return frozenset().union(*map(fields_of, VERSIONS))


def fields_of(version: str) -> frozenset[str]:
    """The fields of ``TorchLlmArgs`` in one of `VERSIONS`."""
    fields = set(_FIELDS.split())
    for name in VERSIONS[: VERSIONS.index(version) + 1]:
        gone, came = _CHANGES.get(name, ("", ""))
        fields = fields - set(gone.split()) | set(came.split())
    return frozenset(fields)


VERSIONS = ("1.0.0", "1.1.0", "1.2.1", "1.3.0rc")
# Those of the first version.
_FIELDS = """
allreduce_strategy attention_dp_config attn_backend backend batched_logits_processor build_config
cache_transceiver_config checkpoint_format checkpoint_loader context_parallel_size cp_config
cuda_graph_config decoding_config disable_overlap_scheduler dtype enable_attention_dp
enable_autotuner enable_chunked_prefill enable_iter_perf_stats enable_iter_req_stats
enable_layerwise_nvtx_marker enable_lora enable_min_latency enable_mixed_sampler
enable_trtllm_sampler fail_fast_on_attention_window_too_large force_dynamic_quantization
garbage_collection_gen0_threshold gather_generation_logits gpus_per_node guided_decoding_backend
iter_stats_max_iterations kv_cache_config load_format lora_config max_batch_size max_beam_width
max_input_len max_num_tokens max_seq_len model moe_cluster_parallel_size moe_config
moe_expert_parallel_size moe_tensor_parallel_size mpi_session num_postprocess_workers
peft_cache_config pipeline_parallel_size postprocess_tokenizer_dir print_iter_log reasoning_parser
request_stats_max_iterations revision scheduler_config skip_tokenizer_init speculative_config
stream_interval tensor_parallel_size tokenizer tokenizer_mode tokenizer_revision
torch_compile_config trust_remote_code
"""
# By version what went and what came.
_CHANGES = {
    "1.1.0": (
        "enable_mixed_sampler enable_trtllm_sampler",
        """
        batch_wait_max_tokens_ratio batch_wait_timeout_iters batch_wait_timeout_ms
        enable_lm_head_tp_in_adp kv_connector_config mm_encoder_only perf_metrics_max_requests
        return_perf_metrics sampler_type
        """,
    ),
    "1.2.1": (
        "build_config",
        """
        custom_tokenizer disable_flashinfer_sampling enable_sleep env_overrides max_stats_len
        nvfp4_gemm_config orchestrator_type otlp_traces_endpoint pp_partition ray_placement_config
        ray_worker_extension_cls sampler_force_async_worker sparse_attention_config
        """,
    ),
    "1.3.0rc": (
        "enable_sleep fail_fast_on_attention_window_too_large",
        """
        dwdp_config enable_energy_metrics gms_mode gms_socket_path gms_tag
        layer_wise_benchmarks_config model_kwargs mx_server_url prometheus_metrics_config
        ray_worker_nsight_options sleep_config telemetry_config use_cute_dsl_blockscaling_bmm
        use_cute_dsl_blockscaling_mm video_pruning_rate
        """,
    ),
}
