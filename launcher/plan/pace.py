"""How fast a replica is by the models of memory and cost, and how long it takes to start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.models.shapes import ModelShape
from launcher.plan.checks import nvlink_domain
from launcher.plan.collectives import Links
from launcher.plan.constants import Gpu, find_gpu
from launcher.plan.cost import Cost, Machine, Serving, Workload, cost
from launcher.plan.engine_memory import ENGINES, cuda_bytes, engine_memory
from launcher.plan.memory import fit
from launcher.plan.outlook import Range, Speed, Work
from launcher.plan.types import Cut
from launcher.spec.site import Fabric, Gpus, Partition

__all__ = ["MODELLED", "Replica", "modelled", "start"]

MODELLED = frozenset(ENGINES)
"""The engines of which something is known."""
# One direction of one link (NVLink generations of V100, A100, H100 and B200).
_NVLINK_BYTES_S = {"nvlink2": 25e9, "nvlink3": 25e9, "nvlink4": 25e9, "nvlink5": 50e9}

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
    per_node
        Its ranks on one node.
    """

    shape: ModelShape
    cut: Cut
    engine: str
    options: Mapping[str, Any]
    env: Mapping[str, str]
    partition: Partition
    per_node: int


def modelled(replica: Replica, work: Work, replicas: int) -> Speed:
    """How fast ``replica`` is with its share of ``work``.

    Raises
    ------
    ValueError
        What of it is not known, in words.
    """
    few, likely, many = (
        _cost(replica, work, new, math.ceil(work.rows.likely / replicas))
        for new in (work.new_tokens.least, work.new_tokens.likely, work.new_tokens.most)
    )
    row_s = sorted(
        (
            work.new_tokens.least / few.tokens_s_range[1],
            work.new_tokens.likely / likely.tokens_s,
            work.new_tokens.most / many.tokens_s_range[0],
        )
    )
    return Speed(
        tokens_s=Range(likely.tokens_s_range[0], likely.tokens_s, likely.tokens_s_range[1]),
        row_s=Range(*row_s),
        longest_s=likely.prefill_s + work.most_new_tokens * likely.decode_s,
        source="by the cost model",
    )


def _cost(replica: Replica, work: Work, new_tokens: float, rows: int) -> Cost:
    gpus = replica.partition.gpus
    if gpus is None:
        raise ValueError("only GPUs are modelled")
    gpu = find_gpu(gpus.model, gpus.memory, gpus.link)
    if gpu is None:
        raise ValueError(f"the GPU {gpus.model} is not known, or not which of its variants")
    prompt = work.prompt_tokens.likely
    total = cuda_bytes(gpus.model, gpus.memory or gpu.memory_gb * 10**9)
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
        kv_tokens=held.kv_tokens,
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
    machine = Machine(gpu=gpu, links=_links(replica, gpus, gpu))
    return cost(replica.shape, replica.cut, machine, asked, serving)


def _links(replica: Replica, gpus: Gpus, gpu: Gpu) -> Links:
    """What joins the GPUs of a replica; on boards without a switch a pair has some links only."""
    domain = nvlink_domain(gpus.topology, gpus.per_node)
    apart = gpus.link == "pcie" or (domain is not None and replica.cut.tp > domain)
    nvlink = gpu.nvlink_bytes_s is not None and not apart
    rate = gpu.nvlink_bytes_s if nvlink else gpu.pcie_bytes_s
    assert rate is not None  # noqa: S101 - `nvlink` says so
    if nvlink and gpus.links is not None and gpus.link in _NVLINK_BYTES_S:
        rate = min(rate, gpus.links * _NVLINK_BYTES_S[gpus.link] * max(1, replica.cut.tp - 1))
    return Links(
        gpu_bytes_s=rate,
        nvlink=nvlink,
        node_bytes_s=_node_bytes_s(replica.partition.fabric),
        per_node=replica.per_node,
    )


def _node_bytes_s(fabric: Fabric | None) -> float | None:
    """Of all ports of a node; where nobody says how many there are, of one."""
    if fabric is None or fabric.rate is None:
        return None
    ports = sum(bool(rail.gpus) for rail in fabric.rails) or fabric.nics or 1
    return ports * fabric.rate / 8 * 1e9


def start(engine: str, weights_bytes: float, nodes: int) -> Range:
    """Seconds from a job's start to its first row; ``nodes`` share the weights of a replica."""
    own, each = _ENGINE_S[engine], weights_bytes / nodes
    slow, likely, fast = _LOAD_BYTES_S
    return Range(own.least + each / fast, own.likely + each / likely, own.most + each / slow)
