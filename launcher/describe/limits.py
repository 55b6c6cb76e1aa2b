"""What a partition and the QoS allow one job and one user (slurm.conf(5), sacctmgr(1))."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from launcher.describe.captures import Slurm
from launcher.describe.facts import Facts, Place
from launcher.parsers.slurm_partitions import Partition, Qos
from launcher.parsers.slurm_values import Tres, read_count

__all__ = ["limit_facts"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_OF_QOS = "sacctmgr show qos"
# Flags of a QoS that lift a bound of the partition (sacctmgr(1)).
_OVER = {
    "PartitionTimeLimit": "time_limit",
    "PartitionMaxNodes": "max_nodes",
    "PartitionMinNodes": "min_nodes",
}
# By what they bound, and a number where there are several: for a job, a user, all users.
_Limits: TypeAlias = Mapping[tuple[str, int], float | None]


def limit_facts(
    facts: Facts, at: Place, partition: Partition, slurm: Slurm, types: Sequence[str | None]
) -> None:
    """Say time limit and limits of ``partition``, and of each QoS where they differ.

    The partition's own QoS binds every job in it, over the job's (resource_limits of Slurm's
    documentation); ``types`` are the GPUs, none or one, that limits may be for.
    """
    own = (slurm.qos or {}).get(partition.qos or "")
    if partition.qos and own is None:
        facts.notes.append(f"{at[1]}: QoS {partition.qos} limits it, too: {_OF_QOS}")
    bounds = _folded(
        {
            ("time_limit", 0): partition.time_limit_s,
            ("max_nodes", 0): partition.max_nodes,
            ("min_nodes", 0): partition.min_nodes,
        }
    )
    if own and _closed(own, types):
        facts.notes.append(f"{at[1]}: its QoS {own.name} lets no job in now: {_OF_QOS}")
    of_qos = _limits(own, types) if own else {}
    joined = _joined(bounds, _folded(of_qos))
    for key, value in joined.items():
        place = (*at, key) if key == "time_limit" else (*at, "limits", key)
        source = slurm.of_partitions if bounds.get(key) == value else f"{_OF_QOS} ({partition.qos})"
        facts.say(place, value, source)
    for group in slurm.groups:
        if group.partition == partition.name and ("time_limit", 0) not in of_qos:
            told = _folded({("time_limit", 0): group.time_limit_s})
            facts.say((*at, "time_limit"), told.get("time_limit"), "sinfo")
    _each_qos(facts, (*at, "qos"), partition, slurm, (bounds, of_qos), types)


def _each_qos(
    facts: Facts,
    at: Place,
    partition: Partition,
    slurm: Slurm,
    own: tuple[Mapping[str, int], _Limits],
    types: Sequence[str | None],
) -> None:
    """A QoS that is not named here is refused: either all that the user may choose, or none."""
    names = _usable(partition, slurm, types)
    if partition.allow_qos is not None and names is not None and len(names) == 1:
        facts.say((*at[:-1], "select", "qos"), names[0], f"AllowQos of {slurm.of_partitions}")
    if names is None or slurm.qos is None or not set(names) <= set(slurm.qos):
        return
    if not all(map(_NAME.fullmatch, names)):
        facts.notes.append(f"{partition.name}: names of QoS that no site file can hold: {names}")
        return
    differing = {name: _differing(slurm.qos[name], *own, types) for name in names}
    closed = any(_closed(one, types) for one in slurm.qos.values())
    if not any(differing.values()) and partition.allow_qos is None and not closed:
        return
    for name, bounds in differing.items():
        facts.say((*at, name), {}, _OF_QOS)
        for key, value in bounds.items():
            facts.say((*at, name, key), value, _OF_QOS)
    defaults = {one.default_qos for one in slurm.associations or ()}
    if len(defaults) == 1 and (default := defaults.pop()) and differing.get(default):
        facts.say((*at[:-1], "select", "qos"), default, "Def QOS of sacctmgr show assoc")


def _usable(
    partition: Partition, slurm: Slurm, types: Sequence[str | None]
) -> tuple[str, ...] | None:
    """What the user may choose there; None where that is not known, or anything."""
    of_user = {name for one in slurm.associations or () for name in one.qos}
    if partition.allow_qos is not None:
        names = [name for name in partition.allow_qos if not of_user or name in of_user]
    else:
        names = [name for name in sorted(of_user) if name not in partition.deny_qos]
    known = slurm.qos or {}
    open_ = (name for name in names if name not in known or not _closed(known[name], types))
    return tuple(open_) or None


def _closed(qos: Qos, types: Sequence[str | None]) -> bool:
    """Whether one of its limits is none at all."""
    most = (qos.max_tres, qos.max_tres_per_user, qos.group_tres)
    counts = (count for tres in most for count in (tres.nodes, _gpus(tres, types)))
    return 0 in (qos.jobs_per_user, qos.queued_per_user, *counts)


def _differing(
    qos: Qos, bounds: Mapping[str, int], own: _Limits, types: Sequence[str | None]
) -> dict[str, int]:
    """What ``qos`` changes, for a job of it: it adds limits that the partition's does not have."""
    limits = _limits(qos, types)
    both = {**own, **limits} if "OverPartQOS" in qos.flags else {**limits, **own}
    free = {key for flag, key in _OVER.items() if flag in qos.flags}
    held = _joined({key: bound for key, bound in bounds.items() if key not in free}, _folded(both))
    joined = _joined(bounds, _folded(own))
    return {key: bound for key, bound in held.items() if joined.get(key) != bound}


def _limits(qos: Qos, types: Sequence[str | None]) -> _Limits:
    most = enumerate((qos.max_tres, qos.max_tres_per_user, qos.group_tres))
    told: dict[tuple[str, int], float | None] = {
        ("time_limit", 0): qos.time_limit_s,
        ("min_nodes", 0): qos.min_tres.nodes,
        ("min_gpus", 0): _gpus(qos.min_tres, types),
        ("jobs_running", 0): qos.jobs_per_user,
        ("jobs_queued", 0): qos.queued_per_user,
    }
    for number, tres in most:
        told["max_nodes", number] = tres.nodes
        told["max_gpus", number] = _gpus(tres, types)
    return {place: value for place, value in told.items() if value is not None}


def _folded(limits: _Limits) -> dict[str, int]:
    """The strictest of each; least sizes of 1 say nothing, and neither does infinity."""
    found: dict[str, int] = {}
    for (key, _), value in limits.items():
        least = 2 if key.startswith("min") else 1
        if value is not None and math.isfinite(value) and value >= least:
            found = _joined(found, {key: int(value)})
    return found


def _gpus(tres: Tres, types: Sequence[str | None]) -> int | None:
    """Limits of other types do not count for GPUs of this one."""
    counts = [tres.gpu_types.get(type_) for type_ in types if type_]
    if types:
        counts.append(read_count(tres.entries.get("gres/gpu")))
    return min((count for count in counts if count is not None), default=None)


def _joined(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """Both hold."""
    return {
        key: (max if key.startswith("min") else min)(
            bounds[key] for bounds in (first, second) if key in bounds
        )
        for key in {**first, **second}
    }
