"""More replicas and fewer, on a cluster of fake commands."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_driving import Cli, started, write_job
from fake_slurm import FakeSlurm

from launcher.errors import PlanError
from launcher.process import ProcessIds
from launcher.rundir import RunDir, publish
from launcher.turns import turn

SITE = Path(__file__).parents[1] / "cluster" / "site.yaml"


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    (tmp_path / "slurm").mkdir()
    return FakeSlurm(tmp_path / "slurm")


@pytest.fixture
def cli(tmp_path: Path, slurm: FakeSlurm) -> Cli:
    (tmp_path / "home").mkdir()
    return Cli(tmp_path / "home", {**slurm.environ, "HPC_LLM_SITE": str(SITE)})


def submitted(cli: Cli, replicas: int) -> Path:
    job = write_job(
        cli.home,
        rows=[{"text": "a"}],
        replicas=replicas,
        resources={"partition": "gpu", "time": "10m", "gpus_per_node": 1},
    )
    assert cli.ask("submit", job).data["how"] == "submitted"
    return cli.home / "run"


def arrays(slurm: FakeSlurm, run: Path) -> list[str]:
    """The array option of the script, as it is now."""
    lines = (run / "script.sh").read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith("#SBATCH --array")]


def test_a_task_that_ended_is_no_replica_any_more(cli: Cli, slurm: FakeSlurm) -> None:
    run = submitted(cli, 4)
    enough = cli.ask("scale", run, "--replicas", "4")
    assert (enough.code, enough.codes) == (4, ["scale.enough"])
    slurm.replace("1000_[0-3]", j1000_0="RUNNING", j1000_1="RUNNING")
    slurm.set(j1000_2="CANCELLED", j1000_3="FAILED")
    scaled = cli.ask("scale", run, "--replicas", "5")
    assert scaled.data["job"] == "1001"
    assert arrays(slurm, run) == ["0-2"]


def test_a_scaled_run_comes_back_with_all_of_its_replicas(cli: Cli, slurm: FakeSlurm) -> None:
    run = submitted(cli, 2)
    assert cli.ask("scale", run, "--replicas", "3").code == 0
    assert arrays(slurm, run) == []
    assert cli.ask("cancel", run).data["jobs"] == ["1000", "1001"]
    assert cli.ask("resume", run).data["how"] == "submitted"
    assert arrays(slurm, run) == ["0-2"]


def test_a_finished_run_is_not_scaled(cli: Cli, slurm: FakeSlurm) -> None:
    run = submitted(cli, 1)
    local = write_job(cli.home / "local", rows=[{"text": "a"}])
    assert cli("submit", local, "--site", "local", "--wait").code == 0
    for part in (cli.home / "local" / "run" / "parts").iterdir():
        publish(run / "parts" / part.name, part.read_bytes())
    publish(run / "DONE", b"{}")
    assert cli.ask("scale", run, "--replicas", "4").data["how"] == "done"
    assert len(slurm.calls("sbatch")) == 1


def test_a_refused_submission_is_looked_for_no_more(cli: Cli, slurm: FakeSlurm) -> None:
    slurm.fail("sbatch", code=1, stderr="sbatch: error: Invalid account")
    job = write_job(cli.home, rows=[{"text": "a"}], resources={"partition": "gpu", "time": "10m"})
    assert cli.ask("submit", job).code == 6
    assert not list((cli.home / "run" / "jobs").iterdir())


def test_submissions_at_the_same_time_start_one_job(cli: Cli, slurm: FakeSlurm) -> None:
    job = write_job(cli.home, rows=[{"text": "a"}], resources={"partition": "gpu", "time": "10m"})
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: cli.ask("submit", job).data, range(4)))
    assert sorted(data["how"] for data in found) == ["attached"] * 3 + ["submitted"]
    assert {data["job"] for data in found} == {"1000"}
    assert len(slurm.calls("sbatch")) == 1
    assert not list((cli.home / "run" / "control").iterdir())


def test_a_submission_that_was_killed_holds_up_no_other(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(cli, 2)
    with started(["sleep", "60"]) as held:
        ids = dataclasses.asdict(ProcessIds.of(held.pid))
        (run / "control" / "submitting.g1").write_text(json.dumps(ids))
        monkeypatch.setattr("launcher.turns.PATIENCE_S", 0.3)
        with pytest.raises(PlanError) as caught, turn(RunDir(run)):
            pass
        assert [p.code for p in caught.value.problems] == ["rundir.busy"]
        assert str(run / "control" / "submitting.g1") in (caught.value.problems[0].hint or "")
    assert cli.ask("scale", run, "--replicas", "3").data["how"] == "submitted"
