"""What hardware can do, by its vendors' data sheets, and what of that engines were seen to reach.

Figures of data sheets are without structured sparsity. FP16 stands for BF16 where a GPU has no
BF16 (V100, T4): the rate is the same. A rate of None means that the GPU has no such units.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ACTIVATION_PASSES",
    "CARD_FP4_SHARE",
    "CPU_ERROR",
    "ENGINE_PACE",
    "EP_UNEVENNESS",
    "EXPERTS_SHARE",
    "FABRIC_SHARE",
    "GPUS",
    "HBM_SHARE",
    "HOP_S",
    "MATH_SHARE",
    "MODEL_ERROR",
    "NVLINK_BYTES_S",
    "PCIE_SHARE",
    "PIPELINE_EVENNESS",
    "ROUTING_PASSES",
    "WIDENED_SHARE",
    "Gpu",
    "Pace",
    "Precision",
    "find_gpu",
]

Precision = Literal["bf16", "fp8", "fp4"]
_GB, _TERA = 1e9, 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU.

    Attributes
    ----------
    family
        What site files call it, such as ``a100``.
    memory_gb
        Nominal memory in 10^9 bytes, by which variants of a family are told apart.
    hbm_bytes_s
        Bandwidth of its memory.
    flops
        Dense matrix operations a second by precision; those it lacks are absent.
    nvlink_bytes_s
        One direction, all links of one GPU; None where it has none.
    pcie_bytes_s
        One direction of its x16 slot.
    card
        A PCIe card, not a module (SXM, superchip).
    """

    family: str
    memory_gb: int
    hbm_bytes_s: float
    flops: Mapping[Precision, float]
    nvlink_bytes_s: float | None
    pcie_bytes_s: float
    card: bool = False


def _gpu(  # noqa: PLR0913, PLR0917 - a row of the table below
    family: str,
    memory_gb: int,
    hbm_gb_s: float,
    bf16: float,
    fp8: float | None,
    fp4: float | None,
    nvlink_gb_s: float | None,
    pcie_gb_s: float,
    form: Literal["module", "card"],
) -> Gpu:
    rates: dict[Precision, float | None] = {"bf16": bf16, "fp8": fp8, "fp4": fp4}
    return Gpu(
        family=family,
        memory_gb=memory_gb,
        hbm_bytes_s=hbm_gb_s * _GB,
        flops={name: rate * _TERA for name, rate in rates.items() if rate is not None},
        nvlink_bytes_s=None if nvlink_gb_s is None else nvlink_gb_s * _GB,
        pcie_bytes_s=pcie_gb_s * _GB,
        card=form == "card",
    )


# Bytes a second of PCIe x16, one direction, by generation (PCI-SIG, after 128b/130b encoding).
_PCIE3, _PCIE4, _PCIE5, _PCIE6 = 15.75, 31.5, 63.0, 121.0
NVLINK_BYTES_S = {"nvlink2": 25e9, "nvlink3": 25e9, "nvlink4": 25e9, "nvlink5": 50e9}
"""One direction of one link (NVIDIA's white papers of Volta, Ampere, Hopper and Blackwell)."""

