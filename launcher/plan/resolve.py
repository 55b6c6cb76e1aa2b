"""From what users wrote and what was found to one plan, with the reason for every value.

Everything comes in as values: what the machine had to be asked (input sizes, the model's
configuration) is in `Facts`, so that the same plan can be made on a laptop.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from launcher.errors import Location, PlanError, Problem
from launcher.models.shapes import ModelShape
from launcher.plan import checks, trtllm_checks, trtllm_options, vllm_options
from launcher.plan.capabilities import ENGINES, step_kind
from launcher.plan.directives import slurm_directives
from launcher.plan.engine_options import Complaint
from launcher.plan.fabric import wire
from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.mounts import complete_mounts
from launcher.plan.types import Cut, Layout, Plan, Step, WorkRuntime
from launcher.spec.job import JobSpec, Parallelism
from launcher.spec.site import EngineRuntime, Partition, SiteSpec
from launcher.spec.source import Source, child
from launcher.units import format_duration

__all__ = ["Decision", "Facts", "Resolution", "resolve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What had to be looked up before planning.

    Attributes
    ----------
    shape
        The model's shape, or None when neither a checkpoint nor the catalogue tells.
    model_path
        Directory of the checkpoint, or None when there is none here.
    chat_template
        Whether the checkpoint has a chat template; None without a checkpoint.
    own_python
        The interpreter that plans: what jobs of the local scheduler run under by default.
    origin, settings
        Where relative paths of the job file start, and what ``--set`` changed in it.
    reads
        Directories that the job reads input and model from, links followed and not.
    image_archs
        Of images that are files here and say so: the CPUs that they are for.
    """

    shape: ModelShape | None = None
    model_path: str | None = None
    chat_template: bool | None = None
    own_python: str | None = None
    reads: tuple[str, ...] = ()
    origin: str = "/"
    settings: tuple[str, ...] = ()
    image_archs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """One value of the plan and where it came from, for ``plan --explain``."""

    key: str
    value: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A plan, what is worth a warning in it, and why each value is what it is."""

    plan: Plan
    warnings: tuple[Problem, ...]
    decisions: tuple[Decision, ...]


# A chain is queued whole, and sites bound how many jobs one user may have queued.
_ATTEMPTS: Mapping[str, int] = {"requeue": 20, "chain": 4, "none": 1}


@dataclass
class _Resolver:
    """Collects problems and decisions while a plan is put together."""

    job: JobSpec
    site: SiteSpec
    job_source: Source
    site_source: Source
    facts: Facts
    problems: list[Problem] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def error(self, code: str, message: str, *path: str, hint: str | None = None) -> None:
        self.problems.append(Problem(code, message, self.job_source.at(field_path(*path)), hint))

    def stop_on_errors(self) -> None:
        if any(p.severity == "error" for p in self.problems):
            raise PlanError(self.problems)

    def decide(self, key: str, value: object, source: Location | str | None) -> None:
        text = f"{source.path}:{source.line}" if isinstance(source, Location) else source
        self.decisions.append(Decision(key, str(value), text or "default"))

    def from_job(self, key: str, value: object) -> None:
        """Note a value of the job file, or its default."""
        self.decide(key, value, self.job_source.marks.get(field_path(*key.split("."))))


def resolve(
    job: JobSpec, site: SiteSpec, *, job_source: Source, site_source: Source, facts: Facts
) -> Resolution:
    """Decide how ``job`` runs on ``site``.

    Raises
    ------
    PlanError
        With every reason found why it cannot: ``plan.*``, ``site.launch-impossible``,
        ``model.no-chat-template``, each at its line of the job file.
    """
    r = _Resolver(job, site, job_source, site_source, facts)
    name, partition = _choose_partition(r)
    cut, replicas = _sizes(r)
    node = _node(r, partition)
    _check_engine(r, cut, node)
    _check_model(r, cut, partition, node)
    r.stop_on_errors()
    layout = lay_out(cut, replicas, node)
    step = _step(job.engine, layout)
    _check_extent(r, layout, partition, name)
    _check_array(r, layout)
    _check_idle(r, layout, partition, node)
    runtime = _runtime(r, site.engines.get(job.engine, EngineRuntime()))
    _check_mounts(r, runtime)
    _check_launch(r, step, runtime)
    _check_image(r, runtime, partition)
    time_s = _time(r, partition, name)
    r.stop_on_errors()
    plan = _plan(r, name, layout, step, runtime, time_s)
    return Resolution(plan=plan, warnings=tuple(r.problems), decisions=tuple(r.decisions))


def field_path(*keys: str) -> str:
    """The path of a field of a file, as `Source` knows it."""
    return functools.reduce(child, keys, "$")


def _choose_partition(r: _Resolver) -> tuple[str, Partition]:
    names = list(r.site.partitions)
    wanted = r.job.resources.partition
    if wanted is None and len(names) == 1:
        r.decide("resources.partition", names[0], f"the only one of site {r.site.name}")
        return names[0], r.site.partitions[names[0]]
    if wanted is None:
        hint = f"set resources.partition to one of {', '.join(names)}"
        r.error("plan.partition-missing", f"site {r.site.name} has several partitions", hint=hint)
    elif wanted not in r.site.partitions:
        message = f"site {r.site.name} has no partition {wanted!r}"
        hint = f"choose one of {', '.join(names)}"
        r.error("plan.partition-unknown", message, "resources", "partition", hint=hint)
    r.stop_on_errors()
    assert wanted is not None  # noqa: S101 - the two cases above have stopped
    r.from_job("resources.partition", wanted)
    return wanted, r.site.partitions[wanted]


def _sizes(r: _Resolver) -> tuple[Cut, int]:
    for key in ("parallelism", "replicas"):
        if getattr(r.job, key) == "auto":
            message = f"`{key}: auto` is not there yet"
            hint = (
                "give the sizes, such as {tp: 8, pp: 2}"
                if key == "parallelism"
                else "give a number"
            )
            r.error("plan.auto-unavailable", message, key, hint=hint)
    r.stop_on_errors()
    sizes = r.job.parallelism
    assert isinstance(sizes, Parallelism)  # noqa: S101 - "auto" has stopped above
    assert r.job.replicas != "auto"  # noqa: S101 - as before
    for axis in ("tp", "pp", "ep"):
        r.from_job(f"parallelism.{axis}", getattr(sizes, axis))
    r.from_job("replicas", r.job.replicas)
    return Cut(tp=sizes.tp, pp=sizes.pp, ep=sizes.ep), r.job.replicas


def _node(r: _Resolver, partition: Partition) -> NodeShape:
    slots_all = partition.gpus.per_node if partition.gpus else partition.slots
    wanted = r.job.resources.gpus_per_node
    if wanted is not None and partition.gpus is None:
        message = f"{wanted} GPUs a node are asked for, but the partition has none"
        r.error(
            "plan.no-gpus", message, "resources", "gpus_per_node", hint="choose another partition"
        )
    elif wanted is not None and wanted > slots_all:
        message = f"{wanted} GPUs a node are asked for, but a node has {slots_all}"
        hint = f"ask for at most {slots_all}"
        r.error("plan.gpus-per-node", message, "resources", "gpus_per_node", hint=hint)
    slots = min(wanted or slots_all, slots_all)
    source = (
        None if wanted is None else r.job_source.marks.get(field_path("resources", "gpus_per_node"))
    )
    r.decide("gpus_per_node" if partition.gpus else "slots", slots, source or f"site {r.site.name}")
    cpus = partition.cpus.count if partition.cpus else None
    return NodeShape(slots=slots, slots_all=slots_all, has_gpus=bool(partition.gpus), cpus=cpus)


def _check_engine(r: _Resolver, cut: Cut, node: NodeShape) -> None:
    engine = ENGINES[r.job.engine]
    r.from_job("engine", r.job.engine)
    if engine.needs_gpu and not node.has_gpus:
        message = f"engine {r.job.engine} needs GPUs, and this partition has none"
        hint = "choose a partition with GPUs, or engine transformers"
        r.error("plan.no-gpus", message, "engine", hint=hint)
    for axis in ("tp", "pp", "ep"):
        size = getattr(cut, axis)
        if size > 1 and axis not in engine.cuts:
            message = f"engine {r.job.engine} cannot do {axis} {size}: {engine.missing}"
            hint = f"set {axis} to 1, or choose another engine"
            r.error("plan.engine-capability", message, "parallelism", axis, hint=hint)
    if engine.ep_is_tp and cut.ep not in (1, cut.tp):
        message = (
            f"engine {r.job.engine} spreads experts over the whole TP group or not at all, and "
            f"ep {cut.ep} is neither 1 nor tp {cut.tp}"
        )
        hint = f"set ep to 1 or {cut.tp}"
        r.error("plan.engine-capability", message, "parallelism", "ep", hint=hint)
    _check_options(r)


def _check_options(r: _Resolver) -> None:
    for found in _complaints(r.job):
        code = "plan.engine-option" if found.owned else "engine.options"
        where = r.job_source.at(field_path("engine_options", found.option))
        severity: Literal["error", "warning"] = "error" if found.sure else "warning"
        r.problems.append(Problem(code, found.message, where, found.hint, severity))


def _complaints(job: JobSpec) -> list[Complaint]:
    given = job.engine_options
    if job.engine == "vllm":
        versions = f"vLLM {vllm_options.VERSIONS[0]} to {vllm_options.VERSIONS[-1]}"
        return vllm_options.complaints(given, vllm_options.known_options(), versions)
    if job.engine == "tensorrt-llm":
        versions = f"TensorRT-LLM {trtllm_options.VERSIONS[0]} to {trtllm_options.VERSIONS[-1]}"
        return trtllm_options.complaints(given, trtllm_options.known_options(), versions)
    return []


def _check_model(r: _Resolver, cut: Cut, partition: Partition, node: NodeShape) -> None:
    r.from_job("model", r.job.model)
    if ENGINES[r.job.engine].needs_model:
        gpus = partition.gpus
        domain = checks.nvlink_domain(gpus.topology, gpus.per_node) if gpus else None
        found = checks.check_cut(
            r.facts.shape,
            cut,
            gpus_per_node=node.slots,
            nvlink_domain=domain,
            allow=r.job.allow,
        )
        if r.job.engine == "tensorrt-llm":
            options, gpu = r.job.engine_options, gpus.model if gpus else None
            found = trtllm_checks.without_heads(found, options)
            for problem, path in trtllm_checks.check_model(r.facts.shape, cut, gpu, options):
                r.problems.append(_located(problem, r.job_source.at(field_path(*path))))
        r.problems += [_located(p, r.job_source.at(field_path("parallelism"))) for p in found]
    if r.facts.chat_template is False and r.job.input.chat:
        message = f"model {r.job.model} has no chat template, so it is probably a base model"
        hint = "set input.chat: false to send bare prompts, or choose the instruct model"
        r.error("model.no-chat-template", message, "model", hint=hint)


def _located(problem: Problem, where: Location) -> Problem:
    return Problem(problem.code, problem.message, where, problem.hint, problem.severity)


def _step(engine: str, layout: Layout) -> Step:
    kind = step_kind(engine, layout)
    one = kind in ("single", "per-node")
    tasks = 1 if one else layout.cut.ranks // layout.allocation.nodes
    return Step(kind=kind, nodes=layout.allocation.nodes, tasks_per_node=tasks)


def _check_extent(r: _Resolver, layout: Layout, partition: Partition, name: str) -> None:
    nodes = layout.allocation.count * layout.allocation.nodes
    there = 1 if r.site.scheduler.type == "local" else partition.nodes
    if there is not None and nodes > there:
        message = (
            f"{layout.replicas} replicas of {layout.cut.ranks} ranks need {nodes} nodes, and "
            f"partition {name} has {there}"
        )
        most = there // layout.allocation.nodes * layout.allocation.replicas
        hint = f"set replicas to at most {most}" if most else "choose a smaller tp * pp"
        r.error("plan.too-few-nodes", message, "replicas" if most else "parallelism", hint=hint)


def _check_array(r: _Resolver, layout: Layout) -> None:
    size, limit = layout.allocation.count, r.site.scheduler.max_array_size
    if limit is not None and size > limit:
        message = (
            f"{layout.replicas} replicas make an array of {size} jobs, and the site takes {limit}"
        )
        hint = (
            f"set replicas to at most {limit * layout.allocation.replicas}, and scale the run later"
        )
        r.error("plan.array-too-large", message, "replicas", hint=hint)


def _check_idle(r: _Resolver, layout: Layout, partition: Partition, node: NodeShape) -> None:
    if partition.gpus is None:
        return
    a = layout.allocation
    whole_nodes_only = partition.gpus.request is None
    held = (node.slots_all if whole_nodes_only else a.gpus_per_node) * a.nodes * a.count
    idle = held - layout.cut.ranks * layout.replicas
    if idle:
        message = f"{idle} of the {held} GPUs asked for stay idle"
        hint = "choose tp, pp and replicas so that they fill the nodes"
        where = r.job_source.at(field_path("parallelism"))
        r.problems.append(Problem("plan.idle-gpus", message, where, hint, "warning"))


def _runtime(r: _Resolver, site: EngineRuntime) -> WorkRuntime:
    """The job's runtime over the site's, key by key; an image and a venv exclude each other."""
    job = r.job.runtime
    image = job.image or (None if job.venv else site.image)
    venv = job.venv or (None if image else site.venv)
    outside = venv is None and image is None
    default = r.facts.own_python if r.site.scheduler.type == "local" and outside else None
    # The site's interpreter lies in the site's image or venv.
    site_python = None if job.image or job.venv else site.python
    runtime = WorkRuntime(
        python=job.python or site_python or default or "python3",
        image=image,
        container=r.site.container.runtime if image else "none",
        mounts=complete_mounts(tuple(job.mounts), r.facts.reads) if image else tuple(job.mounts),
        venv=venv,
        modules=tuple(job.modules or site.modules),
    )
    for key in ("image", "venv", "python", "modules"):
        value = getattr(runtime, key)
        if value and getattr(job, key):
            r.from_job(f"runtime.{key}", value)
        elif value:
            from_site = value == (tuple(site.modules) if key == "modules" else getattr(site, key))
            r.decide(f"runtime.{key}", value, f"site {r.site.name}" if from_site else None)
    return runtime


def _check_mounts(r: _Resolver, runtime: WorkRuntime) -> None:
    for place in runtime.mounts[len(r.job.runtime.mounts) :]:
        if found := sorted(set(":,").intersection(place)):
            message = f"{place} has to be mounted, and a mount cannot hold {' or '.join(found)}"
            hint = "rename the directory, or mount one above it elsewhere with runtime.mounts"
            r.error("plan.mount", message, "runtime", hint=hint)


def _check_launch(r: _Resolver, step: Step, runtime: WorkRuntime) -> None:
    launcher = r.site.launch.with_
    if step.tasks > 1 and launcher == "none":
        message = (
            f"a step of {step.tasks} tasks needs a launcher, and site {r.site.name} has none "
            "(launch.with: none)"
        )
        hint = "set tp and pp to 1 here, or use a site with srun or mpirun"
        r.error("site.launch-impossible", message, "parallelism", hint=hint)
    if runtime.image and runtime.container == "none":
        message = f"an image is given, but site {r.site.name} starts no containers"
        hint = "use runtime.venv, or state container.runtime in the site file"
        r.error("site.launch-impossible", message, "runtime", hint=hint)
    if runtime.container == "pyxis" and launcher != "srun":
        message = f"pyxis images are started by srun, and site {r.site.name} uses {launcher}"
        r.error("site.launch-impossible", message, "runtime", hint="set launch.with: srun")


def _check_image(r: _Resolver, runtime: WorkRuntime, partition: Partition) -> None:
    built_for = r.facts.image_archs.get(runtime.image or "")
    there = partition.cpus.arch if partition.cpus else None
    if built_for is not None and there is not None and built_for != there:
        message = f"{runtime.image} is for {built_for}, and the CPUs of this partition are {there}"
        hint = f"pull or build the image on a machine with {there} CPUs"
        r.error("plan.image-architecture", message, "runtime", "image", hint=hint)


def _time(r: _Resolver, partition: Partition, name: str) -> int | None:
    if r.site.scheduler.type == "local":
        return None
    wanted, limit = r.job.resources.time, partition.time_limit
    time_s = limit if wanted is None else wanted
    if time_s is None:
        hint = "set resources.time, for instance 4h"
        r.error(
            "plan.time-missing", f"no time is given, nor a limit of {name}", "resources", hint=hint
        )
    if wanted is not None and limit is not None and wanted > limit:
        message = f"{format_duration(wanted)} are over the {format_duration(limit)} of {name}"
        hint = f"ask for at most {format_duration(limit)}; a run goes on in the next job"
        r.error("plan.time-over-limit", message, "resources", "time", hint=hint)
    if time_s is not None and time_s <= r.job.limits.warn_before:
        # Slurm would warn the job the moment it starts (sbatch(1), --signal), each time anew.
        message = (
            f"a time of {format_duration(time_s)} leaves nothing before the warning "
            f"{format_duration(r.job.limits.warn_before)} ahead of its end"
        )
        hint = "raise resources.time or lower limits.warn_before"
        r.error("plan.time-too-short", message, "resources", "time", hint=hint)
    if wanted is not None:
        r.from_job("resources.time", format_duration(wanted))
    elif limit is not None:
        r.decide("resources.time", format_duration(limit), f"the limit of {name}")
    return time_s


def _plan(
    r: _Resolver, name: str, layout: Layout, step: Step, runtime: WorkRuntime, time_s: int | None
) -> Plan:
    restart = r.site.scheduler.restart
    attempts = r.job.limits.attempts or _ATTEMPTS[restart]
    r.from_job("limits.attempts", attempts)
    for key in ("warn_before", "max_bad_fraction", "engine_restarts"):
        r.from_job(f"limits.{key}", getattr(r.job.limits, key))
    gpus = r.site.partitions[name].gpus
    wired = wire(r.job, r.site, name, layout, r.job_source, r.site_source)
    r.problems += wired.warnings
    for key, value, source in wired.decisions:
        r.decide(key, value, source)
    directives = (
        () if time_s is None else slurm_directives(r.job, r.site, name, layout, step, time_s=time_s)
    )
    return Plan(
        name=r.job.name,
        site=r.site.name,
        scheduler=r.site.scheduler.type,
        engine=r.job.engine,
        model=r.job.model,
        model_path=r.facts.model_path,
        layout=layout,
        step=step,
        launcher=r.site.launch.with_,
        mpi=r.site.launch.mpi,
        forced_binding=gpus is not None and gpus.forced_binding,
        runtime=runtime,
        directives=directives,
        restart=restart,
        warn_before_s=int(r.job.limits.warn_before),
        attempts=attempts,
        max_bad_fraction=r.job.limits.max_bad_fraction,
        order=r.job.input.order,
        engine_restarts=r.job.limits.engine_restarts,
        spare_nodes=_has_spare_nodes(r.site.partitions[name], layout),
        origin=r.facts.origin,
        settings=r.facts.settings,
        engine_options=r.job.engine_options,
        env=wired.env,
        gpus=wired.gpus,
        network=wired.network,
    )


def _has_spare_nodes(partition: Partition, layout: Layout) -> bool:
    asked = layout.allocation.count * layout.allocation.nodes
    return partition.nodes is None or partition.nodes > asked
