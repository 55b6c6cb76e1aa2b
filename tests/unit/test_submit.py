"""Starting, resuming and cancelling runs on a cluster of fake commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from run_making import json_lines, make_identity, make_plan, make_run

from launcher.rundir import RunDir
from launcher.submit import cancel, resume


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    home = tmp_path / "slurm"
    home.mkdir()
    found = FakeSlurm(home)
    for name, value in found.environ.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    identity = make_identity(tmp_path, json_lines([{"text": "a"}]))
    found = make_run(tmp_path / "run", identity, plans={"0001": make_plan(scheduler="slurm")})
    (found.path / "script.sh").write_text("#!/bin/bash\n")
    return found


def test_a_live_job_is_attached_to(run: RunDir, slurm: FakeSlurm) -> None:
    assert resume(run).how == "submitted"
    slurm.set(j1000="RUNNING")
    again = resume(run)
    assert (again.how, again.job and again.job.id) == ("attached", "1000")
    assert len(slurm.calls("sbatch")) == 1


def test_a_cancelled_run_is_resumed_while_its_job_is_still_seen_to_end(
    run: RunDir, slurm: FakeSlurm
) -> None:
    assert resume(run).how == "submitted"
    assert cancel(run) == ["1000"]
    slurm.set(j1000="COMPLETING")
    again = resume(run)
    assert (again.how, again.job and again.job.id) == ("submitted", "1001")
    assert not run.stop_path.exists()


def test_a_submission_that_died_before_it_could_note_its_job_is_found_by_name(
    run: RunDir, slurm: FakeSlurm
) -> None:
    assert resume(run).how == "submitted"
    (noted,) = (run.path / "jobs").glob("*.submitted")
    noted.unlink()
    again = resume(run)
    assert (again.how, again.job and again.job.id) == ("attached", "1000")
    assert len(slurm.calls("sbatch")) == 1
    assert noted.exists()


def test_a_submission_that_never_reached_the_scheduler_is_made_again(
    run: RunDir, slurm: FakeSlurm
) -> None:
    (run.path / "jobs" / "beef0000.intent").write_text('{"name": "test.beef0000"}')
    assert resume(run).how == "submitted"
