"""``engine.yaml`` of a plan: every argument of TensorRT-LLM's ``LLM``, once.

Names are those of ``TorchLlmArgs`` (``tensorrt_llm/llmapi/llm_args.py``; all of them are there in
1.0.0, 1.1.0, 1.2.1 and the 1.3 line). The job reads this file and no other source of arguments.
"""

from __future__ import annotations

import json
from typing import Any

from launcher.plan.trtllm_options import with_defaults
from launcher.plan.types import Plan

__all__ = ["engine_arguments", "engine_file"]


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
        **_with_graphs(with_defaults(plan.engine_options)),
    }


def _with_graphs(arguments: dict[str, Any]) -> dict[str, Any]:
    """Graphs up to the largest step, where the user has neither listed them nor turned them off."""
    graphs = arguments["cuda_graph_config"]
    # A list and a maximum exclude each other (llm_args.py, CudaGraphConfig).
    if graphs is not None and not {"batch_sizes", "max_batch_size"} & graphs.keys():
        graphs = {**graphs, "max_batch_size": arguments["max_batch_size"]}
    return {**arguments, "cuda_graph_config": graphs}
