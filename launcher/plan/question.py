"""A job, a partition and a model as the question that `launcher.plan.search` answers."""

from __future__ import annotations

import math
from dataclasses import replace

from launcher.models.shapes import ModelShape
from launcher.models.weights import sizes_known
from launcher.plan.candidates import Question
from launcher.plan.capabilities import ENGINES
from launcher.plan.cost import Workload
from launcher.plan.layout import NodeShape
from launcher.plan.memory_checks import uncounted
from launcher.plan.resolver import Resolver
from launcher.plan.types import Cut
from launcher.plan.workload import ANSWER_SHARE, ANSWER_SPREAD
from launcher.spec.site import Partition, Qos

__all__ = ["ask", "unanswerable", "workload"]


def unanswerable(r: Resolver, name: str, partition: Partition) -> tuple[str, str, str] | None:
    """Code, message and remedy where no cut could be proved to fit."""
    shape, gpus = r.facts.shape, partition.gpus
    stated = "state the sizes yourself, such as parallelism: {tp: 8, pp: 2}"
    if shape is None:
        message = f"nothing is known of the sizes of model {r.job.model}"
        hint = f"point model at a checkpoint's directory, or {stated}"
        return "plan.auto-model", message, hint
    if not sizes_known(shape):
        message = f"what tensors a {shape.architecture} such as {shape.name} has is not known"
        hint = f"point model at a directory with its .safetensors files, or {stated}"
        return "plan.auto-model", message, hint
    if options := uncounted(r.job.engine_options):
        message = f"how much memory is needed under {', '.join(options)} is not known"
        return "plan.auto-options", message, stated
    if gpus is not None and gpus.memory is None:
        message = f"site {r.site.name} does not state `gpus.memory` of partition {name}"
        return "plan.auto-gpu-memory", message, f"state it in the site file, or {stated}"
    return None


def ask(
    r: Resolver, partition: Partition, node: NodeShape, limits: Qos, cut: Cut | None
) -> Question:
    """What is to be searched, or proved of ``cut``, where it is not `unanswerable`."""
    shape, gpus = r.facts.shape, partition.gpus
    assert shape is not None  # noqa: S101 - as promised
    assert gpus is not None  # noqa: S101 - as before
    work = workload(r, shape)
    longest = r.facts.prompts.p95
    if shape.max_position_embeddings is not None:
        longest = max(
            1, min(longest, round(shape.max_position_embeddings - (work.most_new_tokens or 0)))
        )
    several = ENGINES[r.job.engine].several_ranks is not None
    if cut is None and several and r.site.launch.with_ == "none":
        node = replace(node, slots=1)  # nothing here could start more ranks than one
    return Question(
        shape=shape,
        engine=r.job.engine,
        options=r.job.engine_options,
        env={**r.site.env, **r.job.env},
        gpus=gpus,
        fabric=partition.fabric,
        node=node,
        most_nodes=_most_nodes(r, partition, node, limits),
        workload=work,
        longest=longest,
        allow=r.job.allow,
        cut=cut,
    )


def workload(r: Resolver, shape: ModelShape | None) -> Workload:
    """The rows of one replica; an answer ends where the model takes no more."""
    prompts, most_new = r.facts.prompts, float(r.facts.prompts.most_new)
    mean, rows = prompts.mean, prompts.rows
    if shape is not None and (context := shape.max_position_embeddings) is not None:
        mean = min(mean, context - 1.0)
        most_new = min(most_new, context - mean)
    if rows is not None and r.job.replicas != "auto":
        rows = math.ceil(rows / r.job.replicas)
    return Workload(
        prompt_tokens=max(1.0, mean),
        new_tokens=max(1.0, most_new * ANSWER_SHARE),
        most_new_tokens=most_new,
        spread=ANSWER_SPREAD,
        doubt=1 / ANSWER_SHARE,
        rows=rows,
    )


def _most_nodes(r: Resolver, partition: Partition, node: NodeShape, limits: Qos) -> int | None:
    """Nodes that one replica can have."""
    if r.site.scheduler.type == "local":
        return 1
    bounds = [partition.nodes, limits.max_nodes]
    if limits.max_gpus is not None:
        held = node.slots if node.unit == "gpu" else node.slots_all
        bounds.append(max(1, limits.max_gpus // held))
    return min((bound for bound in bounds if bound is not None), default=None)
