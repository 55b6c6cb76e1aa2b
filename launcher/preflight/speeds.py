"""Which links of a replica are measured, how fast they should be, and who is slow. Pure.

A rank of a tensor-parallel group talks to all of its group at once, one of a pipeline's stage to
its neighbours in the stages before and after it. Where a group is over several nodes, each rank is
measured with the one in its place on the next node as well: so the node at fault has a name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from launcher.plan.types import NodeGpus, Plan

__all__ = ["Fault", "Link", "Measurement", "Slow", "Told", "expected", "merge", "schedule", "slow"]

Kind = Literal["all-reduce", "exchange"]
# What of the rate that the site declares is still well: protocols, few repetitions and messages
# of a quarter of a GB leave of it some 60 to 90 %.
_LEAST_SHARE = 0.5
# By how much another node has to be faster in the same place: else the site's figure, a setting of
# NCCL's or the absence of GPUDirect may be what is wrong, which all have, or others' traffic.
_ODD = 3.0
# Of one NVLink each way (NVIDIA's pages on NVLink: 300, 600, 900, 1800 GB/s for 6, 12, 18, 18
# links, both ways together).
_NVLINK_BYTES_PER_S = {"nvlink2": 25e9, "nvlink3": 25e9, "nvlink4": 25e9, "nvlink5": 50e9}
# A process that sends by gloo is bound by its CPU, not by a fast network.
_GLOO_BYTES_PER_S = 1e9
_BYTES_PER_GBIT = 1e9 / 8
_LEAST_BYTES, _MOST_BYTES = 1 << 20, 256 << 20
# Where nobody says how fast a link is: half a second on 1 Gbit/s.
_SOME_BYTES = 64 << 20
# So long as a message takes on a link that is as fast as it should be.
_MESSAGE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One thing to measure.

    Attributes
    ----------
    kind
        An all-reduce of all ``ranks``, or two of them that send to each other at once.
    size
        Bytes of one message.
    """

    kind: Kind
    ranks: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What came of one.

    Attributes
    ----------
    bytes_per_s
        Each way; of an all-reduce its bus bandwidth, which a link would have to have
        (NVIDIA/nccl-tests, doc/PERFORMANCE.md).
    latency_s
        Of a message of 8 bytes.
    finished
        Whether it was in time; if not, it is slower than that.
    """

    kind: Kind
    ranks: tuple[int, ...]
    bytes_per_s: float
    latency_s: float | None = None
    finished: bool = True

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Link:
        return cls(**{**data, "ranks": tuple(data["ranks"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A link that is slower than it should be.

    Attributes
    ----------
    rate
        Bytes/s that it should have.
    blamed
        Ranks of it on the nodes that may be at fault.
    odd
        Whether another node is much faster in the same place.
    """

    link: Link
    rate: float
    blamed: tuple[int, ...]
    odd: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a rank measured nothing; ``gpu`` where that is its GPU's doing."""

    rank: int
    host: str
    error: str
    gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the ranks of one task have measured."""

    links: tuple[Link, ...] = ()
    faults: tuple[Fault, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Told:
        return cls(
            links=tuple(map(Link.from_json, data["links"])),
            faults=tuple(Fault(**fault) for fault in data["faults"]),
        )


def schedule(plan: Plan) -> list[Measurement]:
    """In their order, the same on all ranks, none of which is in two at once."""
    cut, each = plan.layout.cut, _each(plan)
    everyone = range(cut.ranks)
    groups = [tuple(everyone[first : first + cut.tp]) for first in everyone[:: cut.tp]]
    wanted: list[tuple[Kind, tuple[int, ...]]] = []
    wanted += [("all-reduce", group) for group in groups if cut.tp > 1]
    stages = [everyone[place :: cut.tp] for place in range(cut.tp)]
    places = [group[place::each] for group in groups for place in range(each) if cut.tp > each]
    wanted += [("exchange", p) for p in _in_turn(stages, plan) + _in_turn(places, plan)]
    return [
        Measurement(kind=kind, ranks=ranks, size=_size(expected(plan, kind, ranks)))
        for kind, ranks in wanted
    ]


def _in_turn(chains: Sequence[Sequence[int]], plan: Plan) -> list[tuple[int, int]]:
    """Neighbours, so that a rank between two others is with one of them at a time.

    And the ends of a chain over more than two nodes: so there is a link without any one node.
    """
    near = [(n % 2, pair) for chain in chains for n, pair in enumerate(pairwise(chain))]
    far = [(chain[0], chain[-1]) for chain in chains if len(chain) > 2]  # noqa: PLR2004 - as said
    ends = [(2, pair) for pair in far if pair[1] // _each(plan) - pair[0] // _each(plan) > 1]
    return [pair for _, pair in sorted(near + ends)]


def _each(plan: Plan) -> int:
    """Ranks on a node."""
    return plan.layout.cut.ranks // plan.step.nodes


def _size(rate: float | None) -> int:
    wanted = _SOME_BYTES if rate is None else _MESSAGE_S * rate
    return int(min(max(wanted, _LEAST_BYTES), _MOST_BYTES)) // 8 * 8


def expected(plan: Plan, kind: Kind, ranks: Sequence[int]) -> float | None:
    """Bytes/s that the site's figures come to; None where it does not give them."""
    each, network = _each(plan), plan.network
    on_gpus = plan.layout.allocation.gpus_per_node > 0
    if not _spans(plan, ranks):
        return _nvlink(plan.gpus, [rank % each for rank in ranks]) if on_gpus else None
    if network is None or network.rate is None or network.sockets:
        return None
    rate, ports = network.rate * _BYTES_PER_GBIT, network.ports or 1
    if not on_gpus:
        return min(rate, _GLOO_BYTES_PER_S) / each
    # Each rank of a group on a node has a ring through a port of its own, as far as there are any.
    return rate * min(ports, each) if kind == "all-reduce" else rate / -(-each // ports)


def _nvlink(gpus: NodeGpus | None, positions: Sequence[int]) -> float | None:
    if gpus is None or gpus.links is None or gpus.domain is None:
        return None
    joined = len({position // gpus.domain for position in positions}) == 1
    one = _NVLINK_BYTES_PER_S.get(gpus.link or "")
    return gpus.links * one if joined and one else None


def merge(told: Sequence[Link]) -> list[Link]:
    """Each link once, as the slowest of its ranks saw it."""
    found: dict[tuple[Kind, tuple[int, ...]], Link] = {}
    for link in told:
        key = (link.kind, link.ranks)
        if key not in found or link.bytes_per_s < found[key].bytes_per_s:
            found[key] = link
    return sorted(found.values(), key=lambda link: (link.kind, link.ranks))


def slow(plan: Plan, links: Sequence[Link]) -> list[Slow]:
    """Links that are too slow.

    A link between nodes has two ends, and the fewest that explain all slow ones are at fault.
    """
    judged = [(link, expected(plan, link.kind, link.ranks)) for link in links]
    bad = [(link, rate) for link, rate in judged if rate and _is_slow(link, rate)]
    pairs = [(link, rate) for link, rate in judged if rate and _is_pair(plan, link)]
    well = {r for link, rate in pairs if not _is_slow(link, rate) for r in _ends(plan, link)}
    named = [_ends(plan, link) for link, _ in bad if _is_pair(plan, link)]
    guilty = _guilty(named, well)
    if len(guilty) > 1 and len(named) == len(pairs):  # rather all, or the figure is wrong
        guilty = {end for ends in named for end in ends}
    best: dict[tuple[Kind, tuple[int, ...]], float] = {}
    for link in links:
        best[_place(plan, link)] = max(link.bytes_per_s, best.get(_place(plan, link), 0))
    return [
        Slow(
            link=link,
            rate=rate,
            blamed=tuple(r for r in link.ranks if _end(plan, r) in guilty) or link.ranks,
            odd=best[_place(plan, link)] >= _ODD * link.bytes_per_s,
        )
        for link, rate in bad
        # A group over nodes is as slow as the pair in it that has a name of its own.
        if not (named and link.kind == "all-reduce" and _spans(plan, link.ranks))
    ]


def _place(plan: Plan, link: Link) -> tuple[Kind, tuple[int, ...]]:
    """What links of other nodes are like it: by the places of its ranks on theirs."""
    return link.kind, tuple(sorted(rank % _each(plan) for rank in link.ranks))


# A node, and which of its ports: the place of a rank in its group on it.
_End = tuple[int, int]


def _end(plan: Plan, rank: int) -> _End:
    each = _each(plan)
    return rank // each, rank % min(plan.layout.cut.tp, each)


def _ends(plan: Plan, link: Link) -> set[_End]:
    return {_end(plan, rank) for rank in link.ranks}


def _guilty(pairs: Sequence[set[_End]], well: set[_End]) -> set[_End]:
    """The ends that explain that all ``pairs`` are slow, those that can be no other's first."""
    guilty: set[_End] = set()
    left = [pair - well or pair for pair in pairs]
    while left:
        count = Counter(end for pair in left for end in pair)
        alone = {end for pair in left if len(pair) == 1 for end in pair}
        most = max(count.values())
        guilty |= alone or {end for end, number in count.items() if number == most}
        left = [pair for pair in left if pair.isdisjoint(guilty)]
    return guilty


def _is_slow(link: Link, rate: float) -> bool:
    return link.bytes_per_s < _LEAST_SHARE * rate


def _is_pair(plan: Plan, link: Link) -> bool:
    return link.kind == "exchange" and _spans(plan, link.ranks)


def _spans(plan: Plan, ranks: Sequence[int]) -> bool:
    """Whether they are on several nodes."""
    return len({rank // _each(plan) for rank in ranks}) > 1
