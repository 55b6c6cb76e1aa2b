"""Nodes as ``scontrol show node`` gives them, and groups of them by ``sinfo``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.parsers.slurm_blocks import read_blocks
from launcher.parsers.slurm_tables import read_rows
from launcher.parsers.slurm_values import (
    Gres,
    NodeStates,
    Tres,
    read_count,
    read_gres,
    read_node_states,
    read_text,
    read_time,
    read_tres,
    read_words,
)

__all__ = ["Node", "NodeGroup", "read_nodes", "read_sinfo"]

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Node:
    """One node; what was not told is None or empty.

    Attributes
    ----------
    cpus
        As Slurm counts them: threads, where it counts those.
    cpus_for_jobs
        Without those that Slurm keeps for the system (``CPUEfctv``, from 22.05 on).
    memory_reserved_bytes
        Of ``memory_bytes``, what no job is given (``MemSpecLimit``).
    """

    name: str
    arch: str | None
    cpus: int | None
    cpus_for_jobs: int | None
    sockets: int | None
    cores_per_socket: int | None
    threads_per_core: int | None
    memory_bytes: int | None
    memory_reserved_bytes: int | None
    gres: tuple[Gres, ...]
    tres: Tres
    features: tuple[str, ...]
    partitions: tuple[str, ...]
    states: NodeStates


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes of a partition that ``sinfo`` puts on one line: alike in all columns asked for.

    Attributes
    ----------
    nodes
        List of names as text.
    cpus
        Of each node; None where that differs.
    memory_bytes
        Of each node, or of the smallest of them.
    """

    partition: str | None
    states: NodeStates
    nodes: str | None
    cpus: int | None
    memory_bytes: int | None
    gres: tuple[Gres, ...]
    features: tuple[str, ...]
    time_limit_s: float | None


def read_nodes(text: str) -> tuple[Node, ...]:
    """Read ``scontrol show node``, with or without ``--oneliner``.

    Raises
    ------
    ParseError
        They are no such records.
    """
    return tuple(map(_from_block, read_blocks(text, "NodeName")))


def read_sinfo(text: str) -> tuple[NodeGroup, ...]:
    """Read lines of ``sinfo -o "%P|%D|%G|…"`` with their heads.

    Raises
    ------
    ParseError
        They are no such lines.
    """
    return tuple(map(_group_from_row, read_rows(text)))


def _from_block(block: Mapping[str, str]) -> Node:
    memory = read_count(block.get("RealMemory"))
    reserved = read_count(block.get("MemSpecLimit"))
    return Node(
        name=block["NodeName"],
        arch=read_text(block.get("Arch")),
        cpus=read_count(block.get("CPUTot")),
        cpus_for_jobs=read_count(block.get("CPUEfctv")),
        sockets=read_count(block.get("Sockets")),
        cores_per_socket=read_count(block.get("CoresPerSocket")),
        threads_per_core=read_count(block.get("ThreadsPerCore")),
        memory_bytes=None if memory is None else memory * _MIB,
        memory_reserved_bytes=None if reserved is None else reserved * _MIB,
        gres=read_gres(block.get("Gres", "")),
        tres=read_tres(block.get("CfgTRES", "")),
        features=read_words(block.get("AvailableFeatures")),
        partitions=read_words(block.get("Partitions")),
        states=read_node_states(block.get("State", "")),
    )


def _group_from_row(row: Mapping[str, str]) -> NodeGroup:
    memory = read_count(row.get("MEMORY"))
    return NodeGroup(
        partition=read_text(row.get("PARTITION", "").rstrip("*")),
        states=read_node_states(row.get("STATE", "")),
        nodes=read_text(row.get("NODELIST")),
        cpus=None if row.get("CPUS", "").endswith("+") else read_count(row.get("CPUS")),
        memory_bytes=None if memory is None else memory * _MIB,
        gres=read_gres(row.get("GRES", "")),
        features=read_words(row.get("AVAIL_FEATURES")),
        time_limit_s=read_time(row.get("TIMELIMIT", "")),
    )
