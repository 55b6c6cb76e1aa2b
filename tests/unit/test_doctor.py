"""The doctor's own job, what is made of the verdicts that jobs leave, and this machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from run_making import make_plan, make_run

from launcher.doctor import Row, examine, look_here, prepare_visit
from launcher.errors import HpcLlmError, Problem
from launcher.parsers.ibstat import Port
from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.types import Cut, Network, NodeGpus, Plan, Step
from launcher.preflight.exchange import Verdict
from launcher.preflight.facts import Facts, NodeFacts
from launcher.preflight.speeds import Link
from launcher.preflight.verdict import judge, judge_links
from launcher.resources import site_names
from launcher.rundir import RunDir
from launcher.sites import load_site

SHIPPED = [
    (name, partition)
    for name in site_names()
    if (spec := load_site(name, "").spec).scheduler.type == "slurm"
    for partition in spec.partitions
]


# --- its job


def visit_of(site: str, folder: Path, partition: str | None = None, **wanted: Any) -> Plan:
    options = {"nodes": 1, "account": "me", **wanted}
    prepared = prepare_visit(load_site(site, ""), folder, partition=partition, **options)
    return prepared.resolution.plan


def limits(problems: tuple[Problem, ...]) -> set[str]:
    return {problem.code for problem in problems if problem.severity == "error"}


@pytest.mark.parametrize(("site", "partition"), SHIPPED)
def test_every_gpu_of_two_whole_nodes_of_a_shipped_site_has_a_rank(
    tmp_path: Path, site: str, partition: str
) -> None:
    gpus = load_site(site, "").spec.partitions[partition].gpus
    try:
        plan = visit_of(site, tmp_path / "visit", partition, nodes=2)
    except HpcLlmError as exc:  # of debugging partitions, and of those of one node
        assert limits(exc.problems) == {"plan.job-too-large"}
        return
    assert plan.layout.cut.pp == plan.step.nodes == 2
    assert plan.layout.cut.tp == (gpus.per_node if gpus else 1)
    assert plan.layout.allocation.gpus_per_node == (gpus.per_node if gpus else 0)
    assert (plan.links, plan.restart, plan.layout.replicas) == (True, "none", 1)
    assert plan.gpus is None or plan.gpus.model


def test_a_node_of_one_slot_has_no_links_to_measure(tmp_path: Path) -> None:
    assert not visit_of("generic", tmp_path / "visit").links


def test_a_site_of_several_partitions_has_them_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(HpcLlmError) as caught:
        visit_of("clariden", tmp_path / "visit")
    [problem] = caught.value.problems
    assert problem.code == "plan.partition-missing"
    assert "normal, debug" in str(problem.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_partition_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HpcLlmError) as caught:
        visit_of("dgx-h100", tmp_path / "visit", "gpus")
    assert "plan.partition-unknown" in limits(caught.value.problems)
    assert "gpus" in caught.value.problems[0].message


def test_more_nodes_than_a_partition_gives_are_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(HpcLlmError) as caught:
        visit_of("delta", tmp_path / "visit", "gpuH200x8", nodes=2)
    assert limits(caught.value.problems) == {"plan.job-too-large"}
    assert "2 nodes" in caught.value.problems[0].message


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HpcLlmError) as caught:
        visit_of("generic", tmp_path / "file" / "visit")
    assert [problem.code for problem in caught.value.problems] == ["rundir.unwritable"]


# --- what jobs leave


def plan_of(tp: int = 2, nodes: int = 2) -> Plan:
    layout = lay_out(Cut(tp=tp, pp=nodes), 1, NodeShape(slots=tp, slots_all=tp, has_gpus=True))
    return make_plan(
        layout=layout,
        step=Step(kind="spmd", nodes=nodes, tasks_per_node=tp),
        network=Network(type="infiniband", rate=400, ports=tp),
        gpus=NodeGpus(count=tp, model="h100"),
    )


def told(plan: Plan, of_node: Mapping[int, Mapping[str, Any]]) -> list[Facts]:
    """Two nodes that are well, but for what ``of_node`` says."""
    port = Port("mlx5_0", 1, "Active", "LinkUp", 400.0, "InfiniBand")
    each = plan.step.tasks_per_node
    return [
        Facts(
            rank=rank,
            local_rank=rank % each,
            host=f"n{rank // each}",
            pmi={},
            visible="0,1",
            node=None
            if rank % each
            else NodeFacts(
                **{
                    "versions": {"python": "3.12.3"},
                    "shm_bytes": 1 << 34,
                    "gpus": tuple(f"GPU-{rank // each}-{n}" for n in range(each)),
                    "gpu_names": ("NVIDIA H100 80GB HBM3",) * each,
                    "ports": (port,),
                    **of_node.get(rank // each, {}),
                }
            ),
        )
        for rank in range(plan.step.tasks)
    ]


def run_of(
    folder: Path,
    *,
    nodes: Mapping[int, Mapping[str, Any]] | None = None,
    links: tuple[Link, ...] | None = None,
    plan: Plan | None = None,
) -> RunDir:
    """A run whose one job has left these verdicts."""
    plan = plan or plan_of()
    run = make_run(folder, plans={"0001": plan})
    (run.path / "jobs/7.0.json").write_text(json.dumps({"started": 1, "job": "7", "restart": 0}))
    if nodes is not None:
        ranks = told(plan, nodes)
        found = tuple(judge(plan, 0, ranks, None))
        left(
            run.preflight_path("7", 0, 0), found, {"ranks": [dataclasses.asdict(r) for r in ranks]}
        )
    if links is not None:
        hosts = [f"n{n}" for n in range(plan.step.nodes)]
        found = tuple(judge_links(plan, links, [], hosts))
        data = {"nodes": hosts, "links": [dataclasses.asdict(link) for link in links]}
        left(run.links_path("7", 0, 0), found, data)
    return run


def left(path: Path, findings: Any, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(Verdict(findings=findings, summary="", told=data).to_json()))


def verdicts(rows: tuple[Row, ...]) -> dict[tuple[str, str], str]:
    return {(row.node, row.part): row.verdict for row in rows}


def link(first: int, second: int, rate: float) -> Link:
    return Link(kind="exchange", ranks=(first, second), bytes_per_s=rate, latency_s=5e-6)


def test_nodes_gpus_ports_and_links_that_are_well_have_a_row_each(tmp_path: Path) -> None:
    run = run_of(tmp_path, nodes={}, links=(link(0, 2, 45e9), link(1, 3, 44e9)))
    report = examine(run)
    assert report.judged
    assert (report.problems, report.warnings) == ((), ())
    parts = ("node", "GPU 0", "GPU 1", "mlx5_0:1")
    assert verdicts(report.rows) == {
        **{(node, part): "ok" for node in ("n0", "n1") for part in parts},
        ("n0 n1", "link 0-2"): "ok",
        ("n0 n1", "link 1-3"): "ok",
    }
    by_part = {row.part: row.seen for row in report.rows}
    assert by_part["link 0-2"] == "exchange: 45 GB/s of 50, 5 µs"
    assert by_part["mlx5_0:1"] == "Active, LinkUp, InfiniBand, 400 Gbit/s"
    assert by_part["GPU 1"] == "NVIDIA H100 80GB HBM3 GPU-1-1"


def test_what_is_wrong_stands_in_the_row_that_it_is_about_with_a_remedy(tmp_path: Path) -> None:
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB")
    report = examine(run_of(tmp_path, nodes={1: {"gpu_names": names}}))
    wrong = {where: v for where, v in verdicts(report.rows).items() if v != "ok"}
    assert wrong == {("n1", "GPU 1"): "preflight.gpu-model"}
    [row] = [row for row in report.rows if row.verdict != "ok"]
    assert "A100" in row.seen
    assert row.remedy is not None
    assert [p.code for p in report.problems] == ["preflight.gpu-model"]


def test_two_things_that_are_wrong_with_a_node_have_a_row_each(tmp_path: Path) -> None:
    ill = {"shm_bytes": 1 << 20, "versions": {"python": "3.9"}}
    report = examine(run_of(tmp_path, nodes={1: ill}))
    of_node = [row.verdict for row in report.rows if (row.node, row.part) == ("n1", "node")]
    assert of_node == ["preflight.shared-memory", "preflight.versions"]


def test_links_that_are_slow_without_one_to_compare_are_told_though_jobs_go_on(
    tmp_path: Path,
) -> None:
    run = run_of(tmp_path, nodes={}, links=(link(0, 2, 5e9), link(1, 3, 5e9)))
    report = examine(run)
    assert [(p.code, p.severity) for p in report.problems] == [
        ("preflight.slow-link", "warning")
    ] * 2
    assert verdicts(report.rows)["n0 n1", "link 0-2"] == "preflight.slow-link"


def test_a_link_of_which_the_site_says_nothing_is_measured_and_not_judged(tmp_path: Path) -> None:
    plan = dataclasses.replace(plan_of(), network=None)
    report = examine(run_of(tmp_path, nodes={}, links=(link(0, 2, 5e6),), plan=plan))
    [row] = [row for row in report.rows if row.part == "link 0-2"]
    assert (row.verdict, report.problems) == ("unknown", ())
    assert "the site declares nothing" in row.seen


def test_a_run_without_a_verdict_is_not_judged(tmp_path: Path) -> None:
    report = examine(run_of(tmp_path))
    assert (report.judged, report.rows) == (False, ())


def test_a_run_of_which_no_job_has_started_is_not_judged(tmp_path: Path) -> None:
    assert not examine(make_run(tmp_path)).judged


# --- this machine


def programs(folder: Path, script: str) -> dict[str, str]:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_this_machine_without_gpus_is_well(tmp_path: Path) -> None:
    report = look_here(tmp_path, {"PATH": "/nonexistent"})
    assert report.problems == ()
    found = {row.part: row.verdict for row in report.rows}
    assert (found["python"], found["GPUs"], found["hard links"]) == ("ok", "unknown", "ok")
    assert {"file system", "clock", "shared memory", "locked memory"} <= set(found)
    assert list(tmp_path.iterdir()) == []


def test_gpus_of_this_machine_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = programs(tmp_path, 'echo "GPU 0: NVIDIA RTX A6000 (UUID: GPU-1)"')
    monkeypatch.setenv("PATH", listing["PATH"])
    report = look_here(tmp_path, listing)
    assert [row.seen for row in report.rows if row.part == "GPU 0"] == ["NVIDIA RTX A6000 GPU-1"]


def test_a_driver_of_this_machine_that_fails_is_a_problem_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = programs(tmp_path, "echo Unable to determine the device handle; exit 255")
    monkeypatch.setenv("PATH", failing["PATH"])
    [problem] = look_here(tmp_path, failing).problems
    assert problem.code == "preflight.gpus"
    assert problem.message == "nvidia-smi failed: Unable to determine the device handle"


def test_a_directory_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    [problem] = look_here(tmp_path / "none", {"PATH": "/nonexistent"}).problems
    assert problem.code == "rundir.unwritable"
    assert "No such file" in problem.message
