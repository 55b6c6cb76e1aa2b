"""From what users wrote and what was found to one plan, with the reason for every value.

Everything comes in as values: what the machine had to be asked (input sizes, the model's
configuration) is in `Facts`, so that the same plan can be made on a laptop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from launcher.errors import Location, Problem
from launcher.plan import (
    checks,
    memory_checks,
    selection,
    site_checks,
    trtllm_checks,
    trtllm_options,
    vllm_options,
)
from launcher.plan.capabilities import ENGINES, step_kind
from launcher.plan.cost import Workload
from launcher.plan.directives import slurm_directives
from launcher.plan.engine_options import Complaint
from launcher.plan.fabric import wire
from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.question import workload
from launcher.plan.resolver import Decision, Facts, Resolver, field_path
from launcher.plan.runtime import check_runtime, choose_runtime
from launcher.plan.search import Search
from launcher.plan.sizes import Sizes, check_node_memory, choose_sizes
from launcher.plan.types import Cut, Layout, Network, Plan, Step, WorkRuntime
from launcher.spec.job import JobSpec
from launcher.spec.site import EngineRuntime, Gpus, Partition, Qos, SiteSpec
from launcher.spec.source import Source

__all__ = ["Decision", "Facts", "Resolution", "resolve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A plan, what is worth a warning in it, and why each value is what it is.

    Attributes
    ----------
    search
        What was computed of cuts; None where nothing could be, as on CPUs.
    workload
        The rows, as they were taken to be.
    """

    plan: Plan
    warnings: tuple[Problem, ...]
    decisions: tuple[Decision, ...]
    search: Search | None
    workload: Workload


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
    r = Resolver(job, site, job_source, site_source, facts)
    name, partition = _choose_partition(r)
    limits = site_checks.check_selection(r, name, partition)
    node = _node(r, partition, limits)
    _check_options(r)
    sizes = choose_sizes(r, name, partition, node, limits)
    _check_engine(r, sizes.cut, node)
    _check_model(r, sizes, partition, node)
    r.stop_on_errors()
    layout = lay_out(sizes.cut, sizes.replicas, node)
    check_node_memory(r, name, partition, layout)
    step = _step(job.engine, layout)
    site_checks.check_size(r, layout, partition, name, limits)
    site_checks.check_place(r, layout, partition, name)
    runtime = choose_runtime(r, site.engines.get(job.engine, EngineRuntime()))
    check_runtime(r, step, runtime, partition)
    time_s = site_checks.choose_time(r, limits, name)
    if time_s is not None:
        site_checks.decide_directives(r, layout, name, step, time_s)
    r.stop_on_errors()
    plan = _plan(r, name, layout, step, runtime, time_s)
    plan = dataclasses.replace(plan, engine_options={**job.engine_options, **sizes.options})
    return Resolution(
        plan=plan,
        warnings=tuple(r.problems),
        decisions=tuple(r.decisions),
        search=sizes.search,
        workload=workload(r, facts.shape),
    )


def _choose_partition(r: Resolver) -> tuple[str, Partition]:
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


def _node(r: Resolver, partition: Partition, limits: Qos) -> NodeShape:
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
    gpus = partition.gpus
    unit = "node" if gpus and gpus.request is None else gpus.unit if gpus else "gpu"
    slots = min(wanted or slots_all, slots_all)
    source: Location | str | None = r.mark("resources.gpus_per_node")
    most, stated = limits.max_gpus, r.job.parallelism
    least = 1 if stated == "auto" else stated.tp * stated.pp
    free = gpus is not None and unit == "gpu" and wanted is None and r.job.replicas == "auto"
    if free and most is not None and least <= most < slots:
        slots, source = most, "no job of this partition or QoS can have more"
    r.decide("gpus_per_node" if gpus else "slots", slots, source or f"site {r.site.name}")
    if unit != "gpu" and r.site.scheduler.type == "slurm":
        r.from_site("gpus.unit", unit, "what can be had of a node")
    return NodeShape(
        slots=slots,
        slots_all=slots_all,
        has_gpus=gpus is not None,
        cpus=partition.cpus.count if partition.cpus else None,
        unit=unit,
        socket=site_checks.gpus_of_a_socket(gpus),
    )


