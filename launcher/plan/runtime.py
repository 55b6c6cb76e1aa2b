"""What the engine runs in on a compute node, and whether the site can start that."""

from __future__ import annotations

from launcher.plan.mounts import complete_mounts
from launcher.plan.resolver import Resolver
from launcher.plan.types import Step, WorkRuntime
from launcher.spec.site import EngineRuntime, Partition

__all__ = ["check_runtime", "choose_runtime"]


def choose_runtime(r: Resolver, site: EngineRuntime) -> WorkRuntime:
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
        command=r.site.container.command,
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


def check_runtime(r: Resolver, step: Step, runtime: WorkRuntime, partition: Partition) -> None:
    """``plan.mount``, ``site.launch-impossible`` and ``plan.image-architecture``."""
    _check_mounts(r, runtime)
    _check_launch(r, step, runtime)
    _check_image(r, runtime, partition)


def _check_mounts(r: Resolver, runtime: WorkRuntime) -> None:
    for place in runtime.mounts[len(r.job.runtime.mounts) :]:
        if found := sorted(set(":,").intersection(place)):
            message = f"{place} has to be mounted, and a mount cannot hold {' or '.join(found)}"
            hint = "rename the directory, or mount one above it elsewhere with runtime.mounts"
            r.error("plan.mount", message, "runtime", hint=hint)


def _check_launch(r: Resolver, step: Step, runtime: WorkRuntime) -> None:
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


def _check_image(r: Resolver, runtime: WorkRuntime, partition: Partition) -> None:
    built_for = r.facts.image_archs.get(runtime.image or "")
    there = partition.cpus.arch if partition.cpus else None
    if built_for is not None and there is not None and built_for != there:
        message = f"{runtime.image} is for {built_for}, and the CPUs of this partition are {there}"
        hint = f"pull or build the image on a machine with {there} CPUs"
        r.error("plan.image-architecture", message, "runtime", "image", hint=hint)
