"""The site file: what a cluster is. Facts nobody knows are absent, never guessed."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from launcher.spec.leaves import Bytes, EnvName, Name, NonNegative, Positive, Seconds, Text

__all__ = [
    "Container",
    "Cpus",
    "Detect",
    "EngineRuntime",
    "Fabric",
    "Gpus",
    "Launch",
    "Partition",
    "Rail",
    "Scheduler",
    "SiteSpec",
]


class Detect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a login node knows that it belongs to this site: any match counts.

    Attributes
    ----------
    cluster_name
        ``ClusterName`` of slurm.conf.
    hostname
        Regular expression searched in the full host name.
    """

    cluster_name: Text | None = None
    hostname: Text | None = None


class Scheduler(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The batch system.

    Attributes
    ----------
    max_array_size
        ``MaxArraySize`` of slurm.conf: indices of an array stay below it.
    reject
        Options this site refuses, such as ``--mem``; they are never emitted.
    restart
        How an unfinished job goes on: requeued by itself, as a chain of jobs that are all queued
        at submission, each after the one before it, or only when the user resubmits.
    """

    type: Literal["slurm", "local"]
    max_array_size: Positive | None = None
    reject: list[Annotated[str, Meta(pattern=r"^--[a-z-]+$")]] = []
    restart: Literal["requeue", "chain", "none"] = "none"


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What starts the ranks of a step. ``none`` starts one process on this machine.

    Attributes
    ----------
    mpi
        With srun the value of ``--mpi``; with mpirun its flavour.
    """

    with_: Literal["srun", "mpirun", "none"] = msgspec.field(name="with")
    mpi: (
        Literal["pmix", "pmi2", "cray_shasta", "none", "openmpi4", "openmpi5", "hydra", "intel"]
        | None
    ) = None


class Container(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How images are started on compute nodes."""

    runtime: Literal["pyxis", "apptainer", "none"] = "none"


class EngineRuntime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the site keeps an engine. The job's ``runtime`` wins over it, key by key."""

    image: Text | None = None
    venv: Text | None = None
    modules: list[Text] = []
    python: Text | None = None


class Cpus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The CPUs of a node as Slurm counts them."""

    count: Positive
    arch: Literal["x86_64", "aarch64"] | None = None
    threads_per_core: Positive | None = None


class Gpus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The GPUs of a node.

    Attributes
    ----------
    link
        ``nvlink2`` … ``nvlink5`` or ``pcie``.
    topology
        Which GPUs NVLink joins: ``all-to-all``, ``pairs`` (bridges) or ``none``.
    request
        The option that asks for ``{n}`` of them on each node; absent where whole nodes are
        given without asking.
    forced_binding
        Slurm binds a GPU to each task here, so that ``--gpu-bind=none`` is needed.
    """

    model: Text
    per_node: Positive
    memory: Bytes | None = None
    link: Text | None = None
    topology: Literal["all-to-all", "pairs", "none"] | None = None
    request: Annotated[str, Meta(pattern=r"^--[a-z-]+=[^\s{}]*\{n\}$")] | None = None
    forced_binding: bool = False


class Rail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network port and the GPUs nearest to it, by index."""

    hca: Text
    gpus: list[NonNegative]


class Fabric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network between nodes. ``rate`` is Gbit/s of one port."""

    type: Literal["infiniband", "slingshot", "ethernet", "omnipath"]
    rate: Positive | None = None
    rails: list[Rail] = []


class Partition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of node that jobs can ask for.

    Attributes
    ----------
    slots
        Ranks that one node takes where there are no GPUs.
    """

    nodes: Positive | None = None
    time_limit: Seconds | None = None
    cpus: Cpus | None = None
    memory: Bytes | None = None
    gpus: Gpus | None = None
    slots: Positive = 1
    fabric: Fabric | None = None


class SiteSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole site file."""

    schema: Literal[1] = 1
    name: Name
    detect: Detect = Detect()
    scheduler: Scheduler
    launch: Launch
    container: Container = Container()
    engines: dict[Literal["tensorrt-llm", "vllm", "transformers", "echo"], EngineRuntime] = {}
    env: dict[EnvName, str] = {}
    partitions: dict[Name, Partition]
