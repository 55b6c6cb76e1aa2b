"""Partitions of the site file out of Slurm's partitions and nodes."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from launcher.describe.captures import Slurm
from launcher.describe.facts import Facts, Place
from launcher.describe.gpus import read_gpu_name
from launcher.describe.kinds import Kind, Nodes, kinds_of
from launcher.describe.limits import limit_facts
from launcher.nodelist import expand
from launcher.parsers.slurm_nodes import Node
from launcher.parsers.slurm_partitions import Partition
from launcher.parsers.slurm_values import gpus_in

__all__ = ["partition_facts"]

T = TypeVar("T")
_TYPE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# Slurm takes a node whose memory nobody stated for one of 1 MiB (slurm.conf(5), RealMemory).
_LEAST_MEMORY = 1 << 30
_PROBE = "a node of it: hpc-llm site discover --probe"


def partition_facts(facts: Facts, slurm: Slurm, *, with_cpus: bool) -> dict[str, Nodes]:
    """Say all of the partitions that the user can ask for.

    Returns
    -------
    dict
        By key of the site file.
    """
    kinds = {
        part.name: kinds_of(_nodes_of(part, slurm))
        for part in slurm.partitions
        if _open(facts, part, slurm)
    }
    with_cpus = with_cpus or not any(kind.gpus for of in kinds.values() for kind in of)
    found: dict[str, Nodes] = {}
    for part in slurm.partitions:
        if not kinds.get(part.name, True):
            facts.notes.append(f"partition {part.name!r} is left out: its nodes are not told")
        chosen = [
            kind for kind in kinds.get(part.name, ()) if _described(facts, part, kind, with_cpus)
        ]
        for kind in chosen:
            key = _key(part, kind, alone=len(chosen) == 1, taken=found)
            alone = len(kinds[part.name]) == 1
            found[key] = Nodes(part.name, kind, alone, _whole(part, slurm))
            _kind_facts(facts, ("partitions", key), part, kind, slurm)
    return found


def _open(facts: Facts, part: Partition, slurm: Slurm) -> bool:
    accounts = {one.account for one in slurm.associations or ()}
    why = None
    if part.name.lower() == "none" or not part.name.isprintable() or re.search(r"\s", part.name):
        why = "its name cannot be asked for in a site file"
    elif part.up is False:
        why = "it is closed"
    elif part.root_only:
        why = "only root may submit to it"
    elif accounts and part.allow_accounts is not None and not accounts & {*part.allow_accounts}:
        why = "it is for other accounts"
    elif accounts and accounts <= {*part.deny_accounts}:
        why = "it denies your accounts"
    if part.allow_groups is not None:
        groups = ", ".join(part.allow_groups)
        facts.notes.append(f"partition {part.name!r} is only for the groups {groups}")
    if why:
        facts.notes.append(f"partition {part.name!r} is left out: {why}")
    return why is None


def _nodes_of(part: Partition, slurm: Slurm) -> list[Node]:
    names = _names(part.nodes)
    return [node for node in slurm.nodes if part.name in node.partitions or node.name in names]


def _described(facts: Facts, part: Partition, kind: Kind, with_cpus: bool) -> bool:  # noqa: FBT001 - one rule
    if kind.parts:
        facts.notes.append(f"{part.name}: {_some(kind)} give parts of GPUs (MIG), and are left out")
    elif kind.mixed:
        counts = ", ".join(f"{count} x {type_ or 'gpu'}" for type_, count in kind.gpus)
        facts.notes.append(
            f"{part.name}: nodes with {counts} cannot be told from others by type or feature: "
            "which option asks for them?"
        )
    elif len(kind.gpus) > 1:
        types = " and ".join(str(type_) for type_, _ in kind.gpus)
        facts.notes.append(f"{part.name}: {_some(kind)} have {types} at once, and are left out")
    elif any(type_ is not None and not _TYPE.fullmatch(type_) for type_ in kind.types):
        facts.notes.append(f"{part.name}: a type of GPU that no option can hold: {kind.gpus}")
    else:
        return with_cpus or bool(kind.gpus)
    return False


def _some(kind: Kind) -> str:
    return f"{len(kind.nodes)} nodes like {kind.nodes[0].name}"


def _key(part: Partition, kind: Kind, *, alone: bool, taken: Mapping[str, object]) -> str:
    tag = kind.constraint or next((type_ for type_, _ in kind.gpus if type_), None)
    whole = part.name if alone else f"{part.name}-{tag or ('gpu' if kind.gpus else 'cpu')}"
    stem = re.sub(r"[^A-Za-z0-9_.-]", "-", whole).lstrip("-_.")[:56] or "partition"
    names = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _kind_facts(facts: Facts, at: Place, part: Partition, kind: Kind, slurm: Slurm) -> None:
    nodes = kind.nodes
    usable = sum(node.states.usable for node in nodes)
    if usable:
        how = "" if usable == len(nodes) else f": {usable} of {len(nodes)} are usable now"
        facts.say((*at, "nodes"), usable, slurm.of_nodes + how)
    facts.ask((*at, "nodes"), "no node of it is usable now: sinfo")
    if at[1] != part.name:
        facts.say((*at, "select", "partition"), part.name, slurm.of_partitions)
    facts.say(
        (*at, "select", "constraint"), kind.constraint, f"AvailableFeatures of {slurm.of_nodes}"
    )
    _cpu_facts(facts, at, part, kind, slurm)
    memories = [(node.memory_bytes or 0) - (node.memory_reserved_bytes or 0) for node in nodes]
    facts.ask((*at, "memory"), "not told of all its nodes: free -g on one")
    if min(memories) >= _LEAST_MEMORY:
        most = int(min([*memories, part.memory_per_node_bytes or math.inf]))
        least = "" if len(set(memories)) == 1 else ", the least of its nodes"
        facts.say((*at, "memory"), most, slurm.of_nodes + least)
    if kind.gpus:
        _gpu_facts(facts, (*at, "gpus"), part, kind, slurm)
        facts.ask((*at, "fabric"), f"{_PROBE} {at[1]}")
    limit_facts(facts, at, part, slurm, [type_ for type_, _ in kind.gpus])
    _topology_facts(facts, (*at, "topology"), nodes, slurm)


def _cpu_facts(facts: Facts, at: Place, part: Partition, kind: Kind, slurm: Slurm) -> None:
    nodes, source = kind.nodes, slurm.of_nodes
    count = _one(node.cpus_for_jobs or node.cpus for node in nodes)
    most = part.max_cpus_per_node or math.inf
    if part.max_cpus_per_socket and math.isfinite(part.max_cpus_per_socket):
        sockets = _one(node.sockets for node in nodes)
        most = min(most, part.max_cpus_per_socket * sockets) if sockets else 0
    if count and most:
        least = f"{slurm.of_partitions}: the most of a node" if most < count else source
        facts.say((*at, "cpus", "count"), int(min(count, most)), least)
    arch = _one(node.arch for node in nodes)
    if arch in ("x86_64", "aarch64"):
        facts.say((*at, "cpus", "arch"), arch, source)
    facts.say((*at, "cpus", "threads_per_core"), _one(map(_threads, nodes)), source)
    facts.ask((*at, "cpus"), "its nodes differ, or are not told: scontrol show node")


def _threads(node: Node) -> int | None:
    """CPUs of a core as Slurm counts them, which may count cores where these have threads."""
    cores = (node.sockets or 0) * (node.cores_per_socket or 0)
    if not cores or not node.cpus or node.cpus % cores:
        return None
    threads = node.cpus // cores
    return threads if threads in (1, node.threads_per_core) else None


def _gpu_facts(facts: Facts, at: Place, part: Partition, kind: Kind, slurm: Slurm) -> None:
    type_, count = kind.gpus[0]
    source = f"Gres of {slurm.of_nodes}"
    facts.say((*at, "per_node"), count, source)
    for node in kind.nodes:
        if node.tres.gpus is not None:
            facts.say((*at, "per_node"), node.tres.gpus, f"CfgTRES of {slurm.of_nodes}")
    _sinfo_gpus(facts, at, kind, slurm)
    named = read_gpu_name(type_ or "")
    if named:
        facts.say((*at, "model"), named.model, f"{source}: type {type_}")
        facts.say((*at, "memory"), named.memory_bytes, f"{source}: type {type_}")
    facts.ask((*at, "model"), f"nvidia-smi -L on {_PROBE} {at[1]}")
    for key in ("memory", "link", "topology", "cpus"):
        facts.ask((*at, key), f"{_PROBE} {at[1]}")
    word = "" if type_ is None else f"{type_}:"
    select = slurm.setting("SelectType")
    # Options that name GPUs by job, node or task are of cons_tres (slurm.conf(5)); --gres is not.
    option = f"--gpus-per-node={word}{{n}}" if "cons_tres" in select else f"--gres=gpu:{word}{{n}}"
    known = f"{source}; SelectType of scontrol show config" if select else source
    facts.say((*at, "request"), option, known)
    if whole := _whole(part, slurm):
        facts.say((*at, "unit"), "node", whole)


def _whole(part: Partition, slurm: Slurm) -> str | None:
    """What says that nodes are given as a whole (slurm.conf(5), OverSubscribe and SelectType)."""
    if (part.oversubscribe or "").upper().startswith("EXCLUSIVE"):
        return f"OverSubscribe=EXCLUSIVE of {slurm.of_partitions}"
    linear = slurm.setting("SelectType").endswith("linear")
    return "SelectType of scontrol show config" if linear else None


def _sinfo_gpus(facts: Facts, at: Place, kind: Kind, slurm: Slurm) -> None:
    """A second source of the number of GPUs, for the nodes that both know."""
    if slurm.of_nodes == "sinfo":
        return
    names = {node.name for node in kind.nodes}
    for group in slurm.groups:
        if names & _names(group.nodes):
            count = gpus_in(one for one in group.gres if not one.mig)
            facts.say((*at, "per_node"), count, "sinfo")


def _topology_facts(facts: Facts, at: Place, nodes: Sequence[Node], slurm: Slurm) -> None:
    topology = slurm.topology
    if topology is None or topology.kind is None:
        return
    names = {node.name for node in nodes}
    sizes = (len(names & _names(leaf.nodes)) for leaf in topology.leaves)
    held = Counter(size for size in sizes if size)
    if sum(held.values()) < 2:  # noqa: PLR2004 - below one switch all nodes are near
        return
    size, often = held.most_common(1)[0]
    # The last switch is often not full; where they differ more, no number is right.
    if size < max(held) or 2 * often <= sum(held.values()):
        facts.ask(at, f"its switches hold {sorted(held)} nodes: which is a full one?")
        return
    dragonfly = "dragonfly" in slurm.setting("TopologyParam")
    kind = "dragonfly" if dragonfly and topology.kind == "tree" else topology.kind
    facts.say((*at, "type"), kind, "scontrol show topology")
    facts.say(
        (*at, "nodes"), size, f"scontrol show topology: {often} of {sum(held.values())} alike"
    )


@functools.cache
def _names(folded: str | None) -> frozenset[str]:
    """None of a list that is broken."""
    try:
        return frozenset(expand(folded or ""))
    except ValueError:
        return frozenset()


def _one(values: Iterable[T | None]) -> T | None:
    """What all of them are."""
    found = set(values)
    return found.pop() if len(found) == 1 else None
