"""Placements against properties, against TensorRT-LLM's formulas, and against worked layouts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.types import Cut, Layout


def node(
    slots: int, *, of: int | None = None, gpus: bool = True, cpus: int | None = None
) -> NodeShape:
    return NodeShape(slots=slots, slots_all=of or slots, has_gpus=gpus, cpus=cpus)


@st.composite
def layouts(draw: st.DrawFn, *, tp_fits: bool | None = None) -> tuple[Layout, NodeShape]:
    slots = draw(st.integers(1, 8))
    shape = NodeShape(
        slots=slots,
        slots_all=slots + draw(st.integers(0, 3)),
        has_gpus=draw(st.booleans()),
        cpus=draw(st.none() | st.integers(1, 256)),
    )
    cut = Cut(tp=draw(st.integers(1, 12)), pp=draw(st.integers(1, 9)))
    if tp_fits is not None:
        assume((cut.tp <= slots) == tp_fits)
    return lay_out(cut, draw(st.integers(1, 20)), shape), shape


SOCKETS = NodeShape(slots=8, slots_all=8, has_gpus=True, socket=4, unit="node")


def gpus_of(layout: Layout) -> list[list[int | None]]:
    return [[p.gpu for p in layout.replica(r)] for r in range(layout.replicas)]


def test_packed_replicas_do_not_lie_across_two_sockets() -> None:
    assert gpus_of(lay_out(Cut(tp=3), 3, SOCKETS)) == [[0, 1, 2], [4, 5, 6], [0, 1, 2]]
    assert gpus_of(lay_out(Cut(tp=2), 4, SOCKETS)) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_replica_larger_than_a_socket_starts_at_the_first_gpu() -> None:
    assert gpus_of(lay_out(Cut(tp=2, pp=3), 1, SOCKETS)) == [[0, 1, 2, 3, 4, 5]]


def test_sockets_cost_no_room_and_are_unknown_on_part_of_a_node() -> None:
    uneven = NodeShape(slots=6, slots_all=8, has_gpus=True, socket=4, unit="node")
    assert gpus_of(lay_out(Cut(tp=3), 2, uneven)) == [[0, 1, 2], [3, 4, 5]]
    part = NodeShape(slots=8, slots_all=8, has_gpus=True, socket=4)
    assert gpus_of(lay_out(Cut(tp=3), 2, part)) == [[0, 1, 2], [3, 4, 5]]


@given(
    ranks=st.integers(1, 8),
    replicas=st.integers(1, 20),
    slots=st.integers(1, 8),
    socket=st.none() | st.integers(1, 8),
)
def test_no_two_replicas_of_an_allocation_share_a_gpu(
    ranks: int, replicas: int, slots: int, socket: int | None
) -> None:
    assume(ranks <= slots)
    shape = NodeShape(slots=slots, slots_all=8, has_gpus=True, socket=socket, unit="node")
    layout = lay_out(Cut(tp=ranks), replicas, shape)
    used = [(p.node, p.gpu) for p in layout.placements]
    assert len(set(used)) == len(used)
    assert all(gpu is not None and gpu < slots for _, gpu in used)


@given(tp=st.integers(1, 24), pp=st.integers(1, 6), slots=st.integers(1, 8))
def test_no_node_holds_a_part_of_one_stage_and_a_part_of_another(
    tp: int, pp: int, slots: int
) -> None:
    layout = lay_out(Cut(tp=tp, pp=pp), 1, node(slots))
    stages = {n: {p.pp_rank for p in layout.placements if p.node == n} for n in range(tp * pp)}
    if tp > slots:
        assert max(map(len, stages.values())) == 1
        assert layout.allocation.nodes % pp == 0


@given(layouts())
def test_there_is_one_placement_for_each_rank_of_each_replica_in_order(
    made: tuple[Layout, NodeShape],
) -> None:
    layout, _ = made
    found = [(p.replica, p.rank) for p in layout.placements]
    ranks = range(layout.cut.ranks)
    assert found == [(replica, rank) for replica in range(layout.replicas) for rank in ranks]
    assert layout.replica(layout.replicas - 1)[-1] == layout.placements[-1]


@given(layouts())
def test_ranks_are_ordered_as_in_tensorrt_llm(made: tuple[Layout, NodeShape]) -> None:
    # tensorrt_llm/mapping.py, class Mapping, with cp_size 1: tp_rank = rank % tp_size,
    # pp_rank = rank // tp_size, node_rank = rank // gpus_per_node and
    # local_rank = rank % gpus_per_node, the last two on the ranks of one world.
    layout, _ = made
    cut, a = layout.cut, layout.allocation
    gpus_per_node = cut.ranks // a.nodes
    for p in layout.placements:
        assert p.rank == p.pp_rank * cut.tp + p.tp_rank
        assert (p.tp_rank, p.pp_rank) == (p.rank % cut.tp, p.rank // cut.tp)
        assert p.local_rank == p.rank % gpus_per_node
        first_node = layout.replica(p.replica)[0].node
        assert p.node - first_node == p.rank // gpus_per_node


@given(layouts())
def test_no_gpu_is_given_twice_and_none_that_was_not_asked_for(
    made: tuple[Layout, NodeShape],
) -> None:
    layout, shape = made
    a = layout.allocation
    if not shape.has_gpus:
        assert a.gpus_per_node == 0
        assert {p.gpu for p in layout.placements} == {None}
        return
    places = [(p.node, p.gpu) for p in layout.placements]
    assert len(set(places)) == len(places)
    assert a.gpus_per_node <= shape.slots
    assert all(p.gpu is not None and 0 <= p.gpu < a.gpus_per_node for p in layout.placements)


@given(layouts())
def test_no_node_takes_more_ranks_than_it_has_slots(made: tuple[Layout, NodeShape]) -> None:
    layout, shape = made
    assert max(Counter(p.node for p in layout.placements).values()) <= shape.slots


@given(layouts(tp_fits=True))
def test_a_tensor_parallel_group_that_fits_a_node_never_leaves_it(
    made: tuple[Layout, NodeShape],
) -> None:
    layout, _ = made
    for stage in {(p.replica, p.pp_rank) for p in layout.placements}:
        nodes = {p.node for p in layout.placements if (p.replica, p.pp_rank) == stage}
        assert len(nodes) == 1


@given(layouts())
def test_every_node_of_a_replica_has_as_many_ranks_as_the_next(
    made: tuple[Layout, NodeShape],
) -> None:
    layout, _ = made
    for replica in range(layout.replicas):
        counts = Counter(p.node for p in layout.replica(replica))
        assert len(set(counts.values())) == 1
        assert len(counts) == layout.allocation.nodes


@given(layouts())
def test_nodes_are_filled_block_by_block_without_a_gap(made: tuple[Layout, NodeShape]) -> None:
    layout, _ = made
    nodes = [p.node for p in layout.placements]
    assert nodes == sorted(nodes)
    assert set(nodes) == set(range(layout.allocation.count * layout.allocation.nodes))


@given(layouts())
def test_replicas_that_share_an_allocation_do_not_straddle_nodes(
    made: tuple[Layout, NodeShape],
) -> None:
    layout, _ = made
    a = layout.allocation
    if a.replicas > 1:
        assert a.nodes == 1
    for p in layout.placements:
        assert p.node // a.nodes == p.replica // a.replicas


@given(layouts())
def test_every_gpu_asked_for_is_used_but_in_the_last_allocation(
    made: tuple[Layout, NodeShape],
) -> None:
    layout, shape = made
    a = layout.allocation
    used = Counter(p.node for p in layout.placements)
    full = a.replicas * layout.cut.ranks // a.nodes
    last = {*range((a.count - 1) * a.nodes, a.count * a.nodes)}
    assert all(used[n] == full for n in used if n not in last)
    assert 0 < layout.replicas - (a.count - 1) * a.replicas <= a.replicas
    if shape.has_gpus:
        assert a.gpus_per_node == full


@given(layouts())
def test_no_allocation_could_be_spared(made: tuple[Layout, NodeShape]) -> None:
    layout, shape = made
    capacity = max(1, shape.slots // layout.cut.ranks)
    assert layout.allocation.count == -(-layout.replicas // capacity)


@given(layouts())
def test_a_node_is_whole_only_when_every_slot_of_it_is_used(
    made: tuple[Layout, NodeShape],
) -> None:
    layout, shape = made
    a = layout.allocation
    assert a.whole_node == (a.replicas * layout.cut.ranks == a.nodes * shape.slots_all)


@given(layouts())
def test_ranks_together_never_ask_for_more_cpus_than_a_node_has(
    made: tuple[Layout, NodeShape],
) -> None:
    layout, shape = made
    cpus = layout.allocation.cpus_per_rank
    if shape.cpus is None:
        assert cpus is None
    elif shape.cpus >= shape.slots_all:
        assert cpus is not None
        assert cpus * max(Counter(p.node for p in layout.placements).values()) <= shape.cpus


# node -> (pp_rank, [tp_rank ...]) runs, in rank order: "Block placement" of the MPI world.
WORKED: list[tuple[str, Cut, int, dict[int, list[tuple[int, list[int]]]]]] = [
    ("2x4 tp4 pp2", Cut(tp=4, pp=2), 4, {0: [(0, [0, 1, 2, 3])], 1: [(1, [0, 1, 2, 3])]}),
    (
        "2x8 tp8 pp2",
        Cut(tp=8, pp=2),
        8,
        {0: [(0, [0, 1, 2, 3, 4, 5, 6, 7])], 1: [(1, [0, 1, 2, 3, 4, 5, 6, 7])]},
    ),
    (
        "4x4 tp4 pp4",
        Cut(tp=4, pp=4),
        4,
        {stage: [(stage, [0, 1, 2, 3])] for stage in range(4)},
    ),
    (
        "2x8 tp4 pp4",
        Cut(tp=4, pp=4),
        8,
        {
            0: [(0, [0, 1, 2, 3]), (1, [0, 1, 2, 3])],
            1: [(2, [0, 1, 2, 3]), (3, [0, 1, 2, 3])],
        },
    ),
    ("2x4 tp8 pp1", Cut(tp=8), 4, {0: [(0, [0, 1, 2, 3])], 1: [(0, [4, 5, 6, 7])]}),
    ("3x4 tp4 pp3", Cut(tp=4, pp=3), 4, {stage: [(stage, [0, 1, 2, 3])] for stage in range(3)}),
    ("3x8 tp4 pp3", Cut(tp=4, pp=3), 8, {stage: [(stage, [0, 1, 2, 3])] for stage in range(3)}),
    (
        "2x8 tp3 pp4",
        Cut(tp=3, pp=4),
        8,
        {0: [(0, [0, 1, 2]), (1, [0, 1, 2])], 1: [(2, [0, 1, 2]), (3, [0, 1, 2])]},
    ),
    ("2x4 tp6 over the fabric", Cut(tp=6), 4, {0: [(0, [0, 1, 2])], 1: [(0, [3, 4, 5])]}),
]


@pytest.mark.parametrize(("cut", "slots", "expected"), [w[1:] for w in WORKED])
def test_a_replica_lies_as_in_the_worked_layout(
    cut: Cut, slots: int, expected: dict[int, list[tuple[int, list[int]]]]
) -> None:
    layout = lay_out(cut, 1, node(slots))
    found: dict[int, list[tuple[int, list[int]]]] = {}
    for p in layout.placements:
        stages = found.setdefault(p.node, [])
        if not stages or stages[-1][0] != p.pp_rank:
            stages.append((p.pp_rank, []))
        stages[-1][1].append(p.tp_rank)
    assert found == expected


def test_pipeline_neighbours_have_the_same_local_rank_where_a_stage_is_a_node() -> None:
    layout = lay_out(Cut(tp=8, pp=2), 1, node(8))
    hops = [(layout.placements[r], layout.placements[r + 8]) for r in range(8)]
    assert all(a.local_rank == b.local_rank and a.gpu == b.gpu for a, b in hops)


def test_replicas_that_fit_a_node_share_it() -> None:
    layout = lay_out(Cut(tp=2), 4, node(8, cpus=96))
    a = layout.allocation
    assert (a.count, a.nodes, a.replicas, a.gpus_per_node) == (1, 1, 4, 8)
    assert a.whole_node
    assert a.cpus_per_rank == 12
    assert [p.gpu for p in layout.placements] == [0, 1, 2, 3, 4, 5, 6, 7]


def test_replicas_are_spread_evenly_over_their_allocations() -> None:
    layout = lay_out(Cut(), 9, node(8))
    a = layout.allocation
    assert (a.count, a.replicas, a.gpus_per_node) == (2, 5, 5)
    assert Counter(p.node for p in layout.placements) == {0: 5, 1: 4}
    assert not a.whole_node


def test_a_limited_node_is_not_whole_though_all_that_was_asked_for_is_used() -> None:
    a = lay_out(Cut(tp=4), 1, node(4, of=8, cpus=96)).allocation
    assert (a.gpus_per_node, a.whole_node, a.cpus_per_rank) == (4, False, 12)
