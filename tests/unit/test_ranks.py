"""Where ranks sit, as the logs say it."""

from __future__ import annotations

from pathlib import Path

from launcher.runner.identity import RankReport
from launcher.telemetry.ranks import read_ranks


def said(rank: int, *, host: str = "node01", replica: int = 0) -> str:
    report = RankReport(
        replica=replica,
        rank=rank,
        last_rank=rank,
        tp_rank=rank,
        pp_rank=0,
        host=host,
        gpus="0,1",
        cpus=4,
        cpu_list="0-3",
        unbound=None,
        network=("NCCL_DEBUG=INFO",),
    )
    return report.line() + "\n"


def test_ranks_are_found_among_what_srun_labels_and_engines_say(tmp_path: Path) -> None:
    log = f"1: {said(1)}0: noise {{}}\n0: {said(0)}"
    (tmp_path / "7.s0.log").write_text(log)
    found = read_ranks(tmp_path, ["7"])
    assert [(rank["job"], rank["rank"], rank["host"]) for rank in found] == [
        ("7", 0, "node01"),
        ("7", 1, "node01"),
    ]


def test_the_tasks_of_an_array_are_its_jobs_and_other_jobs_are_not(tmp_path: Path) -> None:
    for name in ("7_0.s0", "7_1.s1", "71.s0", "8_0.s0"):
        (tmp_path / f"{name}.log").write_text(said(0, replica=int(name[-1])))
    assert [rank["job"] for rank in read_ranks(tmp_path, ["7"])] == ["7_0", "7_1"]


def test_the_last_start_of_a_job_counts(tmp_path: Path) -> None:
    (tmp_path / "7.s0.log").write_text(said(0) + "requeued\n" + said(0, host="node02"))
    assert [rank["host"] for rank in read_ranks(tmp_path, ["7"])] == ["node02"]


def test_no_logs_are_no_ranks(tmp_path: Path) -> None:
    assert read_ranks(tmp_path / "missing", ["7"]) == []
