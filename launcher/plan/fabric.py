"""What the fabric of a site puts into the environment of ranks, and why.

Only a replica over several nodes gets any of it: on one node some of it does harm, such as
``NCCL_NET=AWS Libfabric``, which HPE advises against there. Facts about names are those of
NVIDIA/nccl (``src/misc/socket.cc``, ``src/transport/net_ib``), openucx/ucx
(``UCX_NET_DEVICES``) and pytorch/pytorch (``torch/csrc/distributed/c10d/init.cpp``,
``torch/csrc/distributed/rpc/tensorpipe_agent.cpp``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.errors import Location, Problem
from launcher.plan.checks import nvlink_domain
from launcher.plan.types import Layout, Network, NodeGpus, Rail
from launcher.spec.job import JobSpec
from launcher.spec.site import Fabric, Gpus, Partition, SiteSpec
from launcher.spec.source import Source, child

__all__ = ["Wiring", "settings", "wire"]

# Those on which NCCL and UCX reach a port by verbs. Of a Slingshot or an Omni-Path port only the
# site's own `env` tells how: a plugin's variables.
_VERBS = ("infiniband", "ethernet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What a plan holds of GPUs and network, and the whole environment of its ranks.

    ``decisions`` are key, value and where the value is from.
    """

    gpus: NodeGpus | None
    network: Network | None
    env: dict[str, str]
    warnings: tuple[Problem, ...]
    decisions: tuple[tuple[str, str, Location | str], ...]


def wire(
    job: JobSpec,
    site: SiteSpec,
    name: str,
    layout: Layout,
    job_source: Source,
    site_source: Source,
) -> Wiring:
    """The wiring of ``job`` on partition ``name``; warns of ``plan.fabric-overridden``."""
    partition = site.partitions[name]
    network = _network(partition, layout, job)
    found = settings(partition.fabric) if network and partition.fabric else {}
    at = child(child("$.partitions", name), "fabric")
    return Wiring(
        gpus=_node_gpus(partition.gpus),
        network=network,
        env={**site.env, **{n: value for n, (value, _) in found.items()}, **job.env},
        warnings=tuple(
            _overridden(n, value, job_source)
            for n, (value, _) in found.items()
            if job.env.get(n, value) != value
        ),
        decisions=tuple(
            (f"env.{n}", job.env[n], job_source.at(child("$.env", n)))
            if n in job.env
            else (f"env.{n}", value, site_source.at(f"{at}.{field}"))
            for n, (value, field) in found.items()
        ),
    )


def settings(fabric: Fabric) -> dict[str, tuple[str, str]]:
    """Values by name, each with the field of ``fabric`` that it is from; `env` has the last word.

    ``NCCL_IB_HCA`` is one exact list of all rails, the same in every rank: NCCL pairs the ports
    of two ranks by their place in it, and chooses for each GPU by itself.
    """
    stated = {n: (value, child("env", n)) for n, value in fabric.env.items()}
    return {**{n: (value, field) for n, value, field in _derived(fabric)}, **stated}


def _derived(fabric: Fabric) -> Iterator[tuple[str, str, str]]:
    ports = [rail.hca for rail in fabric.rails if rail.gpus] if fabric.type in _VERBS else []
    if ports:
        yield "NCCL_IB_HCA", "=" + ",".join(ports), "rails"
    if ports and all(":" in port for port in ports):  # UCX knows no device without its port
        yield "UCX_NET_DEVICES", ",".join(ports), "rails"
    if fabric.interface is not None:
        yield "NCCL_SOCKET_IFNAME", fabric.interface, "interface"
        exact = fabric.interface.removeprefix("=")
        # These take whole names, and all ranks have to have as many of them.
        if fabric.interface.startswith("=") and "," not in exact:
            yield "GLOO_SOCKET_IFNAME", exact, "interface"
            yield "TP_SOCKET_IFNAME", exact, "interface"


def _network(partition: Partition, layout: Layout, job: JobSpec) -> Network | None:
    fabric = partition.fabric
    if fabric is None or layout.allocation.nodes == 1:
        return None
    rails = tuple(Rail(hca=r.hca, gpus=tuple(r.gpus)) for r in fabric.rails if r.gpus)
    return Network(
        type=fabric.type,
        rate=fabric.rate,
        rails=rails,
        ports=len(rails) or fabric.nics,
        srun=tuple(fabric.srun),
        variables=tuple(settings(fabric)),
        sockets="tcp-fallback" in job.allow,
    )


def _node_gpus(gpus: Gpus | None) -> NodeGpus | None:
    if gpus is None:
        return None
    return NodeGpus(
        count=gpus.per_node,
        link=gpus.link,
        domain=nvlink_domain(gpus.topology, gpus.per_node),
        model=gpus.model,
        links=gpus.links,
        cpus=tuple(gpus.cpus),
    )


def _overridden(name: str, value: str, source: Source) -> Problem:
    message = f"env sets {name}, which the site's fabric sets to {value!r}"
    hint = "delete it, unless this job is to try another network"
    where = source.key_at(child("$.env", name))
    return Problem("plan.fabric-overridden", message, where, hint, "warning")
