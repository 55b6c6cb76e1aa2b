"""How large a replica is and how many there are: as stated, or by arithmetic.

A cut that the job file states is computed like any other; `launcher.plan.memory_checks` says what
is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from launcher.models.weights import weight_bytes
from launcher.plan.capabilities import ENGINES
from launcher.plan.layout import NodeShape, cut_words, span
from launcher.plan.pace import start
from launcher.plan.question import ask, unanswerable, workload
from launcher.plan.resolver import Resolver
from launcher.plan.search import Candidate, Search, search
from launcher.plan.site_checks import ATTEMPTS
from launcher.plan.types import Cut, Layout
from launcher.spec.site import Partition, Qos
from launcher.units import format_bytes, format_duration

__all__ = ["Sizes", "check_node_memory", "choose_sizes"]

ROWS_EACH = 200
"""Fewer rows than this are no work for one more replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What was decided; ``search`` is None where nothing could be computed.

    ``options`` are sizes of steps, for the engine.
    """

    cut: Cut
    replicas: int
    search: Search | None = None
    options: dict[str, int] = field(default_factory=dict)


def choose_sizes(
    r: Resolver, name: str, partition: Partition, node: NodeShape, limits: Qos
) -> Sizes:
    """Decide cut and replicas.

    Notes ``plan.auto-model``, ``plan.auto-options``, ``plan.auto-gpu-memory`` and
    ``plan.auto-no-fit``; the sizes are then 1.
    """
    cut, found = _stated_cut(r), None
    if any(p.severity == "error" for p in r.problems):
        cut = cut or Cut()  # of options that are wrong nothing is computed
    elif partition.gpus is None or not ENGINES[r.job.engine].needs_model:
        if cut is None:
            _decide_cut(r, cut := Cut(), "of an engine without a model, or on CPUs")
    elif (reason := unanswerable(r, name, partition)) is None:
        found = search(ask(r, partition, node, limits, cut))
        cut = _proved(r, name, found, cut)
        r.decide("rows", _rows_words(r), r.facts.prompts.source)
    elif cut is None:
        code, message, hint = reason
        where = _PLACES.get(code, "parallelism")
        r.error(code, message, where, hint=hint)
        cut = Cut()
    assert cut is not None  # noqa: S101 - each case above decides it, or was told it
    chosen = found.chosen if found else None
    for key, value in (chosen.sizes if chosen else {}).items():
        why = _WHY_SIZES.get(key, "the largest step that is of use and fits")
        r.decide(f"engine_options.{key}", value, why)
    replicas = _replicas(r, partition, node, limits, cut, chosen)
    return Sizes(
        cut=cut, replicas=replicas, search=found, options=dict(chosen.sizes) if chosen else {}
    )


def _stated_cut(r: Resolver) -> Cut | None:
    stated = r.job.parallelism
    if stated == "auto":
        return None
    for axis in ("tp", "pp", "ep"):
        r.from_job(f"parallelism.{axis}", getattr(stated, axis))
    return Cut(tp=stated.tp, pp=stated.pp, ep=stated.ep)


def _rows_words(r: Resolver) -> str:
    told, work = r.facts.prompts, workload(r, r.facts.shape)
    rows = "unknown" if told.rows is None else f"about {told.rows:,}"
    return (
        f"{rows}, prompts of {told.mean:.0f} tokens (p95 {told.p95}), answers of "
        f"{work.new_tokens:.0f} of at most {told.most_new}"
    )


_WHY_SIZES = {"max_model_len": "as long as fits: a row of the model's longest does not"}
_PLACES = {"plan.auto-model": "model", "plan.auto-options": "engine_options"}


def _decide_cut(r: Resolver, cut: Cut, why: str) -> None:
    for axis in ("tp", "pp", "ep"):
        r.decide(f"parallelism.{axis}", getattr(cut, axis), why)


# --- the cut


def _proved(r: Resolver, name: str, found: Search, stated: Cut | None) -> Cut:
    chosen = found.chosen
    if chosen is not None:
        if stated is None:
            _decide_cut(r, chosen.cut, found.why)
        r.decide("memory", _memory_words(chosen), "computed, see docs/reference/memory.md")
        return chosen.cut
    if stated is None:
        _nothing_fits(r, name, found)
        return Cut()
    return stated  # what speaks against it is told with all else that does


def _nothing_fits(r: Resolver, name: str, found: Search) -> None:
    nearest = max(
        found.rejected,
        key=lambda x: (x.code == "plan.gpu-memory", x.cut.ranks, x.cut.tp),
        default=None,
    )
    message = f"no cut of {r.job.model} fits partition {name}"
    if nearest is not None:
        message += f": {cut_words(nearest.cut)} {nearest.reason}"
    hint = (
        "choose a partition with more memory or nodes, a checkpoint in fewer bits, or a smaller "
        "sampling.max_tokens"
    )
    r.error("plan.auto-no-fit", message, "model", hint=hint)


def _memory_words(chosen: Candidate) -> str:
    fullest = min(chosen.fit.stages, key=lambda s: s.kv_bytes)
    return (
        f"{format_bytes(fullest.weights)} of weights, {format_bytes(fullest.kv_bytes)} of KV "
        f"cache, {format_bytes(fullest.capacity)} in all on a GPU"
    )


# --- replicas


def _replicas(
    r: Resolver,
    partition: Partition,
    node: NodeShape,
    limits: Qos,
    cut: Cut,
    chosen: Candidate | None,
) -> int:
    if r.job.replicas != "auto":
        r.from_job("replicas", r.job.replicas)
        return r.job.replicas
    if partition.gpus is None or not ENGINES[r.job.engine].needs_model:
        r.decide("replicas", 1, "one: how fast it will be is not known")
        return 1
    nodes, _ = span(cut, node.slots)
    packed = max(1, node.slots // cut.ranks) if nodes == 1 else 1
    fills = "fills the GPUs of a node" if nodes == 1 else f"one on {nodes} nodes"
    rows = r.facts.prompts.rows
    useful = packed if rows is None else _useful(rows, packed, node, cut, limits)
    if useful < packed:
        r.decide("replicas", useful, f"no more for about {rows:,} rows")
        return useful
    count, why = _allocations(r, partition, limits, nodes, packed, chosen)
    if rows is not None and count > useful // packed:
        count, why = max(1, useful // packed), f"about {rows:,} rows are no work for more"
    r.decide("replicas", count * packed, f"{fills}; {count} allocation{'s'[: count != 1]}: {why}")
    return count * packed


def _useful(rows: int, packed: int, node: NodeShape, cut: Cut, limits: Qos) -> int:
    """Replicas that have work; GPUs that the job holds in any case may as well do some."""
    held = packed if node.unit != "gpu" else -(-(limits.min_gpus or 1) // cut.ranks)
    return max(1, rows // ROWS_EACH, min(held, packed, rows))


def _allocations(
    r: Resolver,
    partition: Partition,
    limits: Qos,
    nodes: int,
    packed: int,
    chosen: Candidate | None,
) -> tuple[int, str]:
    """As many as end within the time of a job, if each gets its time at once."""
    time_s, rows = r.job.resources.time or limits.time_limit, r.facts.prompts.rows
    shape = r.facts.shape
    speed = None if chosen is None else chosen.cost
    if time_s is None or rows is None or shape is None or speed is None:
        return 1, "how long the rows take is not known"
    start_s = start(r.job.engine, weight_bytes(shape), nodes).most
    left_s = time_s - r.job.limits.warn_before - start_s
    tokens = rows * workload(r, shape).new_tokens
    needed_s = tokens / (speed.tokens_s_range[0] * packed)
    if left_s <= 0:
        return 1, f"{format_duration(time_s)} are little more than a start"
    wanted = max(1, math.ceil(needed_s / left_s))
    most, bound = min(_bounds(r, partition, limits, nodes), default=(wanted, ""))
    why = (
        f"about {format_duration(needed_s)} of work for one, and a job of "
        f"{format_duration(time_s)} has {format_duration(left_s)} for it"
    )
    return (max(1, most), f"{why}, but {bound}") if most < wanted else (wanted, why)


def _bounds(
    r: Resolver, partition: Partition, limits: Qos, nodes: int
) -> Iterator[tuple[int, str]]:
    """How many allocations there can be, and what says so."""
    if r.site.scheduler.type == "local":
        yield 1, "there is one machine"
        return
    scheduler = r.site.scheduler
    attempts = r.job.limits.attempts or ATTEMPTS[scheduler.restart]
    links = attempts if scheduler.restart == "chain" else 1
    found = (
        (partition.nodes and partition.nodes // nodes, "the partition has no more nodes"),
        (limits.jobs_running, "the site lets one user run no more jobs"),
        (limits.jobs_queued and limits.jobs_queued // links, "the site queues no more jobs"),
        (scheduler.max_array_size, "an array of the site has no more"),
        (r.job.resources.at_once, "no more are to run at once"),
    )
    yield from ((most, why) for most, why in found if most is not None)


# --- nodes without GPUs


def check_node_memory(r: Resolver, name: str, partition: Partition, layout: Layout) -> None:
    """``plan.node-memory`` where weights alone are more than a node without GPUs can give."""
    shape = r.facts.shape
    if partition.gpus or partition.memory is None or shape is None:
        return
    a = layout.allocation
    needed = weight_bytes(shape) * a.replicas // a.nodes
    if needed > partition.memory:
        message = (
            f"{format_bytes(needed)} of weights would be on a node ({a.replicas} replica(s) of "
            f"{r.job.model}), and one of partition {name} gives {format_bytes(partition.memory)}"
        )
        hint = "set replicas to fewer, or choose a smaller model or a partition with GPUs"
        r.error("plan.node-memory", message, "model", hint=hint)
