"""What a run is (`RunIdentity`, ``run.json``) and how it is done (`Plan`, ``plans/NNNN.json``).

Standard library only: the same classes are read in the job, under whatever Python the image
has. ``to_json`` gives plain data; ``from_json`` refuses anything that does not fit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Allocation",
    "Cut",
    "FabricType",
    "InputFile",
    "Launcher",
    "Layout",
    "ModelRef",
    "Network",
    "NodeGpus",
    "Placement",
    "Plan",
    "PromptSpec",
    "Rail",
    "RunIdentity",
    "Sampling",
    "Step",
    "StepKind",
    "TooLong",
    "UnitGrid",
    "WorkRuntime",
]

FabricType = Literal["infiniband", "slingshot", "ethernet", "omnipath"]
TooLong = Literal["error", "truncate-left", "truncate-right"]
StepKind = Literal["single", "leader", "spmd", "per-node"]
Launcher = Literal["srun", "mpirun", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn for one row. ``temperature`` 0 is greedy, ``top_k`` 0 keeps all.

    ``logprobs`` asks for the log probability of each new token and of so many likeliest ones
    beside it; None asks for none.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpec:
    """How a row becomes a prompt: one text template, chat turns, or the row's own fields.

    ``too_long`` says what becomes of one that the model cannot take.
    """

    prompt: str | None = None
    messages: tuple[tuple[str, str], ...] = ()
    chat: bool = True
    too_long: TooLong = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of the frozen manifest. ``path`` is absolute.

    Attributes
    ----------
    size
        Bytes of the file as it lies there.
    span
        Bytes that it has in the virtual concatenation: its size; its size once decompressed, as
        guessed at submission; or what a Parquet file's columns take.
    rows
        How many rows a Parquet file has; None for other formats.
    newlines
        Whether fields of a CSV file may hold line breaks; see ``input.newlines`` of job files.
    """

    path: str
    size: int
    mtime_ns: int
    span: int
    rows: int | None = None
    newlines: bool = True

    def to_json(self) -> dict[str, Any]:
        """What a line of ``run.json`` holds: there may be 10^5 of them, so no more than needed."""
        data: dict[str, Any] = {"path": self.path, "size": self.size, "mtime_ns": self.mtime_ns}
        if self.span != self.size:
            data["span"] = self.span
        if self.rows is not None:
            data["rows"] = self.rows
        if not self.newlines:
            data["newlines"] = False
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> InputFile:
        return cls(**{"span": data["size"], **data})


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGrid:
    """The cut of the input's ``total_bytes`` into units; see `launcher.plan.grid`.

    Units ``0 … head_units-1`` span ``unit_bytes`` each; the rest of the bytes, about the last
    tenth, are cut into units of ``tail_bytes``.
    """

    total_bytes: int
    unit_bytes: int
    head_units: int
    tail_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """The model of a run: its name, where it lies, and a digest of its content.

    ``path`` and ``digest`` are None when it was planned from a built-in shape alone.
    """

    name: str
    path: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """Everything that decides what the outputs are. Two runs with equal ones are one run."""

    schema: int = 1
    name: str
    model: ModelRef
    inputs: tuple[InputFile, ...]
    prompt: PromptSpec
    sampling: Sampling
    grid: UnitGrid
    keep: tuple[str, ...] | Literal["all", "none"] = "none"

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the long list of input files at the end."""
        rest = dataclasses.asdict(dataclasses.replace(self, inputs=()))
        return {**rest, "inputs": [entry.to_json() for entry in self.inputs]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunIdentity:
        keep = data["keep"]
        prompt = data["prompt"]
        sampling = data["sampling"]
        return cls(
            schema=data["schema"],
            name=data["name"],
            model=ModelRef(**data["model"]),
            inputs=tuple(map(InputFile.from_json, data["inputs"])),
            prompt=PromptSpec(
                prompt=prompt["prompt"],
                messages=tuple((role, content) for role, content in prompt["messages"]),
                chat=prompt["chat"],
                too_long=prompt.get("too_long", "error"),
            ),
            sampling=Sampling(**{**sampling, "stop": tuple(sampling["stop"])}),
            grid=UnitGrid(**data["grid"]),
            keep=tuple(keep) if isinstance(keep, list) else keep,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How one replica is cut: ``tp * pp`` ranks, experts over ``ep`` of each ``tp`` group."""

    tp: int = 1
    pp: int = 1
    ep: int = 1

    @property
    def ranks(self) -> int:
        return self.tp * self.pp


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One rank. ``node`` counts over all allocations; ``gpu`` is a position, or None on CPUs.

    ``gpu`` is a position in the list of GPUs that the job sees on that node, not an id.
    """

    replica: int
    rank: int
    node: int
    gpu: int | None
    local_rank: int
    tp_rank: int
    pp_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The one process start of a replica: ``nodes * tasks_per_node`` tasks of this kind."""

    kind: StepKind
    nodes: int
    tasks_per_node: int

    @property
    def tasks(self) -> int:
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What one Slurm job (array task) asks for; ``count`` of them are submitted.

    Attributes
    ----------
    nodes, gpus_per_node
        Asked for by each; ``gpus_per_node`` is 0 on CPU partitions.
    replicas
        How many replicas share one allocation (the last one may hold fewer).
    whole_node
        Every GPU of the node is asked for.
    cpus_per_rank
        CPUs for each rank, or None where the site does not say how many a node has.
    """

    count: int
    nodes: int
    gpus_per_node: int
    replicas: int
    whole_node: bool
    cpus_per_rank: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where every rank of every replica goes, and what is asked of the scheduler for it."""

    replicas: int
    cut: Cut
    allocation: Allocation
    placements: tuple[Placement, ...]

    def replica(self, number: int) -> tuple[Placement, ...]:
        """The placements of one replica, by rank."""
        size = self.cut.ranks
        return self.placements[number * size : (number + 1) * size]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRuntime:
    """What the engine runs in on a compute node."""

    python: str
    image: str | None = None
    container: Literal["pyxis", "apptainer", "none"] = "none"
    command: Literal["apptainer", "singularity"] = "apptainer"
    mounts: tuple[str, ...] = ()
    venv: str | None = None
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpus:
    """What the site says of the GPUs of a node.

    Attributes
    ----------
    count
        All that it has.
    link
        ``nvlink2`` … ``nvlink5`` or ``pcie``.
    domain
        How many neighbours NVLink joins: all, 2 or 1.
    model
        What the site calls them, such as ``h100``.
    links
        How many NVLinks join two of them that are joined.
    cpus
        For each, by index, the CPUs next to it as ``0-15,128-143``; empty where it is not known.
    """

    count: int
    link: str | None = None
    domain: int | None = None
    model: str | None = None
    links: int | None = None
    cpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rail:
    """One network port, and the GPUs nearest to it by index."""

    hca: str
    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the nodes of one replica are joined by, as the site says.

    Attributes
    ----------
    rate
        Gbit/s of a port.
    rails
        Those with GPUs, in the order of the site file; empty where their names are not known.
    ports
        How many of them a node has.
    srun
        Options of each step.
    variables
        What of the plan's ``env`` is there for its sake.
    sockets
        Whether the job may run over TCP where there is something faster.
    """

    type: FabricType
    rate: int | None = None
    rails: tuple[Rail, ...] = ()
    ports: int | None = None
    srun: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    sockets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One decision how to do a run. Everything that the scripts and the runner need.

    Attributes
    ----------
    model, model_path
        The name the user gave, and the checkpoint's directory where one was found.
    spare_nodes
        Whether the partition has nodes beyond those asked for, so that one can be left out.
    origin, settings
        Directory in which the job file's relative paths start, and what ``--set`` changed in it.
    directives
        ``(option, value)`` pairs for ``#SBATCH`` lines; a value of None is a bare flag.
    env
        Exported to every rank, the site's first and the job's after it.
    share_gpus
        Under forced binding: whether Slurm has ``--gres-flags=allow-task-sharing``.
    scratch
        Directory on each node for the caches of engines; it may name variables of the job.
        Exported to every rank: the site's, over it the fabric's, over both the job's.
    gpus
        None on CPUs.
    network
        None where no replica needs it: each is on one node.
    links
        Whether the links between ranks are measured before the engine starts.
    """

    schema: int = 1
    name: str
    site: str
    scheduler: Literal["slurm", "local"]
    engine: str
    model: str
    model_path: str | None
    layout: Layout
    step: Step
    launcher: Launcher
    mpi: str | None
    forced_binding: bool
    runtime: WorkRuntime
    directives: tuple[tuple[str, str | None], ...]
    restart: Literal["requeue", "chain", "none"]
    warn_before_s: int
    attempts: int
    max_bad_fraction: float
    order: Literal["auto", "input", "random"] = "auto"
    engine_restarts: int = 8
    spare_nodes: bool = True
    origin: str = "/"
    settings: tuple[str, ...] = ()
    engine_options: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    share_gpus: bool = False
    scratch: str | None = None
    gpus: NodeGpus | None = None
    network: Network | None = None
    links: bool = False

    def task(self, replica: int, number: int) -> tuple[Placement, ...]:
        """The ranks of one task of a replica's step, which are neighbours on one node."""
        ranks = self.layout.replica(replica)
        each = len(ranks) // self.step.tasks
        return ranks[number * each : (number + 1) * each]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        layout = data["layout"]
        runtime = data["runtime"]
        return cls(
            **{
                **data,
                "layout": Layout(
                    replicas=layout["replicas"],
                    cut=Cut(**layout["cut"]),
                    allocation=Allocation(**layout["allocation"]),
                    placements=tuple(Placement(**entry) for entry in layout["placements"]),
                ),
                "step": Step(**data["step"]),
                "runtime": WorkRuntime(
                    **{
                        **runtime,
                        "mounts": tuple(runtime["mounts"]),
                        "modules": tuple(runtime["modules"]),
                    }
                ),
                "settings": tuple(data["settings"]),
                "directives": tuple((option, value) for option, value in data["directives"]),
                "gpus": _node_gpus(data.get("gpus")),
                "network": _network(data.get("network")),
            }
        )


def _node_gpus(data: dict[str, Any] | None) -> NodeGpus | None:
    return None if data is None else NodeGpus(**{**data, "cpus": tuple(data["cpus"])})


def _network(data: dict[str, Any] | None) -> Network | None:
    if data is None:
        return None
    rails = tuple(Rail(hca=rail["hca"], gpus=tuple(rail["gpus"])) for rail in data["rails"])
    lists = {name: tuple(data[name]) for name in ("srun", "variables")}
    return Network(**{**data, **lists, "rails": rails})
