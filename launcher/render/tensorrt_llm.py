"""``engine.yaml`` of a plan: every argument of TensorRT-LLM's ``LLM``, once.

Names are those of ``TorchLlmArgs`` (``tensorrt_llm/llmapi/llm_args.py``; all of them are there in
1.0.0, 1.1.0, 1.2.1 and the 1.3 line). The job reads this file and no other source of arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from launcher.plan.types import Plan

__all__ = ["engine_arguments", "engine_file"]

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


def engine_file(plan: Plan) -> str:
    """The text of the file: JSON, which is YAML, so that a job needs no YAML library."""
    return json.dumps(engine_arguments(plan), indent=2, ensure_ascii=False) + "\n"


def engine_arguments(plan: Plan) -> dict[str, Any]:
    """The arguments: the plan's, and over the defaults the user's.

    ``gpus_per_node`` is explicit because its default is whatever the calling process happens to
    see; a replica has as many ranks on each of its nodes.
    """
    cut = plan.layout.cut
    return {
        "model": plan.model_path or plan.model,
        "backend": "pytorch",
        "tensor_parallel_size": cut.tp,
        "pipeline_parallel_size": cut.pp,
        "moe_expert_parallel_size": cut.ep,
        "gpus_per_node": max(p.local_rank for p in plan.layout.placements) + 1,
        "enable_iter_perf_stats": True,
        **_with_graphs(_over(_DEFAULTS, plan.engine_options)),
    }


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``defaults``, key by key in those that hold others."""
    merged = {**defaults, **given}
    for name, default in defaults.items():
        own = given.get(name)
        if isinstance(default, dict) and isinstance(own, dict):
            merged[name] = {**default, **own}
    return merged


def _with_graphs(arguments: dict[str, Any]) -> dict[str, Any]:
    """Graphs up to the largest step, where the user has neither listed them nor turned them off."""
    graphs = arguments["cuda_graph_config"]
    # A list and a maximum exclude each other (llm_args.py, CudaGraphConfig).
    if graphs is not None and not {"batch_sizes", "max_batch_size"} & graphs.keys():
        graphs = {**graphs, "max_batch_size": arguments["max_batch_size"]}
    return {**arguments, "cuda_graph_config": graphs}
