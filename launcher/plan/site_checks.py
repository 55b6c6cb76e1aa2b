"""What a site lets one job have, against what a job asks for. Pure.

Each check adds its problems and decisions to a `Resolver`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby

from launcher.errors import Location
from launcher.plan import selection
from launcher.plan.capabilities import ENGINES
from launcher.plan.directives import cpus_per_task, left_out, slurm_directives
from launcher.plan.resolver import Resolver
from launcher.plan.types import Layout, Step
from launcher.spec.site import Gpus, Partition, Qos
from launcher.units import format_duration

__all__ = [
    "ATTEMPTS",
    "check_place",
    "check_selection",
    "check_size",
    "choose_scratch",
    "choose_time",
    "decide_directives",
    "gpus_of_a_socket",
    "site_environment",
]

# A chain is queued whole, and sites bound how many jobs one user may have queued.
ATTEMPTS: Mapping[str, int] = {"requeue": 20, "chain": 4, "none": 1}


def check_selection(r: Resolver, partition_name: str, partition: Partition) -> Qos:
    """Whose name the job runs in and on which nodes; gives what it may have there.

    Notes ``plan.account-missing`` and ``plan.qos-unknown``.
    """
    if r.site.scheduler.type == "local":
        return selection.allowed(partition, None)
    chosen, asked = selection.select(r.job, r.site, partition_name), r.job.resources
    if r.site.scheduler.account_required and chosen.account is None:
        message = f"site {r.site.name} runs no job without an account, and the job names none"
        r.error("plan.account-missing", message, "resources", hint="set resources.account")
    known = {*partition.qos, *filter(None, [partition.select.qos])}
    if partition.qos and asked.qos is not None and asked.qos not in known:
        _unknown_qos(r, asked.qos, sorted(known), partition_name)
    if chosen.partition is None:
        r.from_site("--partition", "not named", f"partition {partition_name}")
    for key, value in list(asdict(chosen).items())[1:]:
        if value is not None and value == getattr(asked, key):
            r.from_job(f"resources.{key}", value)
        elif value is not None:
            r.from_site(f"resources.{key}", value, f"partition {partition_name}")
    return selection.allowed(partition, chosen.qos)


def _unknown_qos(r: Resolver, qos: str, known: list[str], partition_name: str) -> None:
    message = f"partition {partition_name} of site {r.site.name} lists no QoS {qos!r}"
    if "unlisted-qos" in r.job.allow:
        r.warn("plan.qos-unknown", message, "resources", "qos")
        return
    near = difflib.get_close_matches(qos, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
    r.error("plan.qos-unknown", message, "resources", "qos", hint=hint)


def check_size(r: Resolver, layout: Layout, partition: Partition, name: str, limits: Qos) -> None:
    """How many jobs of how many nodes and GPUs: what is too much, too little or idle."""
    _check_extent(r, layout, partition, name)
    _check_array(r, layout)
    _check_idle(r, layout, partition)
    if r.site.scheduler.type == "local":
        return
    a = layout.allocation
    _check_range(r, layout, "nodes", a.nodes, (limits.min_nodes, limits.max_nodes))
    if partition.gpus is not None:
        gpus, bounds = a.nodes * a.gpus_per_node, (limits.min_gpus, limits.max_gpus)
        splits = partition.gpus.unit == "gpu" and partition.gpus.request is not None
        _check_range(r, layout, "GPUs", gpus, bounds, splits=splits)
    _check_queue(r, layout, limits)


def _check_range(
    r: Resolver,
    layout: Layout,
    what: str,
    size: int,
    bounds: tuple[int | None, int | None],
    *,
    splits: bool = False,
) -> None:
    least, most = bounds
    site = r.site.name
    if least is not None and size < least:
        message = f"each job asks for {size} {what}, and site {site} wants at least {least} here"
        hint = "choose another partition or QoS"
        if layout.allocation.nodes == 1 and what == "GPUs":
            hint = f"fill a job with more replicas, or {hint}"
        r.error("plan.job-too-small", message, "parallelism", hint=hint)
    if most is not None and size > most:
        message = f"each job asks for {size} {what}, and site {site} gives at most {most} here"
        hint = "choose a smaller tp * pp, or another partition or QoS"
        if what == "GPUs" and layout.cut.ranks <= most and splits:
            hint = f"set resources.gpus_per_node to at most {most}"
        r.error("plan.job-too-large", message, "parallelism", hint=hint)


def _check_queue(r: Resolver, layout: Layout, limits: Qos) -> None:
    count, restart = layout.allocation.count, r.site.scheduler.restart
    queued, running = limits.jobs_queued, limits.jobs_running
    links = (r.job.limits.attempts or ATTEMPTS[restart]) if restart == "chain" else 1
    if queued is not None and count * links > queued:
        chained = f" in chains of {links}" if links > 1 else ""
        message = (
            f"{layout.replicas} replicas are {count * links} jobs{chained}, and site "
            f"{r.site.name} lets one user have {queued} queued"
        )
        most = queued // links * layout.allocation.replicas
        hint = f"set replicas to at most {most}" if most else "lower limits.attempts"
        r.error("plan.too-many-jobs", message, "replicas", hint=hint)
    if running is not None and count > running:
        message = (
            f"{running} of the {count} allocations run at the same time, which is what site "
            f"{r.site.name} gives one user"
        )
        r.warn("plan.jobs-wait", message, "replicas", hint="the others follow as those end")
    most_running = selection.at_once(r.job, limits, count)
    if r.job.resources.at_once is not None:
        r.from_job("resources.at_once", most_running)
    elif most_running is not None:
        r.from_site("resources.at_once", most_running, "jobs that one user may run")


def _check_extent(r: Resolver, layout: Layout, partition: Partition, name: str) -> None:
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


def _check_array(r: Resolver, layout: Layout) -> None:
    size, limit = layout.allocation.count, r.site.scheduler.max_array_size
    if limit is not None and size > limit:
        message = (
            f"{layout.replicas} replicas make an array of {size} jobs, and the site takes {limit}"
        )
        hint = (
            f"set replicas to at most {limit * layout.allocation.replicas}, and scale the run later"
        )
        r.error("plan.array-too-large", message, "replicas", hint=hint)


def _check_idle(r: Resolver, layout: Layout, partition: Partition) -> None:
    gpus, a = partition.gpus, layout.allocation
    if gpus is None:
        return
    held = a.gpus_per_node * a.nodes * a.count
    idle = held - layout.cut.ranks * layout.replicas
    if idle:
        slurm = r.site.scheduler.type == "slurm"
        whole = slurm and a.whole_node and (gpus.unit != "gpu" or gpus.request is None)
        why = f", for site {r.site.name} gives whole nodes only" * whole
        message = f"{idle} of the {held} GPUs asked for stay idle{why}"
        hint = "choose tp, pp and replicas so that they fill the nodes"
        r.warn("plan.idle-gpus", message, "parallelism", hint=hint)


def check_place(r: Resolver, layout: Layout, partition: Partition, name: str) -> None:
    """What could put ranks on GPUs other than the plan has in mind, unseen.

    Notes ``plan.mixed-nodes``, ``plan.pairs-unsure`` and ``plan.unstated``.
    """
    gpus, a = partition.gpus, layout.allocation
    chosen = selection.select(r.job, r.site, name)
    # Of `a|b` each node may have another one, of `[a|b]` all have the same; `a*2` is of two nodes,
    # whatever the others are (sbatch(1)).
    asked = chosen.constraint or ""
    if a.nodes > 1 and ("*" in asked or "|" in re.sub(r"\[[^]]*\]", "", asked)):
        message = f"the nodes of a replica may differ under the constraint {chosen.constraint!r}"
        hint = "put brackets around the alternatives, or set allow: [mixed-nodes]"
        note = r.warn if "mixed-nodes" in r.job.allow else r.error
        note("plan.mixed-nodes", message, "resources", "constraint", hint=hint)
    tp = layout.cut.tp
    if gpus is not None and gpus.topology == "pairs" and tp > 1 and not a.whole_node:
        message = (
            f"NVLink joins pairs of GPUs here, and {a.gpus_per_node} of {gpus.per_node} GPUs of a "
            "node may be of several pairs"
        )
        hint = "fill the nodes with replicas, or use whole nodes"
        r.warn("plan.pairs-unsure", message, "parallelism", hint=hint)
    _check_unstated(r, layout, partition, name)


def _check_unstated(r: Resolver, layout: Layout, partition: Partition, name: str) -> None:
    gpus, tp = partition.gpus, layout.cut.tp
    risks = {
        "gpus.topology": f"nobody knows whether tp {tp} leaves NVLink",
        "cpus": "each task has as many as the site's Slurm gives unasked",
    }
    if gpus is None or gpus.topology is not None or tp == 1:
        del risks["gpus.topology"]
    if partition.cpus is not None or r.site.scheduler.type == "local":
        del risks["cpus"]
    for key, risk in risks.items():
        message = f"site {r.site.name} does not state `{key}` of partition {name}: {risk}"
        r.warn("plan.unstated", message, "resources", hint="state it in the site file")


def choose_time(r: Resolver, limits: Qos, partition_name: str) -> int | None:
    """Seconds to ask for; None without a scheduler, or after a ``plan.time-*`` problem."""
    if r.site.scheduler.type == "local":
        return None
    wanted, limit = r.job.resources.time, limits.time_limit
    time_s = limit if wanted is None else wanted
    if time_s is None:
        message = f"no time is given, nor a limit of {partition_name}"
        hint = "set resources.time, for instance 4h"
        r.error("plan.time-missing", message, "resources", hint=hint)
    else:
        _check_time(r, time_s, limits, partition_name)
    if wanted is not None:
        r.from_job("resources.time", format_duration(wanted))
    elif limit is not None:
        r.decide("resources.time", format_duration(limit), f"the limit of {partition_name}")
    return time_s


def _check_time(r: Resolver, time_s: int, limits: Qos, partition_name: str) -> None:
    limit, least = limits.time_limit, limits.min_time
    if limit is not None and time_s > limit:
        message = (
            f"{format_duration(time_s)} are over the {format_duration(limit)} of {partition_name}"
        )
        hint = f"ask for at most {format_duration(limit)}; a run goes on in the next job"
        r.error("plan.time-over-limit", message, "resources", "time", hint=hint)
    if least is not None and time_s < least:
        message = (
            f"{format_duration(time_s)} are under the {format_duration(least)} that "
            f"{partition_name} wants of a job"
        )
        hint = f"ask for at least {format_duration(least)}; a job ends when its work is done"
        r.error("plan.time-under-limit", message, "resources", "time", hint=hint)
    if time_s <= r.job.limits.warn_before:
        # Slurm would warn the job the moment it starts (sbatch(1), --signal), each time anew.
        message = (
            f"a time of {format_duration(time_s)} leaves nothing before the warning "
            f"{format_duration(r.job.limits.warn_before)} ahead of its end"
        )
        hint = "raise resources.time or lower limits.warn_before"
        r.error("plan.time-too-short", message, "resources", "time", hint=hint)


def decide_directives(
    r: Resolver, layout: Layout, partition_name: str, step: Step, time_s: int
) -> None:
    """Note each option of sbatch in the script's order, and those that are kept out of it."""
    partition, plan = r.site.partitions[partition_name], (partition_name, layout, step)
    options = slurm_directives(r.job, r.site, *plan, time_s=time_s)
    given = dict(options)
    why = _reasons(r, layout, partition_name, step)
    own = len(r.job.resources.sbatch)  # they come last
    for option, value in options[: len(options) - own]:
        r.decide(option, value or "given", why.get(option))
    _job_options(r)
    for option in left_out(r.job, r.site, *plan, time_s=time_s):
        if option not in given:
            r.from_site(option, "left out", "it is rejected there")
    if partition.gpus is not None and partition.gpus.forced_binding:
        r.from_site("srun --gpu-bind", "none", "gpus.forced_binding")
        if selection.newer(r.site, "23.11", unknown=False):
            r.from_site("srun --gres-flags", "allow-task-sharing", "gpus.forced_binding")


