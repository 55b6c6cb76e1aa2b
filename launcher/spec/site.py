"""The site file: what a cluster is. Facts nobody knows are absent, never guessed."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from launcher.spec.leaves import Bytes, EnvName, Name, NonNegative, Option, Positive, Seconds, Text

__all__ = [
    "Container",
    "Cpus",
    "Detect",
    "EngineRuntime",
    "Fabric",
    "Gpus",
    "Launch",
    "Limits",
    "Partition",
    "Qos",
    "Rail",
    "Scheduler",
    "Scratch",
    "Select",
    "SiteSpec",
    "Topology",
]

# A list of CPUs as Linux and nvidia-smi write it: ``0-15,128-143``.
CpuList = Annotated[str, Meta(pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$")]


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
    version
        Of Slurm, as ``23.11``: options that are newer are not emitted.
    max_array_size
        ``MaxArraySize`` of slurm.conf: indices of an array stay below it.
    reject
        Options this site refuses, such as ``--mem``, or with the one value that it refuses,
        ``--mem=0``; they are never emitted.
    account_required
        A job without ``resources.account`` is refused here.
    restart
        How an unfinished job goes on: requeued by itself, as a chain of jobs that are all queued
        at submission, each after the one before it, or only when the user resubmits.
    """

    type: Literal["slurm", "local"]
    version: Annotated[str, Meta(pattern=r"^\d\d\.\d\d$")] | None = None
    max_array_size: Positive | None = None
    reject: list[Option] = []
    account_required: bool = False
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
    """How images are started on compute nodes.

    Attributes
    ----------
    command
        What ``apptainer`` is called here, such as ``singularity``.
    """

    runtime: Literal["pyxis", "apptainer", "none"] = "none"
    command: Literal["apptainer", "singularity"] = "apptainer"


class Scratch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where compute nodes can and cannot write.

    Attributes
    ----------
    node_local
        Directory on a disk or in the memory of the node, by the same path on all nodes of a
        job; it may name variables, as in ``$SLURM_TMPDIR``. Caches of the engines go there,
        so it is best one that is emptied after each job.
    read_only
        Directories that compute nodes only read; they may name variables, as in ``$HOME``.
    """

    node_local: Text | None = None
    read_only: list[Text] = []


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
    links
        How many NVLinks join two GPUs that are joined: the number of ``NV#`` in
        ``nvidia-smi topo -m``.
    topology
        Which GPUs NVLink joins: ``all-to-all``, ``pairs`` (bridges) or ``none``.
    request
        The option that asks for ``{n}`` of them on each node; absent where whole nodes are
        given without asking. With ``--gpus`` alone, ``{n}`` counts those of the whole job.
    unit
        What can be had of a node: any number of its GPUs, only all of them, or one or all.
    cpus
        For each GPU, by index, the CPUs next to it: "CPU Affinity" of ``nvidia-smi topo -m``.
    forced_binding
        Slurm binds a GPU to each task here, so that ``--gpu-bind=none`` is needed; beside it,
        where ``scheduler.version`` is 23.11 or later, ``--gres-flags=allow-task-sharing``.
    """

    model: Text
    per_node: Positive
    memory: Bytes | None = None
    link: Literal["nvlink2", "nvlink3", "nvlink4", "nvlink5", "pcie"] | None = None
    links: Positive | None = None
    topology: Literal["all-to-all", "pairs", "none"] | None = None
    request: Annotated[str, Meta(pattern=r"^--[a-z-]+=[^\s{}]*\{n\}$")] | None = None
    unit: Literal["gpu", "node", "gpu-or-node"] = "gpu"
    cpus: list[CpuList] = []
    forced_binding: bool = False


class Rail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network port and the GPUs nearest to it, by index; a port without any is no rail."""

    hca: Text
    gpus: list[NonNegative]


class Fabric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network between nodes.

    Attributes
    ----------
    rate
        Gbit/s of one port.
    nics
        Ports of a node that carry GPU traffic, where their names are not known.
    rails
        The same with their names.
    interface
        What ``NCCL_SOCKET_IFNAME`` is to be: a prefix, or ``=`` and exact names.
    srun
        Options that every step needs which spans nodes, such as ``--network=…``.
    env
        What ranks of a replica over several nodes need in their environment, over the site's.
    """

    type: Literal["infiniband", "slingshot", "ethernet", "omnipath"]
    rate: Positive | None = None
    nics: Positive | None = None
    rails: list[Rail] = []
    interface: Text | None = None
    srun: list[Option] = []
    env: dict[EnvName, str] = {}


class Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which nodes are near to each other, as Slurm knows it (topology.conf(5)).

    Attributes
    ----------
    type
        ``tree`` and ``dragonfly`` take ``--switches``, ``block`` takes ``--segment``.
    nodes
        Nodes of one leaf switch, dragonfly group or block.
    wait
        How long a job waits for nodes so near before it takes others.
    """

    type: Literal["tree", "dragonfly", "block"]
    nodes: Positive
    wait: Seconds = Seconds(3600)


class Select(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a job asks for the nodes of a partition, where its key is not what Slurm calls it.

    Attributes
    ----------
    partition
        Value of ``--partition``; ``none`` where no partition may be named.
    constraint, qos
        Values of ``--constraint``, and of ``--qos`` where the job names none.
    account_suffix
        What an account has to end in, such as ``_g``; added where it is missing.
    """

    partition: Text | None = None
    constraint: Text | None = None
    qos: Text | None = None
    account_suffix: Text | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one job may ask for and one user may have.

    ``jobs_running`` and ``jobs_queued`` count for each user.
    """

    min_time: Seconds | None = None
    min_nodes: Positive | None = None
    max_nodes: Positive | None = None
    min_gpus: Positive | None = None
    max_gpus: Positive | None = None
    jobs_running: Positive | None = None
    jobs_queued: Positive | None = None


class Qos(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a QoS allows, where it differs from the partition."""

    time_limit: Seconds | None = None


class Partition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of node that jobs can ask for.

    Attributes
    ----------
    nodes
        How many of them there are.
    limits
        What one job may ask for beside ``time_limit``.
    qos
        The same by the name of a QoS, where it differs.
    memory
        What a job can be given of a node's.
    slots
        Ranks that one node takes where there are no GPUs.
    """

    nodes: Positive | None = None
    select: Select = Select()
    time_limit: Seconds | None = None
    limits: Limits = Limits()
    qos: dict[Name, Qos] = {}
    cpus: Cpus | None = None
    memory: Bytes | None = None
    gpus: Gpus | None = None
    slots: Positive = 1
    fabric: Fabric | None = None
    topology: Topology | None = None


class SiteSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole site file.

    Attributes
    ----------
    internet
        Whether compute nodes reach the internet; where they do not, engines are told so.
    env
        Exported to every rank.
    """

    schema: Literal[1] = 1
    name: Name
    detect: Detect = Detect()
    scheduler: Scheduler
    launch: Launch
    container: Container = Container()
    scratch: Scratch = Scratch()
    internet: bool | None = None
    engines: dict[Literal["tensorrt-llm", "vllm", "transformers", "echo"], EngineRuntime] = {}
    env: dict[EnvName, str] = {}
    partitions: dict[Name, Partition]
