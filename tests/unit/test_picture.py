"""The drawing shows each rank once, under a label, in straight columns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.picture import draw, summary
from launcher.plan.types import Cut, Layout, Plan, Step, WorkRuntime


def laid(cut: Cut, replicas: int, slots: int, *, gpus: bool = True) -> Layout:
    return lay_out(cut, replicas, NodeShape(slots=slots, slots_all=slots, has_gpus=gpus))


def plan(layout: Layout) -> Plan:
    return Plan(
        name="job",
        site="here",
        scheduler="slurm",
        engine="tensorrt-llm",
        model="m",
        model_path=None,
        layout=layout,
        step=Step(kind="leader", nodes=layout.allocation.nodes, tasks_per_node=8),
        launcher="srun",
        mpi="pmix",
        forced_binding=False,
        runtime=WorkRuntime(python="python3"),
        directives=(),
        restart="none",
        warn_before_s=300,
        attempts=1,
        max_bad_fraction=0.0,
    )


def test_two_stages_on_two_nodes_are_drawn_as_two_rows() -> None:
    assert draw(laid(Cut(tp=2, pp=2), 1, 2)).splitlines() == [
        "          GPU 0  GPU 1",
        "node 0    0:0.0  1:0.1  replica 0",
        "node 1    2:1.0  3:1.1  replica 0",
        "cells: rank:stage.tp_rank",
    ]


def test_packed_replicas_share_a_row() -> None:
    assert draw(laid(Cut(tp=2), 3, 4)).splitlines() == [
        "          GPU 0  GPU 1  GPU 2  GPU 3",
        "node 0    0:0.0  1:0.1  0:0.0  1:0.1  replicas 0-1",
        "node 1    0:0.0  1:0.1  replica 2",
        "cells: rank:stage.tp_rank",
    ]


def test_a_replica_stands_under_its_own_gpus() -> None:
    shape = NodeShape(slots=4, slots_all=4, has_gpus=True, socket=2, unit="node")
    assert draw(lay_out(Cut(pp=1), 2, shape)).splitlines()[1] == (
        "node 0    0:0.0  0:0.0  replicas 0-1"
    )
    wide = NodeShape(slots=8, slots_all=8, has_gpus=True, socket=4, unit="node")
    assert draw(lay_out(Cut(tp=3), 2, wide)).splitlines()[:2] == [
        "          GPU 0  GPU 1  GPU 2  GPU 3  GPU 4  GPU 5  GPU 6",
        "node 0    0:0.0  1:0.1  2:0.2         0:0.0  1:0.1  2:0.2  replicas 0-1",
    ]


def test_nodes_without_gpus_have_slots() -> None:
    assert draw(laid(Cut(), 1, 1, gpus=False)).splitlines()[0] == "          slot 0"


@pytest.mark.parametrize(("nodes", "more"), [(16, None), (17, 1), (400, 384)])
def test_beyond_sixteen_nodes_the_rest_is_counted(nodes: int, more: int | None) -> None:
    lines = draw(laid(Cut(), nodes, 1)).splitlines()
    assert sum(line.startswith("node ") for line in lines) == min(nodes, 16)
    assert [line for line in lines if "more" in line] == (
        [] if more is None else [f"… and {more} more nodes in the same way"]
    )


@given(
    cut=st.builds(Cut, tp=st.integers(1, 12), pp=st.integers(1, 12)),
    replicas=st.integers(1, 12),
    slots=st.integers(1, 120),
    gpus=st.booleans(),
)
def test_every_cell_starts_under_its_label_and_none_touches_the_next(
    cut: Cut, replicas: int, slots: int, *, gpus: bool
) -> None:
    layout = laid(cut, replicas, slots, gpus=gpus)
    head, *rows = draw(layout).splitlines()
    kind = "GPU " if gpus else "slot "
    starts = [i for i in range(len(head)) if head.startswith(kind, i)]
    labels = [head[start:].split("  ")[0].strip() for start in starts]
    assert labels == [f"{kind}{n}" for n in range(len(labels))]
    for node in range(min(16, layout.allocation.count * layout.allocation.nodes)):
        here = [p for p in layout.placements if p.node == node]
        for p, start in zip(here, starts, strict=False):
            assert rows[node][start:].split()[0] == f"{p.rank}:{p.pp_rank}.{p.tp_rank}"
        assert len(here) <= len(starts)


def test_the_summary_counts_what_is_asked_for() -> None:
    lines = dict(summary(plan(laid(Cut(tp=8, pp=2, ep=4), 3, 8))))
    assert lines["replica"] == "tp 8 x pp 2, ep 4 inside tp = 16 ranks"
    assert lines["replicas"] == "3, 1 in an allocation"
    assert lines["allocations"] == "3 of 2 node(s), 8 GPUs on each"
    assert lines["step"] == "leader: 16 task(s), started by srun (pmix)"


def test_a_replica_of_one_rank_is_not_spoken_of_in_the_plural() -> None:
    assert dict(summary(plan(laid(Cut(), 1, 1))))["replica"].endswith("= 1 rank")
