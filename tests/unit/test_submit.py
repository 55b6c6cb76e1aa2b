"""Starting, resuming and cancelling runs on a cluster of fake commands."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from run_making import json_lines, make_identity, make_plan, make_run

from launcher.errors import PlanError
from launcher.process import ProcessIds
from launcher.rundir import RunDir
from launcher.submit import cancel, resume, scale


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


def chained(run: RunDir) -> RunDir:
    """The same run on a site whose jobs do not restart."""
    plan = make_plan(scheduler="slurm", restart="chain", attempts=3)
    (run.path / "plans" / "0002.json").write_text(json.dumps(plan.to_json()))
    return run


def test_a_chain_is_queued_whole_each_job_after_the_one_before(
    run: RunDir, slurm: FakeSlurm
) -> None:
    first = resume(chained(run))
    assert (first.how, first.job and first.job.id, first.warnings) == ("submitted", "1000", ())
    words = [call["words"] for call in slurm.calls("sbatch")]
    assert [w[1] for w in words[1:]] == [f"--dependency=afterany:{n}" for n in (1000, 1001)]
    assert len({w[0] for w in words}) == 3
    slurm.set(j1000="NODE_FAIL", j1001="RUNNING")
    again = resume(run)
    assert (again.how, again.job and again.job.id) == ("attached", "1001")


def test_a_chain_is_cancelled_from_its_end(run: RunDir, slurm: FakeSlurm) -> None:
    """The end of one job starts the next."""
    resume(chained(run))
    cancel(run)
    [call] = slurm.calls("scancel")
    assert call["words"] == ["1002", "1001", "1000"]


def test_a_chain_counts_as_the_replicas_of_one_job(run: RunDir, slurm: FakeSlurm) -> None:
    resume(chained(run))
    with pytest.raises(PlanError) as caught:
        scale(run, 1)
    assert [p.message for p in caught.value.problems] == [
        "1 replicas are queued or running already"
    ]


def test_a_chain_that_the_cluster_cuts_short_is_a_warning(run: RunDir, slurm: FakeSlurm) -> None:
    text = "sbatch: error: QOSMaxSubmitJobPerUserLimit"
    slurm.fail("sbatch", code=1, stderr=text, calls=2)
    found = resume(chained(run))
    assert (found.how, found.job and found.job.id) == ("submitted", "1000")
    [warning] = found.warnings
    assert (warning.code, warning.severity) == ("slurm.refused", "warning")
    assert list(slurm.jobs) == ["1000"]


def test_what_a_chain_gave_up_is_tried_again_when_it_is_resumed(
    run: RunDir, slurm: FakeSlurm
) -> None:
    kept = run.path / "control" / "7.0.s0.meeting"
    for name in ("given-up.0", "idle.3", kept.name):
        (run.path / "control" / name).touch()
    resume(chained(run))
    assert [path.name for path in (run.path / "control").iterdir()] == [kept.name]


def test_what_was_started_by_hand_is_stopped_and_its_allocation_kept(
    run: RunDir, slurm: FakeSlurm
) -> None:
    process = dataclasses.asdict(ProcessIds.of(os.getpid()))
    entry = {"job": "77", "restart": 0, "batch": False, "started": 1.0, "process": process}
    (run.path / "jobs" / "77.0.json").write_text(json.dumps(entry))
    slurm.set(j77="RUNNING")
    assert cancel(run) == ["77"]
    assert run.stop_path.exists()
    assert slurm.calls("scancel") == []
