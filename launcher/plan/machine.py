"""The GPUs of one replica and what joins them, as a site file tells."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.checks import nvlink_domain
from launcher.plan.collectives import Links
from launcher.plan.constants import NVLINK_BYTES_S, Gpu, find_gpu
from launcher.plan.types import Cut
from launcher.spec.site import Fabric, Gpus

__all__ = ["Machine", "find_machine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The GPUs of one replica and what joins them."""

    gpu: Gpu
    links: Links


def find_machine(gpus: Gpus, fabric: Fabric | None, cut: Cut, nodes: int) -> Machine | None:
    """What a replica on ``nodes`` nodes has of a partition with ``gpus`` and ``fabric``.

    A replica fills whole nodes, stage by stage, before it takes the next one.

    Returns
    -------
    Machine | None
        None where `find_gpu` does not know the GPU. Where the site does not say what joins nodes
        ``links.node_bytes_s`` is None, which only a replica on one node can do without.
    """
    memory = None if gpus.memory is None else int(gpus.memory)
    gpu = find_gpu(gpus.model, memory, gpus.link)
    if gpu is None:
        return None
    rate = _nvlink(gpu, gpus, cut)
    links = Links(
        gpu_bytes_s=gpu.pcie_bytes_s if rate is None else rate,
        nvlink=rate is not None,
        node_bytes_s=_node(fabric),
        per_node=cut.ranks // nodes,
    )
    return Machine(gpu=gpu, links=links)


def _nvlink(gpu: Gpu, gpus: Gpus, cut: Cut) -> float | None:
    """One direction of a GPU within a TP group; None where not all of them have NVLink.

    Without a switch a GPU's links are shared out among all others of the node.
    """
    domain = nvlink_domain(gpus.topology, gpus.per_node)
    within = min(cut.tp, gpus.per_node)
    if gpu.nvlink_bytes_s is None or gpus.link == "pcie" or (domain and within > domain):
        return None
    if gpus.links is None or gpus.link is None:
        return gpu.nvlink_bytes_s
    peers = max(1, within - 1)
    return min(gpu.nvlink_bytes_s, peers * gpus.links * NVLINK_BYTES_S[gpus.link])


def _node(fabric: Fabric | None) -> float | None:
    if fabric is None or fabric.rate is None:
        return None
    # Where nobody says how many ports a node has, it has one.
    ports = sum(bool(rail.gpus) for rail in fabric.rails) or fabric.nics or 1
    return ports * fabric.rate * 1e9 / 8
