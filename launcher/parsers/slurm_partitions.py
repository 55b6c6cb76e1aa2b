"""Partitions, and what QOS and associations allow. Times are seconds, inf is "no limit"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.parsers.slurm_blocks import read_blocks
from launcher.parsers.slurm_tables import read_rows
from launcher.parsers.slurm_values import (
    Tres,
    read_count,
    read_names,
    read_text,
    read_time,
    read_tres,
    read_words,
)

__all__ = [
    "Association",
    "Partition",
    "Qos",
    "read_associations",
    "read_partitions",
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
    memory_per_node_bytes
        The most that a job may ask for.
    root_only
        Whether only root may submit to it.
    """

    name: str
    up: bool | None
    nodes: str | None
    time_limit_s: float | None
    min_nodes: int | None
    max_nodes: float | None
    max_cpus_per_node: float | None
    max_cpus_per_socket: float | None
    memory_per_node_bytes: float | None
    qos: str | None
    allow_qos: tuple[str, ...] | None
    deny_qos: tuple[str, ...]
    allow_accounts: tuple[str, ...] | None
    deny_accounts: tuple[str, ...]
    allow_groups: tuple[str, ...] | None
    root_only: bool | None
    oversubscribe: str | None


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
    """Which QOS a user may have with an account."""

    account: str
    cluster: str | None
    qos: tuple[str, ...]
    default_qos: str | None


def read_partitions(text: str) -> tuple[Partition, ...]:
    """Read ``scontrol show partition``, with or without ``--oneliner``.

    Raises
    ------
    ParseError
        They are no such records.
    """
    return tuple(map(_from_block, read_blocks(text, "PartitionName")))


def read_qos(text: str) -> tuple[Qos, ...]:
    """Read ``sacctmgr show qos -P``; limits on users are called PU or PerUser there."""
    rows = (row for row in read_rows(text) if row.get("NAME"))
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
            flags=read_words(row.get("FLAGS")),
        )
        for row in rows
    )


def read_associations(text: str) -> tuple[Association, ...]:
    """Read ``sacctmgr show assoc -P``."""
    rows = (row for row in read_rows(text) if row.get("ACCOUNT"))
    return tuple(
        Association(
            account=row["ACCOUNT"],
            cluster=read_text(row.get("CLUSTER")),
            qos=read_words(row.get("QOS")),
            default_qos=read_text(_either(row, "DEFQOS", "DEFAULTQOS")),
        )
        for row in rows
    )


def _from_block(block: Mapping[str, str]) -> Partition:
    state, root_only = block.get("State"), block.get("RootOnly")
    memory_mib = _limit(block.get("MaxMemPerNode"))
    return Partition(
        name=block["PartitionName"],
        up=None if state is None else state.upper() == "UP",
        nodes=read_text(block.get("Nodes")),
        time_limit_s=read_time(block.get("MaxTime", "")),
        min_nodes=read_count(block.get("MinNodes")),
        max_nodes=_limit(block.get("MaxNodes")),
        max_cpus_per_node=_limit(block.get("MaxCPUsPerNode")),
        max_cpus_per_socket=_limit(block.get("MaxCPUsPerSocket")),
        memory_per_node_bytes=memory_mib * _MIB if memory_mib else None,
        qos=read_text(block.get("QoS")),
        allow_qos=read_names(block.get("AllowQos")),
        deny_qos=read_words(block.get("DenyQos")),
        allow_accounts=read_names(block.get("AllowAccounts")),
        deny_accounts=read_words(block.get("DenyAccounts")),
        allow_groups=read_names(block.get("AllowGroups")),
        root_only=None if root_only is None else root_only.upper() == "YES",
        oversubscribe=read_text(block.get("OverSubscribe")),
    )


def _either(row: Mapping[str, str], short: str, long: str) -> str:
    return row.get(short) or row.get(long) or ""


def _limit(text: str | None) -> float | None:
    return math.inf if (text or "").upper() in {"UNLIMITED", "INFINITE"} else read_count(text)
