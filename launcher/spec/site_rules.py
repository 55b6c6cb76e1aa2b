"""What a site file may not say of its partitions and disks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from launcher.errors import Problem
from launcher.spec.site import Gpus, Limits, Partition, Qos, SiteSpec
from launcher.spec.source import Source, child, spoken
from launcher.units import format_duration

__all__ = ["check_partitions", "check_scratch", "repeated"]

# They give each task GPUs of its own and hide the others (srun(1)).
_HIDING = ("--gpus-per-task", "--ntasks-per-gpu", "--gpus-per-socket")
_DIRECTORY = re.compile(r"(/|\$\w|\$\{\w)([^$]|\$\{?\w)*", re.ASCII)


def check_partitions(site: SiteSpec, source: Source) -> Iterator[Problem]:
    """``spec.conflict`` and ``spec.invalid``, partition by partition."""
    if not site.partitions:
        where, hint = source.at("$.partitions"), "describe at least one partition"
        yield Problem("spec.invalid", "`partitions` is empty", where, hint)
    for name, partition in site.partitions.items():
        at = child("$.partitions", name)
        yield from _rails(partition, at, source)
        if partition.gpus is not None:
            yield from _gpus(partition.gpus, f"{at}.gpus", source)
        yield from _limits(partition.limits, partition, f"{at}.limits", source)
        for qos, limits in partition.qos.items():
            yield from _limits(limits, partition, child(f"{at}.qos", qos), source)
    yield from _told_apart(site, source)


def check_scratch(site: SiteSpec, source: Source) -> Iterator[Problem]:
    """``spec.invalid`` for directories that a script would read otherwise."""
    places = {f"$.scratch.read_only[{i}]": text for i, text in enumerate(site.scratch.read_only)}
    if site.scratch.node_local is not None:
        places["$.scratch.node_local"] = site.scratch.node_local
    for field, place in places.items():
        if not _DIRECTORY.fullmatch(place) or {":", ","}.intersection(place):
            message = f"{spoken(field)} is no directory that a script and a mount can name"
            hint = "begin with / or a variable such as $SLURM_TMPDIR, without colon or comma"
            yield Problem("spec.invalid", f"{message}: {place!r}", source.at(field), hint)


def repeated(names: Sequence[object]) -> list[int]:
    """The places in ``names`` of what stood there before."""
    first: dict[object, int] = {}
    return [index for index, name in enumerate(names) if first.setdefault(name, index) != index]


def _rails(partition: Partition, at: str, source: Source) -> Iterator[Problem]:
    rails = partition.fabric.rails if partition.fabric else []
    field = f"{at}.fabric.rails"
    for index in repeated([rail.hca for rail in rails]):
        message = f"{spoken(field)} names {rails[index].hca!r} twice"
        where = source.at(f"{field}[{index}].hca")
        yield Problem("spec.conflict", message, where, "name each port once")
    gpus_per_node = partition.gpus.per_node if partition.gpus else 0
    for number, rail in enumerate(rails):
        for index, gpu in enumerate(rail.gpus):
            if gpu >= gpus_per_node:
                message = f"rail {rail.hca!r} names GPU {gpu} of nodes with {gpus_per_node} GPUs"
                where = source.at(f"{field}[{number}].gpus[{index}]")
                hint = "count GPUs from 0, and check `gpus.per_node`"
                yield Problem("spec.conflict", message, where, hint)
    used = sum(bool(rail.gpus) for rail in rails)
    nics = partition.fabric.nics if partition.fabric else None
    if rails and nics is not None and nics != used:
        message = f"`nics` is {nics}, and {used} of the `rails` have GPUs"
        where = source.at(f"{at}.fabric.nics")
        yield Problem("spec.conflict", message, where, "delete `nics`: the rails say it")


def _gpus(gpus: Gpus, at: str, source: Source) -> Iterator[Problem]:
    if gpus.cpus and len(gpus.cpus) != gpus.per_node:
        message = f"`gpus.cpus` has {len(gpus.cpus)} lists for {gpus.per_node} GPUs"
        where = source.at(f"{at}.cpus")
        yield Problem("spec.conflict", message, where, "give each GPU of a node one list of CPUs")
    option = (gpus.request or "").partition("=")[0]
    if option in _HIDING:
        message = f"{option} hides the GPUs of a node from each other's tasks"
        hint = "ask by --gpus-per-node={n} or --gres=gpu:{n}"
        yield Problem("spec.invalid", message, source.at(f"{at}.request"), hint)
    if gpus.unit == "gpu-or-node" and gpus.request is None:
        message = "`gpus.unit` is 'gpu-or-node', and no `gpus.request` tells one from all"
        yield Problem("spec.conflict", message, source.at(f"{at}.unit"), "state `gpus.request`")
    joined = gpus.topology in ("all-to-all", "pairs")
    if gpus.link == "pcie" and joined:
        message = f"`gpus.topology` is {gpus.topology!r}, and the `link` of these GPUs is 'pcie'"
        hint = "name the NVLink, or set `topology` to 'none'"
        yield Problem("spec.conflict", message, source.at(f"{at}.topology"), hint)
    if gpus.links is not None and (gpus.link == "pcie" or gpus.topology == "none"):
        message = f"`gpus.links` is {gpus.links}, and no NVLink joins these GPUs"
        hint = "delete it, or correct `link` and `topology`"
        yield Problem("spec.conflict", message, source.at(f"{at}.links"), hint)


def _limits(limits: Limits, partition: Partition, at: str, source: Source) -> Iterator[Problem]:
    for what in ("nodes", "gpus"):
        least, most = getattr(limits, f"min_{what}"), getattr(limits, f"max_{what}")
        if least is not None and most is not None and least > most:
            message = f"`min_{what}` is {least}, and `max_{what}` is {most}"
            where = source.at(f"{at}.min_{what}")
            yield Problem("spec.conflict", message, where, "exchange them, or delete one")
    longest = limits.time_limit if isinstance(limits, Qos) else None
    longest = longest or partition.time_limit
    if limits.min_time is not None and longest is not None and limits.min_time > longest:
        message = (
            f"`min_time` is {format_duration(limits.min_time)}, and the time limit is "
            f"{format_duration(longest)}"
        )
        where = source.at(f"{at}.min_time")
        yield Problem("spec.conflict", message, where, "correct one of them")


def _told_apart(site: SiteSpec, source: Source) -> Iterator[Problem]:
    """Partitions for which Slurm would be asked in the same words."""
    names = list(site.partitions)
    words = [
        (
            partition.select.partition or name,
            partition.select.constraint,
            partition.select.qos,
            partition.select.account_suffix,
            partition.gpus.request if partition.gpus else None,
        )
        for name, partition in site.partitions.items()
    ]
    for index in repeated(words):
        first = names[words.index(words[index])]
        message = f"partitions {first!r} and {names[index]!r} are asked for in the same words"
        where = source.key_at(child("$.partitions", names[index]))
        hint = "tell them apart by `select` or `gpus.request`, or describe them as one"
        yield Problem("spec.conflict", message, where, hint)
