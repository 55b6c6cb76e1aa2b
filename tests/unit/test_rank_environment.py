"""What a rank's child gets of the node."""

from __future__ import annotations

import json
import os

import pytest
from run_making import make_plan

from launcher.errors import RunError
from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.types import Cut, NodeGpus, Step
from launcher.runner.identity import CPUS_GIVEN, RankIds
from launcher.runner.rank import _environment

FIRST = RankIds(0, 1, 0)
ONE_OF_TWO = lay_out(Cut(), 1, NodeShape(slots=2, slots_all=2, has_gpus=True))


def test_a_machine_without_a_scheduler_is_the_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    plan = make_plan(scheduler="local", layout=ONE_OF_TWO)
    assert _environment(plan, 0, FIRST)["CUDA_VISIBLE_DEVICES"] == "0"


def test_part_of_a_slurm_node_is_not_taken_by_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    plan = make_plan(scheduler="slurm", layout=ONE_OF_TWO)
    with pytest.raises(RunError) as caught:
        _environment(plan, 0, FIRST)
    assert [p.code for p in caught.value.problems] == ["gpu.visibility-unknown"]


def test_the_rank_says_where_it_sits(capsys: pytest.CaptureFixture[str]) -> None:
    _environment(make_plan(scheduler="local"), 0, FIRST)
    assert capsys.readouterr().out.startswith('hpc-llm rank {"replica": 0, "rank": 0, ')


def test_a_task_of_several_ranks_says_which_and_sees_the_gpus_of_its_node(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    layout = lay_out(Cut(tp=2, pp=3), 1, NodeShape(slots=2, slots_all=8, has_gpus=True))
    step = Step(kind="per-node", nodes=3, tasks_per_node=1)
    plan = make_plan(scheduler="slurm", layout=layout, step=step)
    last = RankIds(2, 3, 0)
    assert _environment(plan, 0, last)["CUDA_VISIBLE_DEVICES"] == "4,5"
    report = json.loads(capsys.readouterr().out.removeprefix("hpc-llm rank "))
    assert (report["rank"], report["last_rank"], report["pp_rank"]) == (4, 5, 2)


def test_a_bound_rank_keeps_its_binding_and_knows_what_it_was_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("TLLM_NUMA_AWARE_WORKER_AFFINITY", raising=False)
    before = os.sched_getaffinity(0)
    near = str(min(before))
    plan = make_plan(layout=ONE_OF_TWO, gpus=NodeGpus(count=2, cpus=(near, "5000")))
    try:
        environ = _environment(plan, 0, FIRST)
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)
    assert environ["TLLM_NUMA_AWARE_WORKER_AFFINITY"] == "0"
    assert environ[CPUS_GIVEN] == str(len(before))
    report = json.loads(capsys.readouterr().out.removeprefix("hpc-llm rank "))
    assert (report["cpu_list"], report["cpus"], report["unbound"]) == (near, 1, None)


def test_an_engine_that_is_told_to_bind_itself_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TLLM_NUMA_AWARE_WORKER_AFFINITY", "1")
    every = f"0-{max(os.sched_getaffinity(0))}"
    plan = make_plan(layout=ONE_OF_TWO, gpus=NodeGpus(count=2, cpus=(every, every)))
    assert _environment(plan, 0, FIRST)["TLLM_NUMA_AWARE_WORKER_AFFINITY"] == "1"


def test_a_rank_that_is_not_bound_says_why_and_is_left_to_its_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("TLLM_NUMA_AWARE_WORKER_AFFINITY", raising=False)
    plan = make_plan(layout=ONE_OF_TWO, gpus=NodeGpus(count=2, cpus=("5000", "5001")))
    assert "TLLM_NUMA_AWARE_WORKER_AFFINITY" not in _environment(plan, 0, FIRST)
    report = json.loads(capsys.readouterr().out.removeprefix("hpc-llm rank "))
    assert report["unbound"] == "none of the near ones is the job's"
