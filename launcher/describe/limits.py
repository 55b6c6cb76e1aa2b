"""What a partition and the QoS allow one job and one user (slurm.conf(5), sacctmgr(1))."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from launcher.describe.captures import Slurm
from launcher.describe.facts import Facts, Place
from launcher.parsers.slurm_partitions import Partition, Qos
from launcher.parsers.slurm_values import Tres, read_count

__all__ = ["limit_facts"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_OF_QOS = "sacctmgr show qos"


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
    bounds: dict[str, int] = {}
    _least(bounds, "time_limit", [partition.time_limit_s])
    _least(bounds, "max_nodes", [partition.max_nodes])
    _most(bounds, "min_nodes", [partition.min_nodes])
    if own and _closed(own, types):
        facts.notes.append(f"{at[1]}: its QoS {own.name} lets no job in now: {_OF_QOS}")
    of_qos = _bounds(own, types) if own else {}
    joined = _joined(bounds, of_qos)
    for key, value in joined.items():
        place = (*at, key) if key == "time_limit" else (*at, "limits", key)
        source = slurm.of_partitions if bounds.get(key) == value else f"{_OF_QOS} ({partition.qos})"
        facts.say(place, value, source)
    for group in slurm.groups:
        if group.partition == partition.name and "time_limit" not in of_qos:
            limit_s = group.time_limit_s if _finite(group.time_limit_s) else None
            facts.say((*at, "time_limit"), limit_s and int(limit_s), "sinfo")
    _each_qos(facts, (*at, "qos"), partition, slurm, joined, of_qos, types)


def _each_qos(
    facts: Facts,
    at: Place,
    partition: Partition,
    slurm: Slurm,
    joined: Mapping[str, int],
    own: Mapping[str, int],
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
    differing = {name: _differing(slurm.qos[name], joined, own, types) for name in names}
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
    qos: Qos, joined: Mapping[str, int], own: Mapping[str, int], types: Sequence[str | None]
) -> dict[str, int]:
    """What ``qos`` changes, for a job of it."""
    bounds = _bounds(qos, types)
    kept = {
        key: bound for key, bound in bounds.items() if "OverPartQOS" in qos.flags or key not in own
    }
    over = {"PartitionTimeLimit": "time_limit", "PartitionMaxNodes": "max_nodes"}
    free = {key for flag, key in over.items() if flag in qos.flags}
    both = {
        key: bound
        if key in free
        else _joined({k: v for k, v in joined.items() if k == key}, {key: bound})[key]
        for key, bound in kept.items()
    }
    return {key: bound for key, bound in both.items() if joined.get(key) != bound}


def _bounds(qos: Qos, types: Sequence[str | None]) -> dict[str, int]:
    found: dict[str, int] = {}
    most = (qos.max_tres, qos.max_tres_per_user, qos.group_tres)
    _least(found, "time_limit", [qos.time_limit_s])
    _least(found, "max_nodes", [tres.nodes for tres in most])
    _least(found, "max_gpus", [_gpus(tres, types) for tres in most])
    _most(found, "min_nodes", [qos.min_tres.nodes])
    _most(found, "min_gpus", [_gpus(qos.min_tres, types)])
    _least(found, "jobs_running", [qos.jobs_per_user])
    _least(found, "jobs_queued", [qos.queued_per_user])
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


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value >= 1


def _least(found: dict[str, int], key: str, values: Iterable[float | None]) -> None:
    finite = [int(value) for value in values if value is not None and _finite(value)]
    if finite:
        found[key] = min(finite)


def _most(found: dict[str, int], key: str, values: Iterable[float | None]) -> None:
    """Of least sizes one of 1 says nothing."""
    finite = [int(value) for value in values if value is not None and _finite(value) and value > 1]
    if finite:
        found[key] = max(finite)