# family, memory GB, HBM GB/s, TFLOP/s in BF16, FP8, FP4, NVLink GB/s a direction, PCIe GB/s
GPUS: tuple[Gpu, ...] = (
    # NVIDIA V100 data sheet, January 2020; T4 data sheet, 2019
    _gpu("v100", 16, 900, 125, None, None, 150, _PCIE3, "module"),
    _gpu("v100", 32, 900, 125, None, None, 150, _PCIE3, "module"),
    _gpu("v100", 16, 900, 112, None, None, None, _PCIE3, "card"),
    _gpu("v100", 32, 900, 112, None, None, None, _PCIE3, "card"),
    _gpu("t4", 16, 320, 65, None, None, None, _PCIE3, "card"),
    # A100 data sheet, June 2021; the 40 GB card and module: data sheet of November 2020.
    # 64 GB is Leonardo's own module: Turisini and others, "LEONARDO", arXiv 2307.16885, table 1,
    # its matrix rate is that of 108 SMs times 124 / 108.
    _gpu("a100", 40, 1555, 312, None, None, 300, _PCIE4, "module"),
    _gpu("a100", 64, 1640, 358, None, None, 300, _PCIE4, "module"),
    _gpu("a100", 80, 2039, 312, None, None, 300, _PCIE4, "module"),
    _gpu("a100", 40, 1555, 312, None, None, 300, _PCIE4, "card"),
    _gpu("a100", 80, 1935, 312, None, None, 300, _PCIE4, "card"),
    # A30, A10 and A40 data sheets, 2021 and 2022; a bridge joins two A30 or A40
    _gpu("a30", 24, 933, 165, None, None, 100, _PCIE4, "card"),
    _gpu("a10", 24, 600, 125, None, None, None, _PCIE4, "card"),
    _gpu("a40", 48, 696, 149.7, None, None, 56.25, _PCIE4, "card"),
    # L4, L40 and L40S data sheets, 2023; Ada architecture white paper 2.02 (RTX 4090)
    _gpu("l4", 24, 300, 121, 242, None, None, _PCIE4, "card"),
    _gpu("l40", 48, 864, 181, 362, None, None, _PCIE4, "card"),
    _gpu("l40s", 48, 864, 362, 733, None, None, _PCIE4, "card"),
    _gpu("rtx-4090", 24, 1008, 165.2, 330.3, None, None, _PCIE4, "card"),
    # H100 and H100 NVL data sheets, 2024. 64 GB is MareNostrum 5's own module: four stacks of
    # HBM2e where the card of 2000 GB/s has five, so its bandwidth here is derived, not stated.
    _gpu("h100", 64, 1600, 989, 1979, None, 450, _PCIE5, "module"),
    _gpu("h100", 80, 3350, 989, 1979, None, 450, _PCIE5, "module"),
    _gpu("h100", 80, 2000, 756, 1513, None, 300, _PCIE5, "card"),
    _gpu("h100", 94, 3900, 835, 1671, None, 300, _PCIE5, "card"),
    # GH200 data sheet, 2024: HBM3 and HBM3e
    _gpu("gh200", 96, 4000, 990, 1979, None, 450, _PCIE5, "module"),
    _gpu("gh200", 144, 4900, 990, 1979, None, 450, _PCIE5, "module"),
    # H200 data sheet, 2024: SXM and NVL
    _gpu("h200", 141, 4800, 989, 1979, None, 450, _PCIE5, "module"),
    _gpu("h200", 141, 4800, 835, 1671, None, 450, _PCIE5, "card"),
    # Blackwell data sheet, 2025 (HGX B200, HGX B300, GB200 NVL72, GB300 NVL72); RTX PRO 6000
    # Blackwell Server Edition data sheet, 2025
    _gpu("b200", 180, 7700, 2250, 4500, 9000, 900, _PCIE5, "module"),
    _gpu("gb200", 186, 8000, 2500, 5000, 10000, 900, _PCIE5, "module"),
    _gpu("b300", 270, 7700, 2250, 4500, 13500, 900, _PCIE6, "module"),
    _gpu("gb300", 279, 8000, 2500, 5000, 15000, 900, _PCIE6, "module"),
    _gpu("rtx-pro-6000", 96, 1597, 500, 1000, 2000, None, _PCIE5, "card"),
)
# A site's figure may be nominal, in GiB, or what is usable.
_MEMORY_TOLERANCE = 0.15


def find_gpu(model: str, memory_bytes: int | None = None, link: str | None = None) -> Gpu | None:
    """The GPU that a site file calls ``model``; None where it is not known, or which is meant.

    Parameters
    ----------
    model
        Such as ``h100``, ``NVIDIA H100 80GB HBM3`` or ``a100-sxm4-40gb``.
    memory_bytes, link
        ``gpus.memory`` and ``gpus.link`` of the site file. A link of ``pcie`` means cards.

    >>> find_gpu("a100") is None, find_gpu("a100", 40 * 10**9).hbm_bytes_s
    (True, 1555000000000.0)
    """
    name = re.sub(r"[\s_]+", "-", model.lower()).removeprefix("nvidia-")
    name = name.removeprefix("geforce-").removeprefix("tesla-")
    families = [gpu.family for gpu in GPUS if re.match(rf"{gpu.family}(?![a-z0-9])", name)]
    if not families:
        return None
    found = [gpu for gpu in GPUS if gpu.family == max(families, key=len)]
    card = link == "pcie" or "pcie" in name or "nvl" in name.split("-")
    found = [gpu for gpu in found if gpu.card == card] or found
    size = re.search(r"(\d+)gb", name)
    wanted = memory_bytes / _GB if memory_bytes else int(size[1]) if size else None
    if wanted is not None:
        nearest = min(abs(gpu.memory_gb - wanted) for gpu in found)
        if nearest > _MEMORY_TOLERANCE * wanted:
            return None
        found = [gpu for gpu in found if abs(gpu.memory_gb - wanted) == nearest]
    alike = {(gpu.hbm_bytes_s, *gpu.flops.values()) for gpu in found}
    return found[0] if len(alike) == 1 else None


