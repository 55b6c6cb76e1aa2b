"""The ``#SBATCH`` options of a plan: what is asked of Slurm, in the site's own style."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.plan.types import Allocation, Layout, Step
from launcher.spec.job import JobSpec
from launcher.spec.site import Partition, SiteSpec
from launcher.units import slurm_time

__all__ = ["cpus_per_task", "slurm_directives"]

Options = Iterable[tuple[str, str | None]]


def slurm_directives(
    job: JobSpec, site: SiteSpec, partition_name: str, layout: Layout, step: Step, *, time_s: int
) -> tuple[tuple[str, str | None], ...]:
    """``(option, value)`` pairs in the order of the script; a bare flag has None.

    Options that the site rejects are left out. ``--gpus-per-task`` and ``--ntasks-per-gpu`` are
    never used: they hide the other GPUs of the node from a rank, which breaks CUDA IPC
    (srun(1), ``--gpus-per-task`` implies ``--gpu-bind`` since Slurm 21.08).
    """
    partition = site.partitions[partition_name]
    options = (
        *_identity(job, partition_name),
        *_size(layout.allocation, step, partition, cpus_per_task(layout, step)),
        *_array(layout.allocation.count, job.resources.at_once),
        ("--time", slurm_time(time_s)),
        ("--signal", f"B:USR1@{job.limits.warn_before}"),
        ("--requeue" if site.scheduler.restart == "requeue" else "--no-requeue", None),
        ("--open-mode", "append"),
    )
    return tuple((o, v) for o, v in options if not {o, f"{o}={v}"} & {*site.scheduler.reject})


def cpus_per_task(layout: Layout, step: Step) -> int | None:
    """CPUs of one task: those of all its ranks."""
    cpus = layout.allocation.cpus_per_rank
    if cpus is None:
        return None
    return cpus * layout.cut.ranks // step.tasks


def _identity(job: JobSpec, partition_name: str) -> Options:
    yield "--job-name", job.name
    yield "--partition", partition_name
    for key in ("account", "qos", "reservation"):
        if value := getattr(job.resources, key):
            yield f"--{key}", value


def _size(a: Allocation, step: Step, partition: Partition, cpus: int | None) -> Options:
    yield "--nodes", str(a.nodes)
    yield "--ntasks-per-node", str(step.tasks_per_node * a.replicas)
    if cpus is not None:
        yield "--cpus-per-task", str(cpus)
    if partition.gpus is not None and partition.gpus.request is not None:
        option, _, value = partition.gpus.request.partition("=")
        yield option, value.replace("{n}", str(a.gpus_per_node))
    if a.whole_node:
        # --exclusive gives all CPUs and GPUs, but only the memory asked for (sbatch(1)).
        yield "--exclusive", None
        yield "--mem", "0"


def _array(count: int, at_once: int | None) -> Options:
    if count > 1:
        yield "--array", f"0-{count - 1}" + (f"%{at_once}" if at_once is not None else "")
