"""From captures to a site file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.describe.captures import LOGIN, read_slurm
from launcher.describe.cluster import cluster_facts, container_facts
from launcher.describe.facts import Facts, spoken_place
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
        What would tell the values that are not known, by key.
    notes
        What was left out, and why.
    partitions
        Keys by the name that Slurm has for the partition.
    """

    name: str
    text: str
    questions: Mapping[str, str]
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
    kinds = partition_facts(facts, slurm, with_cpus=with_cpus)
    for key in kinds:
        facts.say(("partitions", key), {}, slurm.of_partitions)
    for captures in nodes:
        node_facts(facts, captures, kinds)
    if not any(captures.get("node.txt") for captures in nodes):
        container_facts(facts, login, "on the login node")
    _absent(facts, login)
    found = facts.settled()
    cluster = slurm.config.cluster if slurm.config else None
    called = (
        name or re.sub(r"[^A-Za-z0-9_.-]", "-", cluster or "").lstrip("-_.")[:63] or "discovered"
    )
    of = {slurm_name for slurm_name, _ in kinds.values()}
    return Described(
        name=called,
        text=write_site(called, found),
        questions={spoken_place(place): text for place, text in sorted(found.questions.items())},
        notes=tuple(dict.fromkeys(found.notes)),
        partitions={one: tuple(k for k, (n, _) in kinds.items() if n == one) for one in sorted(of)},
    )


def _absent(facts: Facts, login: Mapping[str, str]) -> None:
    """Say which commands told nothing; what is on PATH is told by few of them."""
    silent = [name for name, words in LOGIN.items() if not login.get(name) and words[0] != "which"]
    for name in silent:
        facts.notes.append(f"`{' '.join(LOGIN[name][:3])}` told nothing")
