"""Which rank sits on which node and GPU. Pure arithmetic over node sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launcher.plan.types import Allocation, Cut, Layout, Placement

__all__ = ["NodeShape", "cut_words", "lay_out", "span"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShape:
    """What one node offers to the plan.

    Attributes
    ----------
    slots
        Ranks that may be placed on it: its GPUs, or the slots of a CPU partition, after
        ``resources.gpus_per_node``.
    slots_all
        The same before that limit.
    has_gpus
        Whether a slot is a GPU.
    cpus
        CPUs as the scheduler counts them, or None when the site does not say.
    unit
        What can be had of a node: any number of its slots, only all, or one or all.
    socket
        Slots of one socket, where each has as many; None where that is not known.
    """

    slots: int
    slots_all: int
    has_gpus: bool
    cpus: int | None = None
    unit: Literal["gpu", "node", "gpu-or-node"] = "gpu"
    socket: int | None = None


def lay_out(cut: Cut, replicas: int, node: NodeShape) -> Layout:
    """Place every rank of every replica.

    A replica that fits a node shares it with as many others as fit, evenly over the
    allocations; a larger one gets nodes of its own, as many whole stages on each as divide
    ``pp`` evenly, so that a tensor-parallel group never leaves its node unless ``tp`` itself
    is larger than a node. On a whole node, replicas do not lie across two sockets where as many
    fit without.

    Parameters
    ----------
    replicas
        At least 1.

    Returns
    -------
    Layout
        ``replicas * cut.ranks`` placements ordered by replica, then rank.

    Notes
    -----
    Rank order is TensorRT-LLM's with ``cp_size == 1`` (``tensorrt_llm/mapping.py``, class
    ``Mapping``): ``rank = pp_rank * tp + tp_rank``, ``local_rank = rank % gpus_per_node``,
    nodes filled block by block. Changing it here alone silently breaks multi-node engines.
    """
    nodes, tasks_per_node = span(cut, node.slots)
    capacity = node.slots // cut.ranks if nodes == 1 else 1
    count = -(-replicas // capacity)
    packed = -(-replicas // count)
    used = packed * tasks_per_node
    asked = used
    if node.unit == "node" or (node.unit == "gpu-or-node" and used * nodes > 1):
        asked = node.slots_all
    allocation = Allocation(
        count=count,
        nodes=nodes,
        gpus_per_node=asked if node.has_gpus else 0,
        replicas=packed,
        whole_node=asked == node.slots_all,
        cpus_per_rank=None if node.cpus is None else max(1, node.cpus // node.slots_all),
    )
    starts = _starts(cut, node, allocation)
    placements = tuple(
        _place(replica, rank, cut, allocation, tasks_per_node, starts)
        for replica in range(replicas)
        for rank in range(cut.ranks)
    )
    return Layout(replicas=replicas, cut=cut, allocation=allocation, placements=placements)


def span(cut: Cut, slots: int) -> tuple[int, int]:
    """Nodes of one replica, and its ranks on each."""
    if cut.ranks <= slots:
        return 1, cut.ranks
    if cut.tp > slots:  # over the fabric, allowed by hand: equal nodes, none in two stages
        per_node = max(n for n in range(1, slots + 1) if cut.tp % n == 0)
        return cut.ranks // per_node, per_node
    stages = max(s for s in range(1, slots // cut.tp + 1) if cut.pp % s == 0)
    return cut.pp // stages, cut.tp * stages


def _starts(cut: Cut, node: NodeShape, allocation: Allocation) -> list[int]:
    """The first slot of each replica that shares an allocation."""
    dense = [index * cut.ranks for index in range(allocation.replicas)]
    if node.socket is None or cut.ranks > node.socket or not allocation.whole_node:
        return dense  # and of a part of a node nobody knows which slots it will be
    apart = [
        socket + start
        for socket in range(0, node.slots, node.socket)
        for start in range(0, node.socket - cut.ranks + 1, cut.ranks)
        if socket + start + cut.ranks <= node.slots
    ]
    return apart if len(apart) >= allocation.replicas else dense


def _place(
    replica: int,
    rank: int,
    cut: Cut,
    allocation: Allocation,
    tasks_per_node: int,
    starts: list[int],
) -> Placement:
    first_gpu = starts[replica % allocation.replicas] if allocation.nodes == 1 else 0
    local_rank = rank % tasks_per_node
    first_node = replica // allocation.replicas * allocation.nodes
    return Placement(
        replica=replica,
        rank=rank,
        node=first_node + rank // tasks_per_node,
        gpu=first_gpu + local_rank if allocation.gpus_per_node else None,
        local_rank=local_rank,
        tp_rank=rank % cut.tp,
        pp_rank=rank // cut.tp,
    )


def cut_words(cut: Cut) -> str:
    """Such as ``tp 8, pp 2``; sizes of 1 are left out, but not all.

    >>> cut_words(Cut(tp=8, pp=2)), cut_words(Cut())
    ('tp 8, pp 2', 'tp 1')
    """
    sizes = [("tp", cut.tp), ("pp", cut.pp), ("ep", cut.ep)]
    return ", ".join(f"{axis} {n}" for axis, n in sizes if n > 1) or "tp 1"