_TASKS: Mapping[str, str] = {
    "single": "one task for each replica",
    "per-node": "one task for each node of a replica",
    "leader": "one task for each rank",
    "spmd": "one task for each rank",
}


def _reasons(
    r: Resolver, layout: Layout, partition_name: str, step: Step
) -> dict[str, Location | str | None]:
    """Why the plan gives an option of sbatch, by the option."""
    partition, a, site = r.site.partitions[partition_name], layout.allocation, f"site {r.site.name}"
    given: dict[str, Location | str | None] = {
        d.key.replace("resources.", "--", 1): d.source for d in r.decisions
    }
    if partition.select.partition is not None:
        given["--partition"] = f"{site}: partition {partition_name}"
    if partition.gpus is not None and partition.gpus.request is not None:
        given[partition.gpus.request.partition("=")[0]] = f"{site}: gpus.request"
    if near := partition.topology:
        why = f"{site}: a {near.type} with {near.nodes} nodes in each part"
        given |= {"--switches": why, "--segment": why}
    refused = ", for 0 is rejected there" * selection.rejected(r.site, "--mem", "0")
    restart = f"{site}: scheduler.restart is {r.site.scheduler.restart}"
    return given | {
        "--job-name": r.mark("name"),
        "--nodes": f"replicas in a job: {a.replicas}, ranks in each: {layout.cut.ranks}",
        "--ntasks-per-node": _TASKS[step.kind],
        "--cpus-per-task": f"{site}: its share of the CPUs of a node for each rank",
        "--exclusive": "the job uses whole nodes",
        "--mem": f"{site}: all of a whole node{refused}",
        "--array": f"replicas: {layout.replicas}, in a job: {a.replicas}",
        "--signal": r.mark("limits.warn_before"),
        "--requeue": restart,
        "--no-requeue": restart,
        "--open-mode": "a job that starts again goes on in its log",
    }