HBM_SHARE = 0.8
"""Share of the memory bandwidth that reading weights and KV cache reaches.

aiconfigurator, systems/h100_sxm.yaml and its kin: ``mem_bw_empirical_scaling_factor: 0.8``."""

# From here on down to MODEL_ERROR: fitted, if no source stands there; on which runs and how well
# the rest is met is in docs/reference/cost-model.md.
MATH_SHARE: Mapping[Precision, float] = {"bf16": 0.72, "fp8": 0.62, "fp4": 0.46}
"""Share of the matrix rate that products with thousands of tokens reach."""

CARD_FP4_SHARE = 0.75
"""`MATH_SHARE` of FP4 on cards, whose units are slower for the same memory and power."""

EXPERTS_SHARE = 0.5
"""Of `MATH_SHARE`, in products with experts: each gets a part of the tokens."""

WIDENED_SHARE = 0.6
"""Of `MATH_SHARE`, where weights of four or eight bits are widened in the kernel."""

EP_UNEVENNESS = 0.28
"""How much longer the fullest rank takes with its experts, for each doubling of the ranks."""

ACTIVATION_PASSES = 30.0
"""How often a token's hidden state goes over the memory in a layer: norms, residuals, activations,
positions, quantising."""

ROUTING_PASSES = 12.0
"""The same for each expert that a token is handed to: gathered, quantised, scattered, summed."""

PIPELINE_EVENNESS = 0.95
"""Share of the time in which a stage works although micro-batches are not of one length."""

PCIE_SHARE = 0.6
"""Share of a slot's rate that messages between GPUs of a node reach. Two GPUs of one PCIe switch
would reach 0.76 (NCCL, ``src/graph/topo.h``: 12 GB/s of PCIe 3)."""

FABRIC_SHARE = 0.8
"""Share of the rate of links and ports that messages between stages reach: an assumption."""

HOP_S = 10e-6
"""Latency of one send from a stage to the next (aiconfigurator: ``p2p_latency: 0.00001``)."""

MODEL_ERROR, CPU_ERROR = 1.5, 2.0
"""Factor by which the estimate may be off either way; and where GPUs wait for CPUs, of whose
speed nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What an engine does beside the GPU's work, and how it fills a batch.

    Attributes
    ----------
    step_s, row_s
        CPU time for which the GPUs wait, of each step and of each row in it.
    graph_tokens, experts_layer_s
        A step of more tokens replays no CUDA graph: the GPUs wait for the CPU that starts the
        kernels of its layers with experts, this long each, while they have less to do than that.
    reserves
        Room in the cache is kept for all tokens that a row may get, not taken as they come.
    batch_per_stage
        The largest batch counts for each micro-batch of a pipeline, not for all together.
    """

    step_s: float
    row_s: float
    graph_tokens: float = math.inf
    experts_layer_s: float = 0.0
    reserves: bool = False
    batch_per_stage: bool = False


ENGINE_PACE: Mapping[str, Pace] = {
    "vllm": Pace(step_s=1.0e-3, row_s=8e-6, graph_tokens=512, experts_layer_s=2.5e-3),
    "tensorrt-llm": Pace(step_s=2.0e-3, row_s=8e-6, reserves=True, batch_per_stage=True),
}
"""By engine. vLLM: the largest of ``cudagraph_capture_sizes`` (config/vllm.py) is 512, and its time
for experts is from one run with Triton's kernels (docs/results/2026-11-23-h100-planner.md).
TensorRT-LLM: ``GUARANTEED_NO_EVICT`` is the default of ``capacity_scheduler_policy``
(llmapi/llm_args.py), ``max_num_sequences = max_batch_size * mapping.pp_size``
(_torch/pyexecutor/py_executor_creator.py)."""
