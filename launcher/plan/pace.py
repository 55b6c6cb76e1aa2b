"""How fast a replica is by the models of memory and cost, and how long it takes to start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from launcher.models.shapes import ModelShape
from launcher.plan.constants import ENGINE_PACE
from launcher.plan.cost import Cost, Serving, Workload, cost
from launcher.plan.engine_memory import cuda_bytes, engine_memory
from launcher.plan.machine import find_machine
from launcher.plan.memory import Fit, fit
from launcher.plan.outlook import Range, Speed, Work
from launcher.plan.types import Cut
from launcher.spec.site import Fabric, Partition

__all__ = ["MODELLED", "Replica", "modelled", "start"]

MODELLED = frozenset(ENGINE_PACE)
"""The engines of which something is known."""
_LOAD_BYTES_S = (0.33e9, 1.7e9, 9e9)
"""What a node reads of a checkpoint in a second. 15 GB in 48 s by the safetensors loader from one
SSD (NVIDIA, "Reducing Cold Start Latency for LLM Inference with NVIDIA Run:ai Model Streamer");
9 GB/s by a streaming loader from an NFS server over RDMA (run-ai/runai-model-streamer, issue 135);
between them their geometric mean, which is a guess."""

_ENGINE_S: Mapping[str, Range] = {
    "vllm": Range(33, 60, 138),
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
    machine = find_machine(gpus, _with_a_port(replica.partition.fabric), replica.cut)
    if machine is None:
        raise ValueError(f"the GPU {gpus.model} is not known, or not which of its variants")
    prompt = max(1.0, prompt_tokens)
    total = cuda_bytes(gpus.model, gpus.memory or machine.gpu.memory_gb * 10**9)
    engine = engine_memory(
        replica.engine,
        replica.shape,
        replica.options,
        gpu_bytes=total,
        gpu_model=gpus.model,
        env=replica.env,
    )
    longest = round(prompt), max(1, round(new_tokens))
    held = fit(replica.shape, replica.cut, engine, total, prompt=longest[0], output=longest[1])
    if held is None:
        raise ValueError(f"what {replica.shape.name} takes of a GPU is not known")
    serving = Serving(
        engine=replica.engine,
        kv_tokens=_kv_tokens(held, sum(longest)),
        max_batch_size=engine.sequences,
        max_num_tokens=engine.tokens,
        kv_element_bytes=engine.kv_bits / 8,
        attention_dp=bool(replica.options.get("enable_attention_dp")),
    )
    asked = Workload(
        prompt_tokens=prompt,
        new_tokens=new_tokens,
        most_new_tokens=work.most_new_tokens,
        rows=rows,
    )
    return cost(replica.shape, replica.cut, machine, asked, serving)


def _kv_tokens(held: Fit, length: int) -> float:
    """Tokens of sequences of ``length`` that the cache holds, windows as they are."""
    return min(
        stage.kv_bytes * length / each if (each := stage.sequence_bytes(length)) else math.inf
        for stage in held.stages
    )


def _with_a_port(fabric: Fabric | None) -> Fabric | None:
    """Where nobody says how many ports a node has, it has one."""
    if fabric is None or fabric.nics or any(rail.gpus for rail in fabric.rails):
        return fabric
    return msgspec.structs.replace(fabric, nics=1)


def start(engine: str, weights_bytes: float, nodes: int) -> Range:
    """Seconds from a job's start to its first row; ``nodes`` share the weights of a replica."""
    own, each = _ENGINE_S[engine], weights_bytes / nodes
    slow, likely, fast = _LOAD_BYTES_S
    return Range(own.least + each / fast, own.likely + each / likely, own.most + each / slow)
