"""From captures to a site file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.describe.captures import LOGIN, Slurm, read_pairs, read_slurm
from launcher.describe.cluster import cluster_facts, container_facts
from launcher.describe.facts import Facts
from launcher.describe.kinds import Nodes
from launcher.describe.node import node_facts
from launcher.describe.partitions import partition_facts
from launcher.describe.write import write_site

__all__ = ["Described", "describe"]


@dataclass(frozen=True, slots=True)
class Described:
    """A site file.

    Attributes
    ----------
    text
        It always passes `launcher.spec.rules.read_site`.
    questions
        What is not known, and what would tell it.
    notes
        What was left out, and why.
    partitions
        Keys by the name that Slurm has for the partition.
    """

    name: str
    text: str
    questions: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    partitions: Mapping[str, tuple[str, ...]]


def describe(
    login: Mapping[str, str],
    nodes: Sequence[Mapping[str, str]] = (),
    *,
    name: str | None = None,
    with_cpus: bool = False,
) -> Described:
    """Describe a cluster.

    Parameters
    ----------
    login
        Outputs on a login node, by name of their file (`launcher.describe.captures`).
    nodes
        The same of compute nodes, one each.
    with_cpus
        Describe nodes without GPUs, too, where others have some.
    """
    facts = Facts()
    slurm = read_slurm(facts, login)
    cluster_facts(facts, slurm, login)
    partitions = partition_facts(facts, slurm, with_cpus=with_cpus)
    for key in partitions:
        facts.say(("partitions", key), {}, slurm.of_partitions)
    own = [captures for captures in filter(None, nodes) if _of_cluster(facts, captures, slurm)]
    for captures in own:
        node_facts(facts, captures, partitions)
    if not own:
        container_facts(facts, login, "on the login node")
    _absent(facts, login)
    found = facts.settled()
    of = sorted({nodes.partition for nodes in partitions.values()})
    keys = {one: [k for k, nodes in partitions.items() if nodes.partition == one] for one in of}
    for several in keys.values():
        several[:] = [k for k in several if _told_apart(found, k, partitions[k])]
    cluster = slurm.config.cluster if slurm.config else None
    called = (
        name or re.sub(r"[^A-Za-z0-9_.-]", "-", cluster or "").lstrip("-_.")[:63] or "discovered"
    )
    return Described(
        name=called,
        text=write_site(called, found),
        questions=tuple(found.asked()),
        notes=tuple(dict.fromkeys(found.notes)),
        partitions={one: tuple(several) for one, several in keys.items()},
    )


def _of_cluster(facts: Facts, captures: Mapping[str, str], slurm: Slurm) -> bool:
    """Whether they are of a node that Slurm has here; others say nothing of this cluster."""
    host = read_pairs(captures.get("node.txt", "")).get("host")
    known = host is not None and (not slurm.nodes or host in {node.name for node in slurm.nodes})
    if not known:
        facts.notes.append(f"outputs of {host or 'a node without a name'}: no node of this cluster")
    return known


def _told_apart(found: Facts, key: str, nodes: Nodes) -> bool:
    """Whether a job can ask for this kind of a partition's nodes; if not, it is taken out."""
    at = ("partitions", key)
    asked = not nodes.kind.gpus or (*at, "gpus", "request") in found.known
    if nodes.alone or nodes.kind.constraint is not None or asked:
        return True
    found.forget(at)
    found.notes.append(f"{key} is left out: without its GPUs nothing asks for those nodes")
    return False


def _absent(facts: Facts, login: Mapping[str, str]) -> None:
    """Say which outputs are not there, and which are empty; what is on PATH is told by few."""
    asked = {name: words for name, words in LOGIN.items() if words[0] != "bash"}
    for name, words in asked.items():
        command = f"`{' '.join(words[:4])}`"
        if name not in login:
            facts.notes.append(f"{name} was not taken: it has what {command} prints")
        elif not login[name].strip():
            facts.notes.append(f"{name} is empty: {command} printed nothing, or failed")
