"""A run whose answers took longer than its jobs had to leave is warned earlier when resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from cli_driving import Cli, write_job
from fake_slurm import FakeSlurm

from launcher.rundir import RunDir
from launcher.telemetry.metrics import WorkerLog

SITE = Path(__file__).parents[1] / "cluster" / "site.yaml"


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    (tmp_path / "slurm").mkdir()
    return FakeSlurm(tmp_path / "slurm")


@pytest.fixture
def cli(tmp_path: Path, slurm: FakeSlurm) -> Cli:
    (tmp_path / "home").mkdir()
    return Cli(tmp_path / "home", {**slurm.environ, "HPC_LLM_SITE": str(SITE)})


@pytest.mark.parametrize(
    ("took_s", "warned_s"),
    [
        ([240.0], [300]),
        ([7.0, 400.2, 30.0], [300, 461]),  # of the slowest worker
        ([9000.0], [300, 1800]),  # half of the job at most
    ],
)
def test_a_resumed_job_is_warned_as_early_as_its_answers_need(
    cli: Cli, slurm: FakeSlurm, took_s: Sequence[float], warned_s: list[int]
) -> None:
    job = write_job(
        cli.home,
        rows=[{"text": "a"}],
        resources={"partition": "gpu", "time": "1h", "gpus_per_node": 1},
    )
    assert cli.ask("submit", job).data["how"] == "submitted"
    run = RunDir(cli.home / "run")
    for number, seconds in enumerate(took_s):
        WorkerLog(run.path / "metrics", f"1000.0.s{number}.aa").close(answer_p95_s=seconds)
    for _ in range(2):  # and not again once it is so
        assert cli.ask("cancel", run.path).code == 0
        assert cli.ask("resume", run.path).data["how"] == "submitted"
        numbers = sorted(path.stem for path in (run.path / "plans").glob("*.json"))
        assert [run.plan(number).warn_before_s for number in numbers] == warned_s
        assert run.newest_plan().warn_before_s == warned_s[-1]
        script = (run.path / "script.sh").read_text()
        assert f"USR1@{warned_s[-1]}" in script
