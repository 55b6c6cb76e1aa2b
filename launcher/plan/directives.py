"""The ``#SBATCH`` options of a plan: what is asked of Slurm, in the site's own style."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from launcher.plan.selection import Selection, allowed, at_once, nearness, rejected, select
from launcher.plan.types import Allocation, Layout, Step
from launcher.spec.job import JobSpec
from launcher.spec.site import Partition, SiteSpec
from launcher.units import slurm_time

__all__ = ["cpus_per_task", "left_out", "slurm_directives"]

Options = Iterable[tuple[str, str | None]]


def slurm_directives(
    job: JobSpec, site: SiteSpec, partition_name: str, layout: Layout, step: Step, *, time_s: int
) -> tuple[tuple[str, str | None], ...]:
    """``(option, value)`` pairs in the order of the script; a bare flag has None.

    Options that the site rejects are left out, and so are those that the job gives itself in
    ``resources.sbatch``. ``--gpus-per-task`` and ``--ntasks-per-gpu`` are
    never used: they hide the other GPUs of the node from a rank, which breaks CUDA IPC
    (srun(1), ``--gpus-per-task`` implies ``--gpu-bind`` since Slurm 21.08).
    """
    wanted = _wanted(job, site, partition_name, layout, step, time_s=time_s)
    own = [_parted(option) for option in job.resources.sbatch]
    replaced = {"--mem" if name.startswith("--mem") else name for name, _ in own}
    kept = [(o, v) for o, v in wanted if o not in replaced and not rejected(site, o, v)]
    return (*kept, *own)


def left_out(
    job: JobSpec, site: SiteSpec, partition_name: str, layout: Layout, step: Step, *, time_s: int
) -> list[str]:
    """Options that the plan would have given, and the site rejects."""
    wanted = _wanted(job, site, partition_name, layout, step, time_s=time_s)
    return [option for option, value in wanted if rejected(site, option, value)]


def cpus_per_task(layout: Layout, step: Step) -> int | None:
    """CPUs of one task: those of all its ranks."""
    cpus = layout.allocation.cpus_per_rank
    if cpus is None:
        return None
    return cpus * layout.cut.ranks // step.tasks


def _wanted(
    job: JobSpec, site: SiteSpec, partition_name: str, layout: Layout, step: Step, *, time_s: int
) -> Options:
    partition = site.partitions[partition_name]
    chosen, a = select(job, site, partition_name), layout.allocation
    yield "--job-name", job.name
    yield from _identity(chosen)
    yield from _size(a, step, partition, cpus_per_task(layout, step))
    if a.whole_node:
        # --exclusive gives all CPUs and GPUs, but only the memory asked for (sbatch(1)).
        yield "--exclusive", None
        yield "--mem", _memory(site, partition)
    if near := nearness(site, partition, layout):
        yield near
    yield from _array(a.count, at_once(job, allowed(partition, chosen.qos), a.count))
    yield "--time", slurm_time(time_s)
    yield "--signal", f"B:USR1@{job.limits.warn_before}"
    yield "--requeue" if site.scheduler.restart == "requeue" else "--no-requeue", None
    yield "--open-mode", "append"


def _identity(chosen: Selection) -> Options:
    for field in fields(chosen):
        if value := getattr(chosen, field.name):
            yield f"--{field.name}", value


def _size(a: Allocation, step: Step, partition: Partition, cpus: int | None) -> Options:
    yield "--nodes", str(a.nodes)
    yield "--ntasks-per-node", str(step.tasks_per_node * a.replicas)
    if cpus is not None:
        yield "--cpus-per-task", str(cpus)
    if partition.gpus is not None and partition.gpus.request is not None:
        option, _, value = partition.gpus.request.partition("=")
        # --gpus counts those of the whole job, the others those of a node (sbatch(1)).
        gpus = a.gpus_per_node * (a.nodes if option == "--gpus" else 1)
        yield option, value.replace("{n}", str(gpus))


def _memory(site: SiteSpec, partition: Partition) -> str:
    """All memory of a node; by its size where the site refuses to hear it as 0."""
    if rejected(site, "--mem", "0") and partition.memory is not None:
        return f"{partition.memory // 2**20}M"
    return "0"


def _array(count: int, most: int | None) -> Options:
    if count > 1:
        yield "--array", f"0-{count - 1}" + (f"%{most}" if most is not None else "")


def _parted(option: str) -> tuple[str, str | None]:
    name, equals, value = option.partition("=")
    return name, value if equals else None
