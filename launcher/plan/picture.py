"""A plan as text: a table of its sizes and a drawing of which rank sits on which GPU."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, groupby, zip_longest

from launcher.plan.types import Placement, Plan

__all__ = ["draw", "summary"]

_SHOWN = 16


def summary(plan: Plan) -> list[tuple[str, str]]:
    """``(what, value)`` lines of the plan."""
    cut, allocation = plan.layout.cut, plan.layout.allocation
    shape = f"tp {cut.tp} x pp {cut.pp}" + (f", ep {cut.ep} inside tp" if cut.ep > 1 else "")
    gpus = f", {allocation.gpus_per_node} GPUs on each" if allocation.gpus_per_node else ""
    launcher = plan.launcher + (f" ({plan.mpi})" if plan.mpi else "")
    return [
        ("job", f"{plan.name} on site {plan.site} ({plan.scheduler})"),
        ("model", plan.model + (f"  {plan.model_path}" if plan.model_path else "")),
        ("engine", plan.engine),
        ("replica", f"{shape} = {cut.ranks} rank{'s' * (cut.ranks > 1)}"),
        ("replicas", f"{plan.layout.replicas}, {allocation.replicas} in an allocation"),
        ("allocations", f"{allocation.count} of {allocation.nodes} node(s){gpus}"),
        ("step", f"{plan.step.kind}: {plan.step.tasks} task(s), started by {launcher}"),
    ]


def draw(plan: Plan) -> str:
    """One line for all nodes that are alike: each cell is a rank, as ``rank:stage.tp``.

    Above them, where it is known which column is which GPU, what NVLink joins and the rails. The
    label at the end tells replicas apart. Beyond 16 lines the other nodes are counted.
    """
    layout = plan.layout
    by_node = sorted(layout.placements, key=lambda p: (p.node, p.replica, p.rank))
    alike: dict[tuple[str, ...], list[list[Placement]]] = {}
    for ranks in (list(group) for _, group in groupby(by_node, key=lambda p: p.node)):
        alike.setdefault(_cells(ranks), []).append(ranks)
    columns = max(map(len, alike))
    rails = _rails(plan, columns)
    kind = "GPU" if layout.allocation.gpus_per_node else "slot"
    labels = [f"{kind} {i}" for i in range(columns)]
    width = max(map(len, (*labels, *chain(*alike), *chain(*rails)))) + 2
    lines = [_line("", labels, width), *_links(plan, columns, width)]
    lines += [_line("rail", row, width) for row in rails]
    rows = list(alike.items())
    lines += [_line(_node(nodes), cells, width, _label(nodes)) for cells, nodes in rows[:_SHOWN]]
    if hidden := sum(len(nodes) for _, nodes in rows[_SHOWN:]):
        lines.append(f"… and {hidden} more nodes in the same way")
    return "\n".join([*lines, *_between(plan), "cells: rank:stage.tp_rank"])


def _line(label: str, cells: Iterable[str], width: int, end: str = "") -> str:
    return (f"{label:9} " + "".join(cell.ljust(width) for cell in cells) + end).rstrip()


def _node(nodes: list[list[Placement]]) -> str:
    return f"node {nodes[0][0].node}" if len(nodes) == 1 else f"{len(nodes)} nodes"


def _cells(ranks: list[Placement]) -> tuple[str, ...]:
    """The ranks of a node, each in its GPU's column, or one after the other."""
    columns = {i if p.gpu is None else p.gpu: _cell(p) for i, p in enumerate(ranks)}
    return tuple(columns.get(i, "") for i in range(max(columns) + 1))


def _label(nodes: list[list[Placement]]) -> str:
    replicas = sorted({p.replica for ranks in nodes for p in ranks})
    if len(replicas) == 1:
        return f"replica {replicas[0]}"
    return f"replicas {replicas[0]}-{replicas[-1]}"


def _cell(p: Placement) -> str:
    return f"{p.rank}:{p.pp_rank}.{p.tp_rank}"


def _links(plan: Plan, columns: int, width: int) -> list[str]:
    """A bar over each group of GPUs that NVLink joins.

    On a part of a node a column may be any GPU, which matters where not all are joined.
    """
    gpus = plan.gpus
    if gpus is None or gpus.domain is None or gpus.domain == 1 or columns == 1:
        return []
    if gpus.count not in (gpus.domain, columns):
        return []
    sizes = [min(gpus.domain, columns - first) for first in range(0, columns, gpus.domain)]
    bars = [f"[{'=' * (size * width - 4)}]  " for size in sizes]
    return [_line(gpus.link or "NVLink", bars, 0)]


def _rails(plan: Plan, columns: int) -> list[list[str]]:
    """Rows of rails under their GPUs; each GPU may have several, and share them."""
    if plan.gpus is None or plan.network is None or columns != plan.gpus.count:
        return []
    rails = plan.network.rails
    same = all(rail.hca.endswith(":1") for rail in rails)
    names = [
        [r.hca.removesuffix(":1") if same else r.hca for r in rails if gpu in r.gpus]
        for gpu in range(columns)
    ]
    return [list(row) for row in zip_longest(*names, fillvalue="")]


def _between(plan: Plan) -> list[str]:
    network = plan.network
    if network is None:
        return []
    ports = f", {network.ports} port(s) a node" if network.ports else ""
    rate = f", {network.rate} Gbit/s each" if network.rate else ""
    return [f"between nodes: {network.type}{ports}{rate}"]
