"""Partitions, and what QOS and associations allow. Times are seconds, inf is "no limit"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.parsers.slurm_blocks import read_blocks
from launcher.parsers.slurm_json import (
    dig,
    json_list,
    json_names,
    json_number,
    json_seconds,
    json_text,
    json_tres,
    json_whole,
    json_words,
)
from launcher.parsers.slurm_tables import read_rows
from launcher.parsers.slurm_values import Tres, read_count, read_memory, read_time, read_tres

__all__ = [
    "Association",
    "Partition",
    "Partitions",
    "Qos",
    "read_associations",
    "read_partitions",
    "read_partitions_json",
    "read_qos",
]

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition.

    Attributes
    ----------
    nodes
        List of names as text, for `launcher.nodelist.expand`.
    allow_accounts, allow_qos
        None where all are allowed, or nothing was told.
    default
        None where it was not told (JSON says it from 24.05 on).
    memory_per_node_bytes, memory_per_cpu_bytes
        The most that a job may ask for.
    root_only
        Whether only root may submit to it.
    """

    name: str
    up: bool | None
    default: bool | None
    nodes: str | None
    total_nodes: int | None
    total_cpus: int | None
    time_limit_s: float | None
    default_time_s: float | None
    min_nodes: int | None
    max_nodes: float | None
    max_cpus_per_node: float | None
    max_cpus_per_socket: float | None
    memory_per_node_bytes: float | None
    memory_per_cpu_bytes: float | None
    qos: str | None
    allow_qos: tuple[str, ...] | None
    deny_qos: tuple[str, ...]
    allow_accounts: tuple[str, ...] | None
    deny_accounts: tuple[str, ...]
    allow_groups: tuple[str, ...] | None
    root_only: bool | None
    oversubscribe: str | None
    tres: Tres


@dataclass(frozen=True, slots=True)
class Partitions:
    """The partitions, and lines that belong to none."""

    partitions: tuple[Partition, ...]
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Qos:
    """Limits of a QOS (sacctmgr(1)); an empty column is None, which is "no limit of its own"."""

    name: str
    time_limit_s: float | None
    max_tres: Tres
    max_tres_per_user: Tres
    min_tres: Tres
    group_tres: Tres
    jobs_per_user: int | None
    queued_per_user: int | None
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Association:
    """What a user may do with an account, on one partition if it names one."""

    account: str
    cluster: str | None
    user: str | None
    partition: str | None
    qos: tuple[str, ...]
    default_qos: str | None
    jobs: int | None
    queued: int | None
    time_limit_s: float | None
    max_tres: Tres


def read_partitions(text: str) -> Partitions:
    """Read ``scontrol show partition``, with or without ``--oneliner``.

    Raises
    ------
    ParseError
        They are records of something else.
    """
    blocks = read_blocks(text, "PartitionName")
    return Partitions(tuple(map(_from_block, blocks.records)), blocks.unread)


def read_partitions_json(text: str) -> Partitions:
    """Read ``scontrol show partitions --json``.

    Raises
    ------
    ParseError
        It is no such JSON.
    """
    found = json_list(text, "partitions")
    named = [record for record in found if json_text(record.get("name"))]
    unread = [str(record)[:80] for record in found if record not in named]
    return Partitions(tuple(map(_from_json, named)), tuple(unread))


def read_qos(text: str, columns: tuple[str, ...] = ()) -> tuple[Qos, ...]:
    """Read ``sacctmgr show qos -P``; limits on users are called PU or PerUser there."""
    rows = (row for row in read_rows(text, columns).rows if row.get("NAME"))
    return tuple(
        Qos(
            name=row["NAME"],
            time_limit_s=read_time(row.get("MAXWALL", "")),
            max_tres=read_tres(row.get("MAXTRES", "")),
            max_tres_per_user=read_tres(_either(row, "MAXTRESPU", "MAXTRESPERUSER")),
            min_tres=read_tres(row.get("MINTRES", "")),
            group_tres=read_tres(row.get("GRPTRES", "")),
            jobs_per_user=read_count(_either(row, "MAXJOBSPU", "MAXJOBSPERUSER")),
            queued_per_user=read_count(_either(row, "MAXSUBMITPU", "MAXSUBMITJOBSPERUSER")),
            flags=json_words(row.get("FLAGS")),
        )
        for row in rows
    )


def read_associations(text: str, columns: tuple[str, ...] = ()) -> tuple[Association, ...]:
    """Read ``sacctmgr show assoc -P``."""
    rows = (row for row in read_rows(text, columns).rows if row.get("ACCOUNT"))
    return tuple(
        Association(
            account=row["ACCOUNT"],
            cluster=json_text(row.get("CLUSTER")),
            user=json_text(row.get("USER")),
            partition=json_text(row.get("PARTITION")),
            qos=json_words(row.get("QOS")),
            default_qos=json_text(_either(row, "DEFQOS", "DEFAULTQOS")),
            jobs=read_count(row.get("MAXJOBS")),
            queued=read_count(_either(row, "MAXSUBMIT", "MAXSUBMITJOBS")),
            time_limit_s=read_time(row.get("MAXWALL", "")),
            max_tres=read_tres(row.get("MAXTRES", "")),
        )
        for row in rows
    )


