"""What a node's captures say of its GPUs and network ports: groups, nearness, rails.

A rail is a port that carries GPU traffic. All ranks get the same exact list of them; NCCL finds
the way from each GPU itself. What the captures do not say is None, and `NodeTopology.unknown` says
why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.parsers.ibdev2netdev import Netdevs
from launcher.parsers.ibstat import IbStat, Port
from launcher.parsers.text import natural
from launcher.parsers.topo import Cell, Distance, Topo

__all__ = ["NodeRail", "NodeTopology", "NvLinks", "nearest", "node_topology"]


@dataclass(frozen=True, slots=True)
class NvLinks:
    """Which GPUs NVLink joins.

    Attributes
    ----------
    topology
        ``all-to-all``, ``pairs``, ``none``, or ``partial``: joined, but not each with each.
    groups
        GPUs that are joined each with each, by number; every GPU is in one unless ``partial``.
    links
        NVLinks between two GPUs that are joined; None where that differs.
    """

    topology: Literal["all-to-all", "pairs", "groups", "partial", "none"]
    groups: tuple[tuple[int, ...], ...]
    links: int | None

    @property
    def domain(self) -> int:
        """GPUs in the smallest group: how far tensor parallelism goes without leaving NVLink."""
        return min(map(len, self.groups), default=1)


@dataclass(frozen=True, slots=True)
class NodeRail:
    """One rail: the port as NCCL names it, the GPUs that are nearest to it, its interface."""

    port: str
    gpus: tuple[int, ...]
    netdev: str | None = None


@dataclass(frozen=True, slots=True)
class NodeTopology:
    """One node.

    Attributes
    ----------
    cpus, numa
        By GPU.
    rails
        By number, which is the order in which all ranks get them.
    rate_gbps
        Of each rail.
    left_out
        Ports that are no rails, and why.
    unknown
        By name of an attribute, ``gpus`` of a rail among them: why it is None or a guess.
    """

    gpus: tuple[int, ...]
    nvlink: NvLinks | None
    cpus: Mapping[int, frozenset[int]]
    numa: Mapping[int, frozenset[int]]
    rails: tuple[NodeRail, ...] | None
    rate_gbps: float | None
    left_out: Mapping[str, str]
    unknown: Mapping[str, str]


def node_topology(
    topo: Topo, ibstat: IbStat | None = None, netdevs: Netdevs | None = None
) -> NodeTopology:
    """Put together what the captures of one node say."""
    unknown: dict[str, str] = {}
    left_out: dict[str, str] = {}
    usable = _usable(ibstat, left_out)
    rails = _rails(topo, usable, left_out, unknown) if ibstat else None
    if ibstat is None:
        unknown["rails"] = "without ibstat it is not known which ports are InfiniBand and up"
    missing = [gpu for gpu in topo.gpus if gpu not in topo.cpus]
    if missing:
        unknown["cpus"] = f"no CPU affinity of {_names(missing)}"
    nvlink = _nvlinks(topo)
    if nvlink is None:
        unknown["nvlink"] = "the table does not have all pairs of GPUs"
    names = {netdev.port: netdev.netdev for netdev in netdevs.ports} if netdevs else {}
    return NodeTopology(
        gpus=topo.gpus,
        nvlink=nvlink,
        cpus=topo.cpus,
        numa=topo.numa,
        rails=None
        if rails is None
        else tuple(
            NodeRail(port, gpus, names.get(port))
            for port, gpus in sorted(rails.items(), key=lambda rail: natural(rail[0]))
        ),
        rate_gbps=usable[0].rate_gbps if rails and usable else None,
        left_out=left_out,
        unknown=unknown,
    )


def nearest(
    distances: Mapping[int, Mapping[str, Distance]], ports: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """GPUs by the port each of them is nearest to.

    Of ports that are equally near the one which fewest GPUs have yet is taken, then the first in
    numeric order: two GPUs and two ports behind one switch come out one to one, and where
    distances say nothing GPUs and ports are paired by number.
    """
    taken: dict[str, list[int]] = {port: [] for port in ports}
    for gpu, row in sorted(distances.items()):
        near = [(row[port], len(taken[port]), natural(port), port) for port in ports if port in row]
        if near:
            taken[min(near)[-1]].append(gpu)
    return {port: tuple(gpus) for port, gpus in taken.items() if gpus}


def _usable(ibstat: IbStat | None, left_out: dict[str, str]) -> list[Port]:
    """InfiniBand ports that are up, at the highest rate of the node: the lower are not for GPUs."""
    ports = ibstat.ports if ibstat else ()
    for port in ports:
        if port.infiniband is None:
            left_out[port.name] = "ibstat does not say its state"
        elif not port.infiniband:
            facts = (port.link_layer, port.state, port.physical)
            left_out[port.name] = ", ".join(fact for fact in facts if fact)
    up = [port for port in ports if port.infiniband]
    best = max((port.rate_gbps or 0 for port in up), default=0)
    for port in up:
        if (port.rate_gbps or 0) < best:
            left_out[port.name] = (
                f"{port.rate_gbps:g} Gbit/s, others have {best:g}"
                if (port.rate_gbps)
                else "ibstat does not say its rate"
            )
    return [port for port in up if port.name not in left_out]


def _rails(
    topo: Topo, usable: Sequence[Port], left_out: dict[str, str], unknown: dict[str, str]
) -> dict[str, tuple[int, ...]] | None:
    """GPUs by rail; None, with the reason, where the list would not be certain."""
    names = [port.name for port in usable]
    if untold := [name for name, reason in left_out.items() if "does not say" in reason]:
        unknown["rails"] = f"ibstat does not say all of {', '.join(untold)}"
        return None
    if len(names) <= 1:
        return dict.fromkeys(names, topo.gpus)
    distances = _distances(topo, usable)
    unseen = [gpu for gpu in topo.gpus if set(distances.get(gpu, ())) != set(names)]
    if unseen:
        unknown["rails"] = f"the table has no distance from {_names(unseen)} to each port"
        return None
    return _chosen(topo, distances, names, left_out, unknown)


def _chosen(
    topo: Topo,
    distances: Mapping[int, Mapping[str, Distance]],
    names: Sequence[str],
    left_out: dict[str, str],
    unknown: dict[str, str],
) -> dict[str, tuple[int, ...]] | None:
    close = [n for n in names if any(row[n] <= Distance.PXB for row in distances.values())]
    for name in set(names) - set(close or names):
        left_out[name] = "no GPU is behind a PCIe switch with it, as with others"
    ports = close or list(names)
    if not any(len(set(row.values())) > 1 for row in distances.values()):
        unknown["gpus"] = "all distances are the same: GPUs and ports are paired by number"
        if len(ports) > len(topo.gpus):
            unknown["rails"] = f"{len(ports)} ports are equally far from {len(topo.gpus)} GPUs"
            return None
    rails = nearest(distances, ports)
    for name in set(ports) - set(rails):
        left_out[name] = "other ports are nearer to every GPU, or as near and enough"
    return rails


def _distances(topo: Topo, ports: Sequence[Port]) -> dict[int, dict[str, Distance]]:
    heads = {nic.device: nic.head for nic in topo.nics if nic.device}
    found: dict[int, dict[str, Distance]] = {}
    for gpu in topo.gpus:
        cells = (
            (port.name, topo.between(f"GPU{gpu}", heads[port.adapter]))
            for port in ports
            if port.adapter in heads
        )
        found[gpu] = {name: cell.distance for name, cell in cells if cell}
    return found


def _nvlinks(topo: Topo) -> NvLinks | None:
    cells: dict[tuple[int, int], Cell] = {}
    for first in topo.gpus:
        for second in topo.gpus:
            cell = topo.gpu_link(first, second)
            if first < second and cell is None:
                return None
            if first < second and cell is not None:
                cells[first, second] = cell
    joined = {pair for pair, cell in cells.items() if cell.distance is Distance.NV}
    groups = _groups(topo.gpus, joined)
    counts = {cells[pair].nvlinks for pair in joined}
    links = next(iter(counts)) if len(counts) == 1 else None
    whole = all((a, b) in joined for group in groups for a in group for b in group if a < b)
    if not joined:
        return NvLinks("none", groups, None)
    if not whole:
        return NvLinks("partial", (), links)
    if len(groups) == 1:
        return NvLinks("all-to-all", groups, links)
    pairs = {len(group) for group in groups} == {2}
    return NvLinks("pairs" if pairs else "groups", groups, links)


def _groups(gpus: Sequence[int], joined: set[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """GPUs that are joined, directly or over others."""
    group = {gpu: {gpu} for gpu in gpus}
    for first, second in joined:
        both = group[first] | group[second]
        group.update(dict.fromkeys(both, both))
    return tuple(sorted({tuple(sorted(members)) for members in group.values()}))


def _names(gpus: Sequence[int]) -> str:
    return ", ".join(f"GPU{gpu}" for gpu in gpus)
