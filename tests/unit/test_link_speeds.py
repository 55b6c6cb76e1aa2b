"""Which links are measured, what the site's figures come to, and who is at fault of a slow one."""

from __future__ import annotations

import dataclasses
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_making import make_plan

from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.types import Cut, Network, NodeGpus, Plan, Rail, Step
from launcher.preflight import probe as probe_module
from launcher.preflight.probe import probe
from launcher.preflight.speeds import Fault, Kind, Link, Told, expected, merge, schedule, slow
from launcher.preflight.verdict import judge_links

GBIT = 1e9 / 8
HOSTS = [f"h{n}" for n in range(8)]


def plan_of(
    tp: int = 1, pp: int = 2, slots: int | None = None, *, gpus: bool = True, **changes: Any
) -> Plan:
    """Nodes of ``slots`` ranks, ``tp`` unless told, with 400 Gbit/s by one port for each GPU."""
    slots = slots or tp
    shape = NodeShape(slots=slots, slots_all=slots, has_gpus=gpus)
    layout = lay_out(Cut(tp=tp, pp=pp), 1, shape)
    nodes = layout.allocation.nodes
    step = Step(kind="spmd", nodes=nodes, tasks_per_node=tp * pp // nodes)
    wanted: dict[str, Any] = {
        "network": Network(type="infiniband", rate=400, ports=slots),
        "gpus": NodeGpus(count=slots, link="nvlink4", links=18, domain=slots) if gpus else None,
    }
    return make_plan(layout=layout, step=step, **wanted | changes)


def pair(first: int, second: int, rate: float) -> Link:
    return Link(kind="exchange", ranks=(first, second), bytes_per_s=rate)


def test_groups_are_measured_whole_and_stages_by_neighbours_in_turn() -> None:
    found = [(m.kind, m.ranks) for m in schedule(plan_of(tp=2, pp=3))]
    assert found == [
        ("all-reduce", (0, 1)),
        ("all-reduce", (2, 3)),
        ("all-reduce", (4, 5)),
        ("exchange", (0, 2)),
        ("exchange", (1, 3)),
        ("exchange", (2, 4)),
        ("exchange", (3, 5)),
        ("exchange", (0, 4)),
        ("exchange", (1, 5)),
    ]


def test_a_group_over_nodes_is_measured_by_pairs_of_places_as_well() -> None:
    found = [m.ranks for m in schedule(plan_of(tp=4, pp=1, slots=2)) if m.kind == "exchange"]
    assert found == [(0, 2), (1, 3)]


@given(tp=st.integers(1, 8), pp=st.integers(1, 6), slots=st.integers(1, 8))
def test_every_rank_is_measured_and_none_waits_for_one_that_waits_for_it(
    tp: int, pp: int, slots: int
) -> None:
    plan = plan_of(tp, pp, slots)
    queue = [m.ranks for m in schedule(plan)]
    assert {rank for ranks in queue for rank in ranks} == set(range(tp * pp) if tp * pp > 1 else [])
    # Two ranks that share two measurements come to them in one order: so there is no circle.
    assert len(queue) == len(set(zip(queue, [m.kind for m in schedule(plan)], strict=True)))
    assert all(m.size % 4 == 0 and m.size >= 1 << 20 for m in schedule(plan))


@pytest.mark.parametrize(
    ("kind", "ranks", "changes", "rate"),
    [
        ("exchange", (0, 4), {}, 400 * GBIT),
        ("exchange", (0, 4), {"network": Network(type="infiniband", rate=400, ports=2)}, 25e9),
        ("exchange", (0, 4), {"network": Network(type="infiniband", rate=400)}, 12.5e9),
        # Two of four share one of three ports.
        ("exchange", (0, 4), {"network": Network(type="infiniband", rate=400, ports=3)}, 25e9),
        ("exchange", (0, 4), {"network": Network(type="infiniband")}, None),
        ("exchange", (0, 4), {"network": None}, None),
        ("all-reduce", (0, 1, 2, 3), {}, 18 * 25e9),
        ("all-reduce", (0, 1, 2, 3), {"gpus": NodeGpus(count=4, link="pcie", links=1)}, None),
        ("all-reduce", (0, 1, 2, 3), {"gpus": NodeGpus(count=4, link="nvlink4")}, None),
    ],
)
def test_what_a_link_should_have_is_what_the_site_declares(
    kind: Kind, ranks: tuple[int, ...], changes: dict[str, Any], rate: float | None
) -> None:
    plan = dataclasses.replace(plan_of(tp=4), **changes)
    assert expected(plan, kind, ranks) == rate


def test_nvlink_of_pairs_says_nothing_of_a_group_of_four() -> None:
    bridged = NodeGpus(count=4, link="nvlink3", links=4, domain=2)
    plan = dataclasses.replace(plan_of(tp=4), gpus=bridged)
    assert expected(plan, "all-reduce", (0, 1, 2, 3)) is None
    assert expected(plan, "exchange", (0, 1)) == 4 * 25e9
    assert expected(plan, "exchange", (1, 2)) is None


def test_a_port_that_several_ranks_share_is_shared_in_what_each_should_have() -> None:
    plan = plan_of(tp=4, pp=1, slots=2, network=Network(type="ethernet", rate=100, ports=1))
    assert expected(plan, "exchange", (0, 2)) == 50 * GBIT
    assert expected(plan, "all-reduce", (0, 1, 2, 3)) == 100 * GBIT


def test_cpus_are_not_asked_for_more_than_gloo_can_do() -> None:
    plan = plan_of(gpus=False, network=Network(type="ethernet", rate=100))
    assert expected(plan, "exchange", (0, 1)) == 1e9


@given(rate=st.floats(1e6, 1e12))
def test_less_than_half_of_what_is_declared_is_slow(rate: float) -> None:
    found = slow(plan_of(), [pair(0, 1, rate)])
    assert bool(found) == (rate < 25e9)


@given(nodes=st.integers(3, 8), bad=st.integers(0, 7))
def test_of_a_chain_of_nodes_the_one_whose_links_are_slow_is_at_fault(nodes: int, bad: int) -> None:
    bad %= nodes
    plan = plan_of(tp=1, pp=nodes)
    links = [
        pair(*m.ranks, 1e9 if bad in m.ranks else 45e9)  # type: ignore[call-arg]  # two ranks
        for m in schedule(plan)
    ]
    found = list(judge_links(plan, links, [], HOSTS[:nodes]))
    assert {finding.hosts for finding in found} == {(HOSTS[bad],)}
    assert all(f.mendable and f.problem.severity == "error" for f in found)
    assert len(found) == 2


def test_of_two_nodes_nobody_can_say_whether_others_would_be_faster() -> None:
    [found] = judge_links(plan_of(), [pair(0, 1, 3.4e9)], [], HOSTS[:2])
    assert (found.problem.code, found.problem.severity) == ("preflight.slow-link", "warning")
    assert found.problem.message == (
        "exchange of rank 0 on h0 and rank 1 on h1 has 3.4 GB/s, and the site declares 50 GB/s"
    )
    assert (found.hosts, found.mendable, found.part) == (("h0", "h1"), True, "link 0-1")


@given(share=st.floats(0.01, 0.16), spread=st.lists(st.floats(1.0, 2.9), min_size=4, max_size=4))
def test_where_links_are_alike_and_slow_the_job_goes_on_and_is_told(
    share: float, spread: list[float]
) -> None:
    """As without GPUDirect, with a setting of NCCL's, or where the site's figure is wrong."""
    plan = plan_of(tp=1, pp=4)
    rates = [share * 50e9 * more for more in spread]
    links = [
        pair(a, b, r) for (a, b), r in zip([(0, 1), (1, 2), (2, 3), (0, 3)], rates, strict=True)
    ]
    found = list(judge_links(plan, links, [], HOSTS[:4]))
    assert len(found) == 4
    assert {f.problem.severity for f in found} == {"warning"}
    assert "NCCL_DEBUG" in str(found[0].problem.hint)


def test_rails_that_gpus_share_are_no_fault_of_nodes() -> None:
    """Of two nodes, one place is fast and the other slow: nothing says that nodes differ."""
    plan = plan_of(tp=2, pp=2)
    found = list(judge_links(plan, [pair(0, 2, 45e9), pair(1, 3, 10e9)], [], HOSTS[:2]))
    assert [(f.part, f.problem.severity) for f in found] == [("link 1-3", "warning")]


def test_a_node_whose_nvlink_is_slow_is_named_by_the_other_one() -> None:
    plan = plan_of(tp=4, pp=2)
    groups = [(tuple(range(4)), 20e9), (tuple(range(4, 8)), 380e9)]
    links = [Link(kind="all-reduce", ranks=r, bytes_per_s=rate) for r, rate in groups]
    [found] = judge_links(plan, links, [], HOSTS[:2])
    assert (found.hosts, found.part, found.problem.severity) == (("h0",), "link 0-3", "error")


def test_links_between_nodes_are_not_judged_where_the_job_allows_sockets() -> None:
    network = Network(type="infiniband", rate=400, ports=1, sockets=True)
    assert list(judge_links(plan_of(network=network), [pair(0, 1, 1e8)], [], HOSTS[:2])) == []


def test_a_slow_port_of_a_node_is_told_from_its_other_ports() -> None:
    plan = plan_of(tp=2, pp=3)
    links = [pair(r, r + 2, 1e9 if r in (1, 3) else 45e9) for r in range(4)]
    links += [pair(0, 4, 45e9), pair(1, 5, 45e9)]
    found = list(judge_links(plan, links, [], HOSTS[:3]))
    assert [f.part for f in found] == ["link 1-3", "link 3-5"]
    assert {f.problem.severity for f in found} == {"error"}
    assert {f.hosts for f in found} == {("h1",)}


def test_a_group_over_nodes_is_not_named_where_a_pair_of_it_is() -> None:
    plan = plan_of(tp=4, pp=1, slots=2)
    whole = Link(kind="all-reduce", ranks=(0, 1, 2, 3), bytes_per_s=1e9)
    assert [f.part for f in judge_links(plan, [whole, pair(0, 2, 1e9)], [], HOSTS)] == ["link 0-2"]
    [alone] = judge_links(plan, [whole, pair(0, 2, 45e9)], [], HOSTS[:2])
    assert alone.problem.message.startswith("all-reduce of ranks 0-1 on h0 and ranks 2-3 on h1 has")


def test_a_link_that_was_not_done_in_time_has_less_than_that() -> None:
    late = Link(kind="exchange", ranks=(0, 1), bytes_per_s=2e6, finished=False)
    [found] = judge_links(plan_of(), [late], [], HOSTS[:2])
    assert "has less than 0.002 GB/s, and the site" in found.problem.message


def test_what_no_figure_stands_for_is_not_judged() -> None:
    plan = plan_of(network=Network(type="infiniband", rails=(Rail(hca="mlx5_0", gpus=(0,)),)))
    assert list(judge_links(plan, [pair(0, 1, 1.0)], [], HOSTS)) == []


def test_a_gpu_that_torch_cannot_use_is_its_nodes_fault_and_missing_torch_is_not() -> None:
    faults = [
        Fault(rank=1, host="h1", error="CUDA error: uncorrectable ECC error", gpu=True),
        Fault(rank=0, host="h0", error="No module named 'torch'"),
    ]
    [found] = judge_links(plan_of(), [], faults, HOSTS[:2])
    assert (found.problem.code, found.hosts, found.mendable) == ("preflight.gpus", ("h1",), True)
    assert "uncorrectable ECC" in found.problem.message


def test_gpus_that_torch_can_use_on_no_node_are_not_the_nodes_fault() -> None:
    error = "The NVIDIA driver on your system is too old (found version 12020)"
    faults = [Fault(rank=n, host=f"h{n}", error=error, gpu=True) for n in (0, 1)]
    found = list(judge_links(plan_of(), [], faults, HOSTS[:2]))
    assert [(f.problem.severity, f.mendable) for f in found] == [("error", False)] * 2


def test_of_a_link_that_both_ends_saw_the_slower_word_counts() -> None:
    assert merge([pair(0, 1, 3.0), pair(2, 3, 1.0), pair(0, 1, 2.0)]) == [
        pair(0, 1, 2.0),
        pair(2, 3, 1.0),
    ]


# --- the processes


def measured(plan: Plan, folder: Path, environ: dict[str, str]) -> list[Told]:
    """What the tasks of ``plan`` tell, side by side on this machine."""
    with ThreadPoolExecutor(plan.step.tasks) as threads:
        tasks = [
            threads.submit(
                probe, plan, plan.task(0, n), environ, folder / "x.links-at", folder / "STOP"
            )
            for n in range(plan.step.tasks)
        ]
        return [task.result() for task in tasks]


@pytest.mark.local
def test_links_are_measured_by_gloo_on_cpus(tmp_path: Path) -> None:
    plan = plan_of(tp=2, pp=1, gpus=False)
    told = measured(plan, tmp_path, dict(os.environ))
    assert [one.faults for one in told] == [(), ()]
    [link] = merge([link for one in told for link in one.links])
    assert (link.kind, link.ranks, link.finished) == ("all-reduce", (0, 1), True)
    assert link.latency_s is not None
    assert 0 < link.latency_s < 1
    assert link.bytes_per_s > 1e6


def test_a_rank_that_cannot_measure_says_why_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    """A torch that fails at once, on one of two nodes; the other's would wait for it."""
    broken = tmp_path / "torch"
    broken.mkdir()
    (broken / "__init__.py").write_text(
        "import os, time\n"
        "if os.environ.get('BROKEN'): raise ImportError('libcudart.so.12 is not there')\n"
        "time.sleep(600)\n"
    )
    plan = plan_of(gpus=False)
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with ThreadPoolExecutor(2) as threads:
        meeting = (tmp_path / "x.links-at", tmp_path / "STOP")
        waits = threads.submit(probe, plan, plan.task(0, 0), path, *meeting)
        fails = threads.submit(probe, plan, plan.task(0, 1), path | {"BROKEN": "1"}, *meeting)
        [fault] = fails.result().faults
        assert (fault.rank, fault.error, fault.gpu) == (1, "libcudart.so.12 is not there", False)
        assert waits.result() == Told()


def test_ranks_that_never_meet_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "JOIN_S", 0.5)
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)\n")
    plan = plan_of(gpus=False)
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    [fault] = probe(plan, plan.task(0, 0), path, tmp_path / "x.links-at", tmp_path / "STOP").faults
    assert fault.error == "it did not meet the others"
