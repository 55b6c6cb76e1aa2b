"""How fast a replica is by the models of memory and cost, and how long it takes to start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.models.shapes import ModelShape
from launcher.plan.constants import ENGINE_PACE, find_gpu
from launcher.plan.cost import Cost, Serving, Workload, cost
from launcher.plan.engine_memory import EngineMemory, cuda_bytes, engine_memory
from launcher.plan.machine import find_machine
from launcher.plan.memory import fit
from launcher.plan.outlook import Range, Speed, Work
from launcher.plan.types import Cut
from launcher.plan.workload import ANSWER_SPREAD
from launcher.spec.site import Fabric, Gpus, Partition

__all__ = ["MODELLED", "Replica", "modelled", "replica_cost", "start"]

MODELLED = frozenset(ENGINE_PACE)
"""The engines of which something is known."""
_LOAD_BYTES_S = (0.33e9, 1.7e9, 9e9)
"""What a node reads of a checkpoint in a second. 15 GB in 48 s by the safetensors loader from one
SSD (NVIDIA, "Reducing Cold Start Latency for LLM Inference with NVIDIA Run:ai Model Streamer");
9 GB/s by a streaming loader from an NFS server over RDMA (run-ai/runai-model-streamer, issue 135);
between them their geometric mean, which is a guess."""

_ENGINE_S: Mapping[str, Range] = {
    "vllm": Range(33, 60, 163),
    "tensorrt-llm": Range(33, 90, 300),
    "transformers": Range(5, 20, 60),
    "echo": Range(0, 1, 5),
}
"""From the start of the script to the first row, with weights that were near. vLLM: docs/results,
1.1B and 8B, with and without compiled kernels. The others are guesses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica: what it is cut from, by what, on what.

    Attributes
    ----------
    env
        The engine's environment.
    """

    shape: ModelShape
    cut: Cut
    nodes: int
    engine: str
    options: Mapping[str, Any]
    env: Mapping[str, str]
    partition: Partition


def modelled(replica: Replica, work: Work, replicas: int) -> Speed:
    """How fast ``replica`` is with its share of ``work``.

    Raises
    ------
    ValueError
        What of it is not known, in words.
    """
    new, prompt, rows = work.new_tokens, work.prompt_tokens, work.rows.likely / replicas
    few, likely, many = (
        _cost(replica, work, *lengths, math.ceil(rows))
        for lengths in (
            (prompt.least, new.least),
            (prompt.likely, new.likely),
            (prompt.most, new.most),
        )
    )
    row_s = sorted(
        (
            new.least / few.tokens_s_range[1],
            new.likely / likely.tokens_s,
            new.most / many.tokens_s_range[0],
        )
    )
    return Speed(
        tokens_s=Range(likely.tokens_s_range[0], likely.tokens_s, likely.tokens_s_range[1]),
        row_s=Range(*row_s),
        longest_s=likely.prefill_s + work.most_new_tokens * likely.decode_s,
        source="by the cost model",
    )


def _cost(replica: Replica, work: Work, prompt_tokens: float, new_tokens: float, rows: int) -> Cost:
    gpus = replica.partition.gpus
    if gpus is None:
        raise ValueError("only GPUs are modelled")
    memory = engine_memory(
        replica.engine,
        replica.shape,
        replica.options,
        gpu_bytes=cuda_bytes(gpus.model, memory_of(gpus)),
        gpu_model=gpus.model,
        env=replica.env,
    )
    asked = Workload(
        prompt_tokens=max(1.0, prompt_tokens),
        new_tokens=new_tokens,
        most_new_tokens=work.most_new_tokens,
        spread=ANSWER_SPREAD,
        rows=rows,
    )
    return replica_cost(
        replica.shape,
        replica.cut,
        replica.nodes,
        replica.engine,
        memory,
        gpus,
        replica.partition.fabric,
        asked,
    )


def replica_cost(
    shape: ModelShape,
    cut: Cut,
    nodes: int,
    engine: str,
    memory: EngineMemory,
    gpus: Gpus,
    fabric: Fabric | None,
    work: Workload,
) -> Cost:
    """What a replica on ``nodes`` nodes does with ``work``, by the models of memory and cost.

    Raises
    ------
    ValueError
        What of it is not known, in words.
    """
    machine = find_machine(gpus, fabric, cut, nodes)
    if machine is None:
        raise ValueError(f"the GPU {gpus.model} is not known, or not which of its variants")
    held = fit(
        shape,
        cut,
        memory,
        cuda_bytes(gpus.model, memory_of(gpus)),
        prompt=round(work.prompt_tokens),
        output=round(work.new_tokens),
    )
    if held is None:
        raise ValueError(f"what {shape.name} takes of a GPU is not known")
    serving = Serving(
        engine=engine,
        kv_tokens=held.kv_tokens,
        kv_element_bytes=memory.kv_bits / 8,
        max_batch_size=memory.sequences,
        max_num_tokens=memory.tokens,
        attention_dp=memory.attention_dp,
    )
    return cost(shape, cut, machine, work, serving)


def memory_of(gpus: Gpus) -> int:
    """Bytes that a GPU is sold with, by the site or else by its name; 0 where neither tells."""
    known = find_gpu(gpus.model, None, gpus.link)
    return int(gpus.memory or 0) or (known.memory_gb * 10**9 if known else 0)


def start(engine: str, weights_bytes: float, nodes: int) -> Range:
    """Seconds from a job's start to its first row; ``nodes`` share the weights of a replica."""
    own, each = _ENGINE_S[engine], weights_bytes / nodes
    slow, likely, fast = _LOAD_BYTES_S
    return Range(own.least + each / fast, own.likely + each / likely, own.most + each / slow)