def _from_block(block: Mapping[str, str]) -> Partition:
    default, root_only = block.get("Default"), block.get("RootOnly")
    state = block.get("State")
    return Partition(
        name=block["PartitionName"],
        up=None if state is None else state.upper() == "UP",
        default=None if default is None else default.upper() == "YES",
        nodes=json_text(block.get("Nodes")),
        total_nodes=read_count(block.get("TotalNodes")),
        total_cpus=read_count(block.get("TotalCPUs")),
        time_limit_s=read_time(block.get("MaxTime", "")),
        default_time_s=read_time(block.get("DefaultTime", "")),
        min_nodes=read_count(block.get("MinNodes")),
        max_nodes=_limit(block.get("MaxNodes")),
        max_cpus_per_node=_limit(block.get("MaxCPUsPerNode")),
        max_cpus_per_socket=_limit(block.get("MaxCPUsPerSocket")),
        memory_per_node_bytes=_memory(block.get("MaxMemPerNode")),
        memory_per_cpu_bytes=_memory(block.get("MaxMemPerCPU")),
        qos=json_text(block.get("QoS")),
        allow_qos=json_names(block.get("AllowQos")),
        deny_qos=json_words(block.get("DenyQos")),
        allow_accounts=json_names(block.get("AllowAccounts")),
        deny_accounts=json_words(block.get("DenyAccounts")),
        allow_groups=json_names(block.get("AllowGroups")),
        root_only=None if root_only is None else root_only.upper() == "YES",
        oversubscribe=json_text(block.get("OverSubscribe")),
        tres=read_tres(block.get("TRES", "")),
    )


def _from_json(record: Mapping[str, Any]) -> Partition:
    """Keys are nested from data parser 0.0.39 on, flat before."""
    flags = json_words(dig(record, "partition", "flags")) + json_words(record.get("flags"))
    state = json_words(dig(record, "partition", "state")) or json_words(record.get("state"))
    most = "maximums"
    return Partition(
        name=record["name"],
        up="UP" in state if state else None,
        default=any(flag.upper() == "DEFAULT" for flag in flags) if flags else None,
        nodes=json_text(dig(record, "nodes", "configured")) or json_text(record.get("nodes")),
        total_nodes=json_whole(_first(dig(record, "nodes", "total"), record.get("total_nodes"))),
        total_cpus=json_whole(_first(dig(record, "cpus", "total"), record.get("total_cpus"))),
        time_limit_s=json_seconds(_first(dig(record, most, "time"), record.get("max_time_limit"))),
        default_time_s=json_seconds(
            _first(dig(record, "defaults", "time"), record.get("default_time_limit"))
        ),
        min_nodes=json_whole(
            _first(dig(record, "minimums", "nodes"), record.get("min_nodes_per_job"))
        ),
        max_nodes=json_number(
            _first(dig(record, most, "nodes"), record.get("maximum_nodes_per_job"))
        ),
        max_cpus_per_node=json_number(
            _first(dig(record, most, "cpus_per_node"), record.get("maximum_cpus_per_node"))
        ),
        max_cpus_per_socket=json_number(dig(record, most, "cpus_per_socket")),
        memory_per_node_bytes=_mib(dig(record, most, "partition_memory_per_node")),
        memory_per_cpu_bytes=_mib(dig(record, most, "partition_memory_per_cpu")),
        qos=json_text(dig(record, "qos", "assigned")) or json_text(record.get("qos")),
        allow_qos=json_names(_first(dig(record, "qos", "allowed"), record.get("allowed_qos"))),
        deny_qos=json_words(_first(dig(record, "qos", "deny"), record.get("denied_qos"))),
        allow_accounts=json_names(
            _first(dig(record, "accounts", "allowed"), record.get("allowed_accounts"))
        ),
        deny_accounts=json_words(
            _first(dig(record, "accounts", "deny"), record.get("denied_accounts"))
        ),
        allow_groups=json_names(
            _first(dig(record, "groups", "allowed"), record.get("allowed_groups"))
        ),
        root_only="ROOT_ONLY" in flags if flags else None,
        oversubscribe=None,
        tres=json_tres(_first(dig(record, "tres", "configured"), record.get("tres"))),
    )


def _first(nested: Any, flat: Any) -> Any:
    return flat if nested is None else nested


def _either(row: Mapping[str, str], short: str, long: str) -> str:
    return row.get(short) or row.get(long) or ""


def _limit(text: str | None) -> float | None:
    return math.inf if (text or "").upper() in {"UNLIMITED", "INFINITE"} else read_count(text)


def _memory(text: str | None) -> float | None:
    found = read_memory(text or "")
    return found.bytes if found and found.bytes else None


def _mib(value: Any) -> float | None:
    """Zero is what Slurm gives for no limit here."""
    number = json_number(value)
    return number * _MIB if number else None
