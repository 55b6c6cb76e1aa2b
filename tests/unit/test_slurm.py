"""Slurm's commands as this package calls and reads them, against commands that are processes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from launcher.errors import SchedulerError
from launcher.process import ProcessIds
from launcher.schedulers.base import JobRef, JobState, clean_environment
from launcher.schedulers.slurm import REASONS, STATES, SlurmScheduler


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    home = tmp_path / "slurm"
    home.mkdir()
    found = FakeSlurm(home)
    for name, value in found.environ.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "run 'with' spaces" / "script.sh"
    path.parent.mkdir()
    path.write_text("#!/bin/bash\n#SBATCH --array=0-3\n")
    return path


def state(job: str) -> JobState:
    return SlurmScheduler().states([JobRef(id=job)])[job]


def test_a_submitted_job_has_the_id_that_sbatch_said(slurm: FakeSlurm, script: Path) -> None:
    ref = SlurmScheduler().submit(script, "t.1")
    assert ref == JobRef(id="1000")
    assert slurm.calls("sbatch")[0]["words"] == ["--job-name=t.1", str(script)]
    assert state("1000") is JobState.QUEUED


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("PENDING", JobState.QUEUED),
        ("RUNNING", JobState.RUNNING),
        ("COMPLETING", JobState.RUNNING),
        ("COMPLETED", JobState.DONE),
        ("CANCELLED by 1000", JobState.FAILED),
        ("CANCELLED+", JobState.FAILED),
        ("OUT_OF_MEMORY", JobState.FAILED),
        ("PREEMPTED", JobState.PREEMPTED),
        ("SPECIAL_EXIT", JobState.QUEUED),
        ("SOMETHING_NEW", JobState.LOST),
        ("", JobState.LOST),
    ],
)
def test_the_state_of_a_job_is_slurms(slurm: FakeSlurm, word: str, expected: JobState) -> None:
    slurm.set(j7=word)
    assert state("7") is expected


def test_a_state_nobody_knows_is_never_taken_for_an_end() -> None:
    assert JobState.LOST.live
    assert "SOMETHING_NEW" not in STATES


def test_the_liveliest_task_speaks_for_its_array(slurm: FakeSlurm) -> None:
    slurm.set(j7_0="COMPLETED", j7_1="FAILED")
    assert not state("7").live
    slurm.set(**{"j7_[2-3]": "PENDING"})
    assert state("7") is JobState.QUEUED
    slurm.set(j7_2="RUNNING")
    assert state("7") is JobState.RUNNING


def test_a_failed_task_is_not_hidden_by_those_that_are_done(slurm: FakeSlurm) -> None:
    slurm.set(j7_0="COMPLETED", j7_1="FAILED", j7_2="COMPLETED")
    assert state("7") is JobState.FAILED


def test_one_task_of_an_array_is_asked_for_by_its_own_name(slurm: FakeSlurm) -> None:
    slurm.set(j7_1="RUNNING", j7_2="COMPLETED", j71="RUNNING", j7_21="RUNNING")
    assert state("7_2") is JobState.DONE
    assert state("7_1") is JobState.RUNNING


def test_an_allocation_of_several_parts_lives_as_long_as_one_of_them(slurm: FakeSlurm) -> None:
    """squeue(1): ``12+1`` is a part of the heterogeneous job 12."""
    slurm.set(**{"j12+0": "COMPLETED", "j12+1": "RUNNING", "j1": "FAILED"})
    assert state("12") is JobState.RUNNING
    slurm.set(**{"j12+1": "CANCELLED by 1000"})
    assert state("12") is JobState.FAILED


def test_ids_that_begin_alike_are_different_jobs(slurm: FakeSlurm) -> None:
    slurm.set(j70="RUNNING", j7="COMPLETED")
    assert state("7") is JobState.DONE


def test_every_job_that_was_asked_for_has_a_state(slurm: FakeSlurm) -> None:
    slurm.set(j1="RUNNING", j2="COMPLETED")
    found = SlurmScheduler().states([JobRef(id=id_) for id_ in ("1", "2", "3")])
    assert found == {"1": JobState.RUNNING, "2": JobState.DONE, "3": JobState.ENDED}
    assert len(slurm.calls("squeue")) == len(slurm.calls("sacct")) == 1


def test_no_jobs_are_no_question(slurm: FakeSlurm) -> None:
    assert SlurmScheduler().states([]) == {}
    assert slurm.calls("squeue") == []


def test_queued_jobs_need_no_accounting(slurm: FakeSlurm) -> None:
    slurm.set(j7="RUNNING")
    slurm.fail("sacct", code=1, stderr="Slurm accounting storage is disabled\n")
    assert state("7") is JobState.RUNNING


@pytest.mark.parametrize(
    "fault",
    [
        {"code": 1, "stderr": "Slurm accounting storage is disabled\n"},
        {"code": 0, "stdout": ""},
    ],
)
def test_a_forgotten_job_without_accounting_is_over(
    slurm: FakeSlurm, fault: dict[str, object]
) -> None:
    slurm.fail("sacct", **fault)
    assert state("7") is JobState.ENDED


@pytest.mark.parametrize(
    "text",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying; try again",
    ],
)
def test_a_busy_controller_is_transient(slurm: FakeSlurm, script: Path, text: str) -> None:
    slurm.fail("sbatch", code=1, stderr=text)
    with pytest.raises(SchedulerError) as caught:
        SlurmScheduler().submit(script, "t.1")
    assert caught.value.transient
    assert [p.code for p in caught.value.problems] == ["slurm.refused"]


def test_what_a_wrapper_of_squeue_says_besides_is_no_job(slurm: FakeSlurm) -> None:
    said = "You have 3 jobs\nUse --me | less\n1007\n"
    slurm.fail("squeue", stdout=said)
    assert SlurmScheduler().find("t.1") == JobRef(id="1007")
    slurm.fail("squeue", stdout=said.replace("1007", "1007|RUNNING"))
    assert state("1007") is JobState.RUNNING
    slurm.fail("squeue", stdout=said.replace("1007", "1007|Dependency"))
    assert SlurmScheduler().reasons([JobRef(id="1007")]) == {"1007": REASONS["Dependency"]}


def test_a_state_that_was_cut_off_is_no_end(slurm: FakeSlurm) -> None:
    slurm.fail("squeue", stdout="7|COMPLETE")
    assert state("7") is JobState.LOST


def test_a_controller_that_cannot_be_asked_is_no_answer(slurm: FakeSlurm) -> None:
    """Neither "over" nor "lost": a status made of silence would let a second job start."""
    slurm.set(j7="RUNNING")
    slurm.fail("squeue", code=1, stderr="Unable to contact slurm controller (connect failure)")
    with pytest.raises(SchedulerError) as caught:
        state("7")
    assert caught.value.transient


def test_a_refusal_is_said_in_slurms_words(slurm: FakeSlurm, script: Path) -> None:
    text = "sbatch: error: Batch job submission failed: Invalid account or account/partition"
    slurm.fail("sbatch", code=1, stderr=text)
    with pytest.raises(SchedulerError) as caught:
        SlurmScheduler().submit(script, "t.1")
    assert not caught.value.transient
    assert text in caught.value.problems[0].message


@pytest.mark.parametrize("stdout", ["", "Welcome to the cluster\n"])
def test_an_sbatch_that_names_no_job_is_an_error_with_what_it_said(
    slurm: FakeSlurm, script: Path, stdout: str
) -> None:
    slurm.fail("sbatch", code=0, stdout=stdout)
    with pytest.raises(SchedulerError) as caught:
        SlurmScheduler().submit(script, "t.1")
    assert [p.code for p in caught.value.problems] == ["slurm.no-job-id"]


def test_a_silent_command_is_given_up_as_transient(slurm: FakeSlurm, script: Path) -> None:
    slurm.fail("sbatch", works=True, sleep_s=30)
    with pytest.raises(SchedulerError) as caught:
        SlurmScheduler(timeout_s=0.5).submit(script, "t.1")
    assert caught.value.transient
    assert [p.code for p in caught.value.problems] == ["slurm.timeout"]
    assert len(slurm.calls("sbatch")) == 1  # it may have worked: never twice


def test_absent_commands_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError) as caught:
        SlurmScheduler().submit(script, "t.1")
    assert [p.code for p in caught.value.problems] == ["slurm.absent"]
    assert "sbatch" in caught.value.problems[0].message
    with pytest.raises(SchedulerError):
        state("7")


def test_a_cancelled_job_is_cancelled_and_one_that_is_over_is_no_error(slurm: FakeSlurm) -> None:
    slurm.set(j7="RUNNING", j8="COMPLETED", j9_0="PENDING", j9_1="RUNNING")
    SlurmScheduler().cancel([JobRef(id="7"), JobRef(id="8"), JobRef(id="9")])
    assert not any(s.startswith(("PENDING", "RUNNING")) for s in slurm.jobs.values())
    SlurmScheduler().cancel([])


def test_a_cancel_that_is_refused_is_an_error(slurm: FakeSlurm) -> None:
    slurm.set(j7="RUNNING")
    text = "scancel: error: Kill job error on job id 7: Access/permission denied"
    slurm.fail("scancel", code=1, stderr=text)
    with pytest.raises(SchedulerError):
        SlurmScheduler().cancel([JobRef(id="7")])


def test_nothing_of_a_surrounding_job_reaches_sbatch(
    slurm: FakeSlurm, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surrounding = ("SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK")
    for name in (*surrounding, "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.setenv(name, "3")
    SlurmScheduler().submit(script, "t.1")
    reached = slurm.calls("sbatch")[0]["environ"]
    assert not [name for name in reached if name.startswith(("SLURM_", "SBATCH_", "SRUN_", "PMI"))]
    assert reached["FAKE_SLURM"] == str(slurm.home)


def test_what_says_where_the_cluster_is_reaches_its_commands() -> None:
    """slurm.conf(5): sites outside /etc/slurm set SLURM_CONF; auth/jwt reads SLURM_JWT."""
    kept = {"SLURM_CONF": "/opt/slurm/etc/slurm.conf", "SLURM_JWT": "token"}
    assert clean_environment(kept | {"SLURM_JOBID": "1"}) == kept


def test_a_reason_that_names_nodes_is_said_in_words_all_the_same(
    slurm: FakeSlurm, script: Path
) -> None:
    job = SlurmScheduler().submit(script, "t.1")
    (slurm.home / f"reason.{job.id}").write_text("ReqNodeNotAvail, UnavailableNodes:node04")
    reasons = SlurmScheduler().reasons([job])
    assert reasons == {job.id: REASONS["ReqNodeNotAvail"]}


def test_a_script_by_hand_is_over_with_its_process_though_its_allocation_is_not(
    slurm: FakeSlurm,
) -> None:
    slurm.set(j7="RUNNING", j8="RUNNING")
    own = ProcessIds.of(os.getpid())
    jobs = [JobRef(id="7", process=own), JobRef(id="8", process=replace(own, start_ticks=1))]
    assert SlurmScheduler().states(jobs) == {"7": JobState.RUNNING, "8": JobState.ENDED}


def test_a_users_taste_reaches_no_command(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_STATES", "SACCT_FORMAT", "SCANCEL_INTERACTIVE"):
        monkeypatch.setenv(name, "RUNNING")
    state("7")
    calls = [*slurm.calls("squeue"), *slurm.calls("sacct")]
    assert len(calls) == 2
    assert not [n for c in calls for n in c["environ"] if n.startswith(("SQUEUE", "SACCT", "SCAN"))]


OPTIONS = (("--partition", "gpu"), ("--exclusive", None), ("--array", "0-3%2"))


def test_the_start_of_a_job_is_asked_for_without_submitting_it(slurm: FakeSlurm) -> None:
    assert SlurmScheduler().expected_start(OPTIONS) == "2037-01-02T03:04:05"
    (call,) = slurm.calls("sbatch")
    assert call["words"] == [
        *("--test-only", "--partition=gpu", "--exclusive", "--array=0-3%2", "--wrap=true")
    ]
    assert slurm.jobs == {}


@pytest.mark.parametrize(
    "said",
    [
        "",
        "sbatch: Job 7 to start at Unknown using 8 processors on nodes n1 in partition gpu",
        "sbatch: Job 7 to start at 1970-01-01T00:00:00 using 8 processors",
        "sbatch: Job 7 to start at 2026-11-23T14:00:00000 using 8 processors",
        "start at 2026-11-23T14:00:00",
        "\x1b[2J\x00\n" * 1000,
    ],
)
def test_an_answer_that_names_no_start_is_an_error_that_says_so(
    slurm: FakeSlurm, said: str
) -> None:
    slurm.fail("sbatch", code=0, stderr=said)
    with pytest.raises(SchedulerError) as caught:
        SlurmScheduler().expected_start(OPTIONS)
    assert caught.value.problems[0].code == "slurm.no-start"
    assert len(caught.value.problems[0].message) < 500


def test_a_start_is_found_among_what_plugins_print(slurm: FakeSlurm) -> None:
    lines = ["lua: hello", "sbatch: Job 7 to start at 2026-11-23T14:00:00 using 8 processors"]
    slurm.fail("sbatch", code=0, stderr="\n".join([*lines, "  Preempts: 12"]), stdout="Job 9")
    assert SlurmScheduler().expected_start(OPTIONS) == "2026-11-23T14:00:00"


def test_a_refused_test_is_the_error_of_sbatch(slurm: FakeSlurm) -> None:
    slurm.fail("sbatch", code=1, stderr="allocation failure: Invalid account")
    with pytest.raises(SchedulerError, match="Invalid account"):
        SlurmScheduler().expected_start(OPTIONS)