def _check_engine(r: Resolver, cut: Cut, node: NodeShape) -> None:
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


def _check_options(r: Resolver) -> None:
    for found in _complaints(r.job):
        code = "plan.engine-option" if found.owned else "engine.options"
        where = r.job_source.at(field_path("engine_options", found.option))
        severity: Literal["error", "warning"] = "error" if found.sure else "warning"
        r.problems.append(Problem(code, found.message, where, found.hint, severity))


def _complaints(job: JobSpec) -> list[Complaint]:
    given = job.engine_options
    if job.engine == "vllm":
        versions = f"vLLM {vllm_options.VERSIONS[0]} to {vllm_options.VERSIONS[-1]}"
        names = vllm_options.complaints(given, vllm_options.known_options(), versions)
        return [*names, *vllm_options.wrong_values(given)]
    if job.engine == "tensorrt-llm":
        versions = f"TensorRT-LLM {trtllm_options.VERSIONS[0]} to {trtllm_options.VERSIONS[-1]}"
        return trtllm_options.complaints(given, trtllm_options.known_options(), versions)
    return []


def _check_model(r: Resolver, sizes: Sizes, partition: Partition, node: NodeShape) -> None:
    cut = sizes.cut
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
        stated = r.job.parallelism != "auto"  # else it was chosen because it fits
        if stated and gpus and all(problem.severity == "warning" for problem in found):
            found += _memory_problems(r, sizes, gpus)
        r.problems += [_located(p, r.job_source.at(field_path("parallelism"))) for p in found]
    if r.facts.chat_template is False and r.job.input.chat:
        message = f"model {r.job.model} has no chat template, so it is probably a base model"
        hint = "set input.chat: false to send bare prompts, or choose the instruct model"
        r.error("model.no-chat-template", message, "model", hint=hint)


def _memory_problems(r: Resolver, sizes: Sizes, gpus: Gpus) -> Iterator[Problem]:
    return memory_checks.check_memory(
        r.facts.shape,
        sizes.cut,
        r.job.engine,
        {**r.job.engine_options, **sizes.options},
        gpu_model=gpus.model,
        gpu_bytes=gpus.memory,
        prompt=r.facts.prompts.p95,
        output=r.facts.prompts.most_new,
        env={**r.site.env, **r.job.env},
    )


def _located(problem: Problem, where: Location) -> Problem:
    return Problem(problem.code, problem.message, where, problem.hint, problem.severity)


def _step(engine: str, layout: Layout) -> Step:
    kind = step_kind(engine, layout)
    one = kind in ("single", "per-node")
    tasks = 1 if one else layout.cut.ranks // layout.allocation.nodes
    return Step(kind=kind, nodes=layout.allocation.nodes, tasks_per_node=tasks)


def _plan(
    r: Resolver, name: str, layout: Layout, step: Step, runtime: WorkRuntime, time_s: int | None
) -> Plan:
    restart = r.site.scheduler.restart
    attempts = r.job.limits.attempts or site_checks.ATTEMPTS[restart]
    r.from_job("limits.attempts", attempts)
    for key in ("warn_before", "max_bad_fraction", "engine_restarts"):
        r.from_job(f"limits.{key}", getattr(r.job.limits, key))
    gpus = r.site.partitions[name].gpus
    forced = gpus is not None and gpus.forced_binding
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
        forced_binding=forced,
        share_gpus=forced and selection.newer(r.site, "23.11", unknown=False),
        scratch=site_checks.choose_scratch(r),
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
        env={**site_checks.site_environment(r, layout, step), **wired.env},
        gpus=wired.gpus,
        network=wired.network,
        links=_measures_links(r, wired.network),
    )


def _measures_links(r: Resolver, network: Network | None) -> bool:
    """Whether there is anything that measured links could be compared with."""
    stated = network is not None and network.rate is not None and not network.sockets
    if not stated or not ENGINES[r.job.engine].needs_model:
        return False
    r.from_job("limits.preflight", r.job.limits.preflight)
    return r.job.limits.preflight == "full"


def _has_spare_nodes(partition: Partition, layout: Layout) -> bool:
    asked = layout.allocation.count * layout.allocation.nodes
    return partition.nodes is None or partition.nodes > asked
