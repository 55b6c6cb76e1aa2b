"""How a job on a real cluster ends before its work does, and how the work goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from cli_driving import poll
from cluster.cluster import Cluster
from cluster.user import NEVER, SITE, SLOW, User, runners, somebody

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: Cluster) -> Iterator[User]:
    """Who has a job of one minute, which is at work while other tests are."""
    with somebody(cluster, cluster.root / "shared" / f"limited-{os.getpid()}") as found:
        # Slurm looks twice a minute who is to be warned before it looks again: this one 10 to 40 s
        # after its start, when it is at work for sure and has rows for some seconds more.
        one_minute = {"partition": "gpu", "time": "1m", "gpus_per_node": 1}
        early = {"warn_before": "20s"}
        found.submit(found.job(rows=430, resources=one_minute, limits=early, engine_options=SLOW))
        yield found


def test_a_cancelled_job_stays_cancelled_and_resume_goes_on_from_there(user: User) -> None:
    job = user.submit(user.job(rows=60, engine_options=SLOW))
    user.until_published()
    assert user.cli.ask("cancel", user.run).data["jobs"] == [job]
    user.until("cancelled")
    assert user.ended(job)[0].startswith("CANCELLED")
    assert user.shown(job, "Restarts") == "0"
    kept = {path: path.stat().st_mtime_ns for path in (user.run / "parts").iterdir()}
    resumed = user.cli.ask("resume", user.run).data
    assert resumed["how"] == "submitted"
    assert resumed["job"] != job
    user.until("done")
    assert user.texts() == [str(i) for i in range(60)]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_a_warned_task_drains_and_is_requeued_alone(user: User) -> None:
    soon = {"warn_before": "31s"}
    job = user.submit(user.job(rows=120, replicas=2, engine_options=SLOW, limits=soon))
    first, second = f"{job}_0", f"{job}_1"
    for replica, task in enumerate((first, second)):
        user.until_ready(task, replica)
    user.until_published(2)
    user.cluster.run("scancel", "--signal=USR1", "--batch", first)
    user.until_file(f"jobs/{first}.0.s0.resumable")
    user.release(first)
    user.until_file(f"jobs/{first}.1.json")
    assert user.shown(first, "Restarts") == "1"
    assert user.shown(second, "Restarts") == "0"
    user.until("done")
    assert user.texts() == [str(i) for i in range(120)]
    assert user.ended(first) == user.ended(second) == ["COMPLETED", "0:0"]
    assert not list((user.run / "jobs").glob(f"{second}.1.*"))


def test_a_job_that_gets_nothing_done_is_not_requeued_for_ever(user: User) -> None:
    """The first start may have been unlucky; the second ends it, with 75."""
    # Half a minute of the warning is kept for closing: what is in flight has one second.
    job = user.submit(user.job(engine_options=NEVER, limits={"warn_before": "31s"}))
    user.until_ready(job)
    user.cluster.run("scancel", "--signal=USR1", "--batch", job)
    user.until_file(f"jobs/{job}.0.s0.resumable")
    user.release(job)
    log = user.run / "logs" / f"{job}.s0.log"
    poll(lambda: log.read_text().count("is ready") == 2, "the second start")
    user.cluster.run("scancel", "--signal=USR1", "--batch", job)
    assert user.ended(job) == ["FAILED", "75:0"]
    assert user.until("stopped")["jobs"] == [{"id": job, "state": "failed"}]


def test_a_requeue_waits_for_a_controller_that_cannot_be_reached_for_a_while(user: User) -> None:
    conf, site = user.folder / "slurm.conf", user.folder / "site.yaml"
    conf.write_text(user.cluster.conf.read_text())
    # slurmd gives a job its own SLURM_CONF, and the script what the site says.
    site.write_text(SITE.read_text() + f"\nenv: {{SLURM_CONF: {conf}}}\n")
    there = user.with_environment(HPC_LLM_SITE=str(site))
    job = there.submit(user.job(rows=60, engine_options=SLOW, limits={"warn_before": "31s"}))
    user.until_published()
    user.unreachable()
    user.cluster.run("scancel", "--signal=USR1", job)
    log = user.run / "logs" / f"{job}.log"
    said = "Unexpected message received"  # by scontrol 22.05 if there is nobody
    poll(lambda: said in log.read_text(), "the first try")
    conf.write_text(user.cluster.conf.read_text())
    user.release(job)
    user.until("done")
    assert user.ended(job) == ["COMPLETED", "0:0"]
    assert user.shown(job, "Restarts") == "1"
    assert user.texts() == [str(i) for i in range(60)]


# Not the first in this file: so the minute passes meanwhile.
def test_a_job_that_comes_to_its_time_limit_is_warned_by_slurm_and_goes_on(limited: User) -> None:
    [job] = limited.jobs()
    limited.until_published()  # where no other test ran before, the wait is longer than one poll's
    limited.until_file(f"jobs/{job}.0.s0.resumable")
    poll(lambda: limited.shown(job, "JobState") == "PENDING", "the requeue")
    # One warning is enough.
    limited.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=5")
    limited.release(job)
    limited.until("done")
    assert limited.texts() == [str(i) for i in range(430)]
    assert limited.ended(job) == ["COMPLETED", "0:0"]
    states = [state for _, state, _ in limited.accounted(duplicates=True)]
    assert states == ["REQUEUED", "COMPLETED"]


def test_a_job_that_its_user_scancels_is_not_requeued(user: User) -> None:
    job = user.submit(user.job(rows=100, engine_options=SLOW))
    user.until_published()
    user.cluster.run("scancel", job)
    assert user.ended(job)[0].startswith("CANCELLED")
    user.until("stopped")
    assert user.shown(job, "Restarts") == "0"


def test_a_job_whose_node_dies_is_finished_on_another(user: User) -> None:
    cluster = user.cluster
    job = user.job(rows=100, engine_options=SLOW)
    assert user.cli.ask("render", job, "--out", user.run).code == 0
    words = ("sbatch", "--parsable", "--nodelist=node04", str(user.run / "script.sh"))
    id_ = cluster.run(*words).strip()
    user.until_published()
    cluster.kill_node("node04")
    try:
        # Nobody tells slurmctld: it misses the node after SlurmdTimeout.
        poll(lambda: user.shown(id_, "JobState") == "PENDING", "the requeue")
        assert user.status()["state"] == "queued"
        cluster.run("scontrol", "update", f"JobId={id_}", "ReqNodeList=", "StartTime=now")
        user.until_file(f"jobs/{id_}.1.json")
        assert user.shown(id_, "BatchHost") != "node04"
        user.until("done")
    finally:
        cluster.start_node("node04")
        poll(lambda: "idle" in cluster.run("sinfo", "-h", "-n", "node04", "-o", "%T"), "node04")
    assert user.texts() == [str(i) for i in range(100)]
    states = [state for id_, state, _ in user.accounted(duplicates=True)]
    assert states == ["NODE_FAIL", "COMPLETED"]


def test_a_job_whose_rank_dies_leaves_out_the_node_where_it_died(user: User) -> None:
    job = user.submit(user.job(rows=60, engine_options=SLOW))
    user.until_published()
    bad = user.shown(job, "BatchHost")
    [victim] = runners(job, bad, 0)
    os.kill(victim, signal.SIGKILL)
    poll(lambda: user.shown(job, "ExcNodeList") == bad, "the node left out")
    poll(lambda: user.shown(job, "Priority") != "0", "the end of the hold")
    user.release(job)
    user.until("done")
    assert user.shown(job, "BatchHost") != bad
    assert (user.run / "control/suspects").read_text().split() == [bad]
    assert user.texts() == [str(i) for i in range(60)]
    assert user.ended(job) == ["COMPLETED", "0:0"]


def test_a_node_that_slurm_does_not_know_by_its_name_holds_no_job(user: User) -> None:
    job = user.submit(user.job(rows=60, engine_options=SLOW))
    user.until_published()
    (user.run / "control/suspects").write_text("elsewhere.example\n")
    [victim] = runners(job, user.shown(job, "BatchHost"), 0)
    os.kill(victim, signal.SIGKILL)
    log = user.run / "logs" / f"{job}.log"
    poll(lambda: "Invalid node name" in log.read_text(), "the refusal")
    poll(lambda: user.shown(job, "Priority") != "0", "the end of the hold")
    user.release(job)
    user.until("done")
    assert user.texts() == [str(i) for i in range(60)]
    assert user.ended(job) == ["COMPLETED", "0:0"]


def test_replicas_join_a_run_and_leave_it_while_it_works(user: User) -> None:
    first = user.submit(user.job(rows=100, engine_options=SLOW))
    user.until_published()
    scaled = user.cli.ask("scale", user.run, "--replicas", "2")
    assert (scaled.code, scaled.data["how"]) == (0, "submitted")
    second = scaled.data["job"]
    enough = user.cli.ask("scale", user.run, "--replicas", "2")
    assert (enough.code, enough.codes) == (4, ["scale.enough"])
    for job in (first, second):
        poll(lambda j=job: list((user.run / "metrics").glob(f"{j}.*.jsonl")), f"parts of {job}")  # type: ignore[misc]
    assert {job["state"] for job in user.status()["jobs"]} == {"running"}
    user.cluster.run("scancel", first)
    assert user.ended(first)[0].startswith("CANCELLED")
    assert user.until("done")["jobs"][0] == {"id": first, "state": "failed"}
    assert user.texts() == [str(i) for i in range(100)]
    assert user.ended(second) == ["COMPLETED", "0:0"]
    assert len(user.jobs()) == 2
