"""Which nodes of a site a job asks for, in whose name, and what it may have of them.

Pure: the same answers go into the directives, the checks and the decisions of a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import asdict

from launcher.plan.types import Layout
from launcher.spec.job import JobSpec
from launcher.spec.site import Partition, Qos, SiteSpec, Topology
from launcher.units import slurm_time

__all__ = ["Selection", "allowed", "at_once", "nearness", "newer", "rejected", "select"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The values of the options of these names, in this order; None leaves one out."""

    partition: str | None
    account: str | None
    qos: str | None
    reservation: str | None
    constraint: str | None
    exclude: str | None


def select(job: JobSpec, site: SiteSpec, partition_name: str) -> Selection:
    """How ``job`` asks for a partition of ``site``; what the job says wins."""
    by, asked = site.partitions[partition_name].select, job.resources
    named = by.partition or partition_name
    account, suffix = asked.account, by.account_suffix or ""
    if account is not None and not account.endswith(suffix):
        account += suffix
    return Selection(
        partition=None if named == "none" else named,
        account=account,
        qos=asked.qos or by.qos,
        reservation=asked.reservation,
        constraint=asked.constraint or by.constraint,
        exclude=asked.exclude,
    )


def allowed(partition: Partition, qos: str | None) -> Qos:
    """What one job may ask for: what the QoS says, and the partition where it is silent."""
    base = {"time_limit": partition.time_limit, **asdict(partition.limits)}
    own = asdict(partition.qos[qos]) if qos in partition.qos else {}
    return Qos(**{**base, **{key: value for key, value in own.items() if value is not None}})


def at_once(job: JobSpec, limits: Qos, count: int) -> int | None:
    """How many of ``count`` allocations run at the same time; None where nothing bounds them."""
    most = limits.jobs_running
    return job.resources.at_once or (most if most is not None and most < count else None)


def nearness(site: SiteSpec, partition: Partition, layout: Layout) -> tuple[str, str] | None:
    """The option that keeps the nodes of one allocation near to each other, and its value.

    A job waits for ``--switches`` as long as it is told (sbatch(1)); on a dragonfly only one
    group is a bound that means something, for a larger job is spread on purpose. ``--segment``
    begins with 24.05, and has to divide the nodes.
    """
    topology, nodes = partition.topology, layout.allocation.nodes
    if topology is None or nodes == 1:
        return None
    if topology.type == "block":
        size = _segment(topology, layout)
        old = not newer(site, "24.05", unknown=True)
        return None if size == 1 or old else ("--segment", str(size))
    count = -(-nodes // topology.nodes)
    if topology.type == "dragonfly" and count > 1:
        return None
    return "--switches", f"{count}@{slurm_time(topology.wait)}"


def _segment(topology: Topology, layout: Layout) -> int:
    """Nodes that lie in one block: as many as divide the job, and hold whole stages."""
    nodes = layout.allocation.nodes
    stage = max(1, nodes // layout.cut.pp)
    most = min(nodes, topology.nodes)
    sizes = [n for n in range(1, most + 1) if nodes % n == 0 and n % stage == 0]
    return max(sizes, default=1)


def newer(site: SiteSpec, version: str, *, unknown: bool) -> bool:
    """Whether the site's Slurm is ``version`` or later; ``unknown`` where it does not say."""
    own = site.scheduler.version
    return unknown if own is None else own >= version


def rejected(site: SiteSpec, option: str, value: str | None) -> bool:
    """Whether the site refuses ``option``, or refuses it with this value."""
    return not {option, f"{option}={value}"}.isdisjoint(site.scheduler.reject)