def _job_options(r: Resolver) -> None:
    """Note the options of ``resources.sbatch``."""
    for index, option in enumerate(r.job.resources.sbatch):
        name, _, value = option.partition("=")
        if selection.rejected(r.site, name, value):
            message = f"site {r.site.name} rejects the option {option}"
            r.error("plan.option-rejected", message, "resources", "sbatch", hint="delete it")
        r.decide(name, value or "given", r.job_source.marks.get(f"$.resources.sbatch[{index}]"))


def site_environment(r: Resolver, layout: Layout, step: Step) -> dict[str, str]:
    """What the site's facts put into the environment of ranks, below the site's own ``env``."""
    given = {}
    if r.site.internet is False and ENGINES[r.job.engine].needs_model:
        given = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        for name, value in given.items():
            r.from_site(f"env.{name}", value, "no internet on compute nodes")
    cpus, version = cpus_per_task(layout, step), r.site.scheduler.version or ""
    if cpus is not None and r.site.launch.with_ == "srun" and "22.05" <= version < "23.11":
        # From 22.05 on srun does not read what sbatch was told; from 23.11 on it does again
        # (RELEASE_NOTES). The step itself is told by an option: this is for what it starts.
        given["SRUN_CPUS_PER_TASK"] = str(cpus)
        r.from_site("env.SRUN_CPUS_PER_TASK", cpus, f"Slurm {version}")
    return given


def choose_scratch(r: Resolver) -> str | None:
    """Where engines keep their caches on a node, or None to leave that to them."""
    place = r.site.scratch.node_local
    if place is None or not ENGINES[r.job.engine].needs_model:
        return None
    r.from_site("scratch.node_local", place, "caches of engines")
    return place


def gpus_of_a_socket(gpus: Gpus | None) -> int | None:
    """How many GPUs stand next to the same CPUs, where these are neighbours and all alike."""
    runs = {len(list(run)) for _, run in groupby(gpus.cpus)} if gpus else set()
    return runs.pop() if len(runs) == 1 else None
