"""Nodes as ``scontrol show node`` and ``--json`` give them, and groups of them by ``sinfo``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.parsers.slurm_blocks import read_blocks
from launcher.parsers.slurm_json import (
    dig,
    json_list,
    json_seconds,
    json_text,
    json_tres,
    json_whole,
    json_words,
)
from launcher.parsers.slurm_tables import read_rows
from launcher.parsers.slurm_values import (
    Gres,
    NodeStates,
    Tres,
    read_count,
    read_gres,
    read_node_states,
    read_time,
    read_tres,
)
from launcher.parsers.text import ParseError

__all__ = ["Node", "NodeGroup", "Nodes", "read_nodes", "read_nodes_json", "read_sinfo"]

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
    tres
        What the node has; ``tres_used`` what jobs have of it.
    version
        Of Slurm on the node, as ``23.11.2``.
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
    gres_used: tuple[Gres, ...]
    tres: Tres
    tres_used: Tres
    features: tuple[str, ...]
    partitions: tuple[str, ...]
    states: NodeStates
    reason: str | None
    version: str | None
    weight: int | None


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes, and lines that belong to none."""

    nodes: tuple[Node, ...]
    unread: tuple[str, ...]


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
    default: bool
    states: NodeStates
    count: int | None
    nodes: str | None
    cpus: int | None
    memory_bytes: int | None
    gres: tuple[Gres, ...]
    features: tuple[str, ...]
    time_limit_s: float | None


def read_nodes(text: str) -> Nodes:
    """Read ``scontrol show node``, with or without ``--oneliner``.

    Raises
    ------
    ParseError
        They are records of something else.
    """
    blocks = read_blocks(text, "NodeName")
    return Nodes(tuple(map(_from_block, blocks.records)), blocks.unread)


def read_nodes_json(text: str) -> Nodes:
    """Read ``scontrol show nodes --json``, or ``sinfo --json`` before 23.02.

    Raises
    ------
    ParseError
        It is no such JSON.
    """
    found = json_list(text, "nodes")
    named = [record for record in found if json_text(dig(record, "name"))]
    unread = [str(record)[:80] for record in found if record not in named]
    return Nodes(tuple(map(_from_json, named)), tuple(unread))


def read_sinfo(text: str, columns: tuple[str, ...] = ()) -> tuple[NodeGroup, ...]:
    """Read ``sinfo --json`` of 23.02 and later, or lines of ``sinfo -o "%P|%D|%G|…"``.

    ``columns`` are the names that ``sinfo`` gives them (``PARTITION``, ``TIMELIMIT``, ``NODES``,
    ``STATE``, ``NODELIST``, ``CPUS``, ``MEMORY``, ``GRES``, ``AVAIL_FEATURES``), for ``-h``.

    Raises
    ------
    ParseError
        It is neither.
    """
    if text.lstrip().startswith("{"):
        return tuple(map(_group_from_json, json_list(text, "sinfo")))
    rows = read_rows(text, columns)
    if not rows.columns and text.strip():
        raise ParseError(f"not lines of `sinfo` with separators, but {text.strip()[:60]!r}")
    return tuple(map(_group_from_row, rows.rows))


def _from_block(block: Mapping[str, str]) -> Node:
    memory = read_count(block.get("RealMemory"))
    reserved = read_count(block.get("MemSpecLimit"))
    return Node(
        name=block["NodeName"],
        arch=json_text(block.get("Arch")),
        cpus=read_count(block.get("CPUTot")),
        cpus_for_jobs=read_count(block.get("CPUEfctv")),
        sockets=read_count(block.get("Sockets")),
        cores_per_socket=read_count(block.get("CoresPerSocket")),
        threads_per_core=read_count(block.get("ThreadsPerCore")),
        memory_bytes=None if memory is None else memory * _MIB,
        memory_reserved_bytes=None if reserved is None else reserved * _MIB,
        gres=read_gres(block.get("Gres", "")),
        gres_used=read_gres(block.get("GresUsed", "")),
        tres=read_tres(block.get("CfgTRES", "")),
        tres_used=read_tres(block.get("AllocTRES", "")),
        features=json_words(block.get("AvailableFeatures")),
        partitions=json_words(block.get("Partitions")),
        states=read_node_states(block.get("State", "")),
        reason=json_text(block.get("Reason")),
        version=json_text(block.get("Version")),
        weight=read_count(block.get("Weight")),
    )


def _from_json(record: Mapping[str, Any]) -> Node:
    memory = json_whole(record.get("real_memory"))
    reserved = json_whole(record.get("specialized_memory"))
    states = (*json_words(record.get("state")), *json_words(record.get("state_flags")))
    return Node(
        name=record["name"],
        arch=json_text(record.get("architecture")),
        cpus=json_whole(record.get("cpus")),
        cpus_for_jobs=json_whole(record.get("effective_cpus")),
        sockets=json_whole(record.get("sockets")),
        cores_per_socket=json_whole(record.get("cores")),
        threads_per_core=json_whole(record.get("threads")),
        memory_bytes=None if memory is None else memory * _MIB,
        memory_reserved_bytes=None if reserved is None else reserved * _MIB,
        gres=read_gres(json_text(record.get("gres")) or ""),
        gres_used=read_gres(json_text(record.get("gres_used")) or ""),
        tres=json_tres(record.get("tres")),
        tres_used=json_tres(record.get("tres_used")),
        features=json_words(record.get("features")),
        partitions=json_words(record.get("partitions")),
        states=read_node_states(*states),
        reason=json_text(record.get("reason")),
        version=json_text(record.get("version")) or json_text(record.get("slurmd_version")),
        weight=json_whole(record.get("weight")),
    )


def _group_from_json(record: Mapping[str, Any]) -> NodeGroup:
    memory = json_whole(dig(record, "memory", "minimum"))
    names = json_words(dig(record, "nodes", "nodes"))
    flags = dig(record, "partition", "flags")
    cpus = [json_whole(dig(record, "cpus", most)) for most in ("minimum", "maximum")]
    return NodeGroup(
        partition=json_text(dig(record, "partition", "name")),
        default="DEFAULT" in json_words(flags),
        states=read_node_states(*json_words(dig(record, "node", "state"))),
        count=json_whole(dig(record, "nodes", "total")),
        nodes=",".join(names) or None,
        cpus=cpus[0] if cpus[1] in (None, cpus[0]) else None,
        memory_bytes=None if memory is None else memory * _MIB,
        gres=read_gres(json_text(dig(record, "gres", "total")) or ""),
        features=json_words(dig(record, "features", "total")),
        time_limit_s=json_seconds(dig(record, "partition", "maximums", "time")),
    )


def _group_from_row(row: Mapping[str, str]) -> NodeGroup:
    name = row.get("PARTITION", "")
    memory = read_count(row.get("MEMORY"))
    return NodeGroup(
        partition=json_text(name.rstrip("*")),
        default=name.endswith("*"),
        states=read_node_states(row.get("STATE", "")),
        count=read_count(row.get("NODES")),
        nodes=json_text(row.get("NODELIST")),
        cpus=None if row.get("CPUS", "").endswith("+") else read_count(row.get("CPUS")),
        memory_bytes=None if memory is None else memory * _MIB,
        gres=read_gres(row.get("GRES", "")),
        features=json_words(row.get("AVAIL_FEATURES")),
        time_limit_s=read_time(row.get("TIMELIMIT", "")),
    )
