"""The drawing shows each rank once, under a label, in straight columns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.picture import draw, summary
from launcher.plan.types import Cut, Layout, Network, NodeGpus, Plan, Rail, Step, WorkRuntime


def laid(cut: Cut, replicas: int, slots: int, *, gpus: bool = True) -> Layout:
    return lay_out(cut, replicas, NodeShape(slots=slots, slots_all=slots, has_gpus=gpus))


def plan(layout: Layout, *, gpus: NodeGpus | None = None, network: Network | None = None) -> Plan:
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
        gpus=gpus,
        network=network,
    )


def test_two_stages_on_two_nodes_are_drawn_as_two_rows() -> None:
    assert draw(plan(laid(Cut(tp=2, pp=2), 1, 2))).splitlines() == [
        "          GPU 0  GPU 1",
        "node 0    0:0.0  1:0.1  replica 0",
        "node 1    2:1.0  3:1.1  replica 0",
        "cells: rank:stage.tp_rank",
    ]


def test_packed_replicas_share_a_row() -> None:
    assert draw(plan(laid(Cut(tp=2), 3, 4))).splitlines() == [
        "          GPU 0  GPU 1  GPU 2  GPU 3",
        "node 0    0:0.0  1:0.1  0:0.0  1:0.1  replicas 0-1",
        "node 1    0:0.0  1:0.1  replica 2",
        "cells: rank:stage.tp_rank",
    ]


def test_a_replica_stands_under_its_own_gpus() -> None:
    shape = NodeShape(slots=4, slots_all=4, has_gpus=True, socket=2, unit="node")
    assert draw(plan(lay_out(Cut(pp=1), 2, shape))).splitlines()[1] == (
        "node 0    0:0.0  0:0.0  replicas 0-1"
    )
    wide = NodeShape(slots=8, slots_all=8, has_gpus=True, socket=4, unit="node")
    assert draw(plan(lay_out(Cut(tp=3), 2, wide))).splitlines()[:2] == [
        "          GPU 0  GPU 1  GPU 2  GPU 3  GPU 4  GPU 5  GPU 6",
        "node 0    0:0.0  1:0.1  2:0.2         0:0.0  1:0.1  2:0.2  replicas 0-1",
    ]


def test_nodes_without_gpus_have_slots() -> None:
    assert draw(plan(laid(Cut(), 1, 1, gpus=False))).splitlines()[0] == "          slot 0"


def test_nodes_that_are_alike_are_drawn_once_with_their_number() -> None:
    assert draw(plan(laid(Cut(tp=2, pp=2), 4, 2))).splitlines() == [
        "          GPU 0  GPU 1",
        "4 nodes   0:0.0  1:0.1  replicas 0-3",
        "4 nodes   2:1.0  3:1.1  replicas 0-3",
        "cells: rank:stage.tp_rank",
    ]
    assert draw(plan(laid(Cut(), 1200, 4))).splitlines()[1].startswith("300 nodes 0:0.0  0:0.0")


@pytest.mark.parametrize(("stages", "more"), [(16, None), (17, 1), (400, 384)])
def test_beyond_sixteen_nodes_of_a_replica_the_rest_is_counted(
    stages: int, more: int | None
) -> None:
    lines = draw(plan(laid(Cut(pp=stages), 1, 1))).splitlines()
    assert sum(line.startswith("node ") for line in lines) == min(stages, 16)
    assert [line for line in lines if "more" in line] == (
        [] if more is None else [f"… and {more} more nodes in the same way"]
    )


def rails(*gpus: tuple[int, ...], first: int = 0) -> tuple[Rail, ...]:
    return tuple(Rail(hca=f"mlx5_{first + n}:1", gpus=each) for n, each in enumerate(gpus))


def test_eight_gpus_with_their_rails_fit_a_hundred_columns() -> None:
    network = Network(
        type="infiniband", rate=400, ports=8, rails=rails(*((n,) for n in range(8)), first=8)
    )
    gpus = NodeGpus(count=8, link="nvlink4", domain=8)
    lines = draw(plan(laid(Cut(tp=8, pp=2), 4, 8), gpus=gpus, network=network)).splitlines()
    assert [line.split()[0] for line in lines] == [
        "GPU",
        "nvlink4",
        "rail",
        "4",
        "4",
        "between",
        "cells:",
    ]
    assert lines[2].split()[1:] == [f"mlx5_{n}" for n in range(8, 16)]
    assert lines[5] == "between nodes: infiniband, 8 port(s) a node, 400 Gbit/s each"
    assert max(map(len, lines)) <= 100


def test_pairs_have_a_bar_each_and_shared_rails_stand_under_both() -> None:
    network = Network(type="infiniband", rails=rails((0, 1), (2, 3), (3,)), ports=3)
    gpus = NodeGpus(count=4, domain=2)
    lines = draw(plan(laid(Cut(tp=2, pp=4), 1, 4), gpus=gpus, network=network)).splitlines()
    assert lines[1:4] == [
        "NVLink    [============]  [============]",
        "rail      mlx5_0  mlx5_0  mlx5_1  mlx5_1",
        "rail                              mlx5_2",
    ]


def test_on_a_part_of_a_node_nothing_is_drawn_of_which_gpu_is_which() -> None:
    network = Network(type="infiniband", rails=rails((0,), (1,), (2,), (3,)), ports=4)
    layout = lay_out(Cut(tp=2, pp=2), 1, NodeShape(slots=2, slots_all=4, has_gpus=True))
    pairs = draw(plan(layout, gpus=NodeGpus(count=4, domain=2), network=network))
    assert "NVLink" not in pairs
    assert "rail" not in pairs
    assert "between nodes: infiniband, 4 port(s) a node" in pairs
    joined = draw(plan(layout, gpus=NodeGpus(count=4, domain=4), network=network))
    assert "NVLink    [==========]" in joined


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
    head, *rows = draw(plan(layout)).splitlines()
    kind = "GPU " if gpus else "slot "
    starts = [i for i in range(len(head)) if head.startswith(kind, i)]
    labels = [head[start:].split("  ")[0].strip() for start in starts]
    assert labels == [f"{kind}{n}" for n in range(len(labels))]
    nodes: dict[int, list[str]] = {}
    for p in layout.placements:
        nodes.setdefault(p.node, []).append(f"{p.rank}:{p.pp_rank}.{p.tp_rank}")
    alike = list(dict.fromkeys(map(tuple, nodes.values())))
    for cells, row in zip(alike[:16], rows, strict=False):
        assert [row[start:].split()[0] for _, start in zip(cells, starts, strict=False)] == list(
            cells
        )
        assert len(cells) <= len(starts)


def test_the_summary_counts_what_is_asked_for() -> None:
    lines = dict(summary(plan(laid(Cut(tp=8, pp=2, ep=4), 3, 8))))
    assert lines["replica"] == "tp 8 x pp 2, ep 4 inside tp = 16 ranks"
    assert lines["replicas"] == "3, 1 in an allocation"
    assert lines["allocations"] == "3 of 2 node(s), 8 GPUs on each"
    assert lines["step"] == "leader: 16 task(s), started by srun (pmix)"


def test_a_replica_of_one_rank_is_not_spoken_of_in_the_plural() -> None:
    assert dict(summary(plan(laid(Cut(), 1, 1))))["replica"].endswith("= 1 rank")
