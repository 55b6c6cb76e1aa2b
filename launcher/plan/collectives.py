"""How long messages between GPUs take, by interpolation of what others have measured.

Measured times are those of aiconfigurator (``systems/data/*/comm``: NCCL and TensorRT-LLM's own
all-reduce on H100 and A100 SXM; payload is the whole tensor), and between nodes of CSCS (two nodes
of four GH200, Slingshot-11, NCCL with the OFI plugin). They are read log-log; under the smallest
payload the time stays, over the largest it grows with the payload.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.plan.constants import FABRIC_SHARE, HOP_S, PCIE_SHARE

__all__ = ["Links", "all_reduce_s", "hop_s"]

_KIB, _MIB = 2**10, 2**20
_SIZES = (_KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, _MIB, 16 * _MIB, 64 * _MIB, 256 * _MIB)
_Table = Sequence[float]  # microseconds by payload
# aiconfigurator, h100_sxm, TensorRT-LLM's own kernels, which vLLM's resemble; 2, 4 and 8 GPUs
_HOPPER: Mapping[int, _Table] = {
    2: (2.8, 2.9, 3.3, 4.5, 9.4, 143, 472, 1683),
    4: (3.0, 3.4, 4.3, 7.9, 26.1, 175, 619, 2305),
    8: (3.4, 3.8, 6.2, 17.6, 35.5, 197, 576, 2109),
}
# aiconfigurator, a100_sxm, NCCL: of the engines' own kernels there is no table
_AMPERE: Mapping[int, _Table] = {
    2: (10, 12.8, 13.4, 19.4, 47.6, 224, 748, 2781),
    4: (14.2, 17.4, 17.8, 22.9, 46.2, 288, 1001, 3716),
    8: (21.5, 26, 27.4, 30.1, 53.7, 367, 1169, 4226),
}
# CSCS documentation, "NCCL" on Alps: 2 nodes of 4 GH200 with 4 ports of 25 GB/s each
_NODES_SIZES = (8, _KIB, 64 * _KIB, _MIB, 16 * _MIB, 128 * _MIB)
_NODES: _Table = (17.9, 20.4, 61, 164, 462, 1916)
_NODES_BYTES_S, _NODES_GPUS = 100e9, 8
_NVLINK3_BYTES_S, _NVLINK4_BYTES_S = 300e9, 450e9
_US = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What joins the GPUs of one replica.

    Attributes
    ----------
    gpu_bytes_s
        One direction of what joins a GPU to others of its TP group in a node.
    nvlink
        Whether that is NVLink: then the faster kernels and latencies are those of H100 from
        450 GB/s on.
    node_bytes_s
        One direction of all ports of a node; None on one node or where it is not known.
    per_node
        Ranks of the replica on one node.
    """

    gpu_bytes_s: float
    nvlink: bool
    node_bytes_s: float | None
    per_node: int


def all_reduce_s(links: Links, ranks: int, payload: float) -> float:
    """Seconds of an all-reduce of ``payload`` bytes over ``ranks`` neighbours.

    Latency is that of the table's least payload. What the table has above it is scaled by the
    rate of the link, and by ``2 (n - 1) / n`` to numbers of GPUs that were not measured. Over
    PCIe a ring is as fast as the slots are, and over nodes never faster than inside one.

    Raises
    ------
    ValueError
        They are on several nodes, and it is not known what joins these.
    """
    if ranks <= 1:
        return 0.0
    inside = _inside(links, ranks, payload)
    return inside if ranks <= links.per_node else max(inside, _between(links, ranks, payload))


def _inside(links: Links, ranks: int, payload: float) -> float:
    fast = links.nvlink and links.gpu_bytes_s >= _NVLINK4_BYTES_S
    table = _HOPPER if fast else _AMPERE
    near = min((n for n in table if n >= ranks), default=max(table))
    latency = table[near][0] * max(1.0, math.log2(ranks) / math.log2(near)) * _US
    if not links.nvlink:
        return latency + _wire(ranks) * payload / (links.gpu_bytes_s * PCIE_SHARE)
    rest = (_read(_SIZES, table[near], payload) - table[near][0]) * _US
    scale = (_NVLINK4_BYTES_S if fast else _NVLINK3_BYTES_S) / links.gpu_bytes_s
    return latency + rest * scale * _wire(ranks) / _wire(near)


def _between(links: Links, ranks: int, payload: float) -> float:
    if links.node_bytes_s is None:
        raise ValueError("an all-reduce over nodes whose network is not known")
    nodes = math.ceil(ranks / links.per_node)
    latency = _NODES[0] * max(1.0, math.log2(nodes))
    rest = (_read(_NODES_SIZES, _NODES, payload) - _NODES[0]) * _NODES_BYTES_S / links.node_bytes_s
    return (latency + rest * _wire(ranks) / _wire(_NODES_GPUS)) * _US


def _wire(ranks: int) -> float:
    """What each rank of a ring sends, as a multiple of the payload (nccl-tests, PERFORMANCE.md)."""
    return 2 * (ranks - 1) / ranks


def hop_s(links: Links, tp: int, ranks: int, payload: float) -> float:
    """Seconds to hand ``payload`` bytes of activations from a stage to the next.

    Each of the ``tp`` ranks sends its copy: within a node each over its own link, and between
    nodes, where the replica's ``ranks`` do not fit one, through the ports that they share.
    """
    if ranks <= links.per_node:
        return HOP_S + payload / (links.gpu_bytes_s * FABRIC_SHARE)
    if links.node_bytes_s is None:
        raise ValueError("stages on nodes whose network is not known")
    return HOP_S + min(tp, links.per_node) * payload / (links.node_bytes_s * FABRIC_SHARE)


def _read(sizes: Sequence[int], table: _Table, payload: float) -> float:
    """Microseconds of ``payload`` bytes, between the neighbours in the table log-log."""
    if payload <= sizes[0]:
        return table[0]
    if payload >= sizes[-1]:
        return table[-1] * payload / sizes[-1]
    above = bisect_left(sizes, payload)
    low, high = sizes[above - 1], sizes[above]
    share = math.log(payload / low) / math.log(high / low)
    return table[above - 1] * math.pow(table[above] / table[above - 1], share)
