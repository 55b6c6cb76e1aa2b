"""A plan as text: a table of its sizes and a drawing of which rank sits on which GPU."""

from __future__ import annotations

from itertools import groupby

from launcher.plan.types import Layout, Placement, Plan

__all__ = ["draw", "summary"]

_SHOWN_NODES = 16


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


def draw(layout: Layout) -> str:
    """One line a node: each cell is a rank, as ``rank:stage.tp`` under its GPU.

    Replicas are told apart by the label at the end. Beyond 16 nodes the rest is counted.
    """
    by_node = sorted(layout.placements, key=lambda p: (p.node, p.replica, p.rank))
    nodes = [(node, list(ranks)) for node, ranks in groupby(by_node, key=lambda p: p.node)]
    columns = 1 + max(column for _, ranks in nodes for column in _columns(ranks))
    kind = "GPU" if layout.allocation.gpus_per_node else "slot"
    labels = [f"{kind} {i}" for i in range(columns)]
    width = max(len(cell) for cell in (*labels, *map(_cell, layout.placements))) + 2
    head = "".join(label.ljust(width) for label in labels)
    lines = [f"{'':10}{head}".rstrip()]
    lines += [_node_line(node, ranks, width) for node, ranks in nodes[:_SHOWN_NODES]]
    if len(nodes) > _SHOWN_NODES:
        lines.append(f"… and {len(nodes) - _SHOWN_NODES} more nodes in the same way")
    lines.append("cells: rank:stage.tp_rank")
    return "\n".join(lines)


def _columns(ranks: list[Placement]) -> dict[int, str]:
    """The cells of a node by their column: the GPU's, or one after the other."""
    return {i if p.gpu is None else p.gpu: _cell(p) for i, p in enumerate(ranks)}


def _node_line(node: int, ranks: list[Placement], width: int) -> str:
    columns = _columns(ranks)
    cells = "".join(columns.get(i, "").ljust(width) for i in range(max(columns) + 1))
    replicas = sorted({p.replica for p in ranks})
    label = f"replica {replicas[0]}" if len(replicas) == 1 else f"replicas {_span(replicas)}"
    return f"node {node:<5}{cells}{label}"


def _cell(p: Placement) -> str:
    return f"{p.rank}:{p.pp_rank}.{p.tp_rank}"


def _span(numbers: list[int]) -> str:
    return f"{numbers[0]}-{numbers[-1]}"
