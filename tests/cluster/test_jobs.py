"""How a run comes to its job on a real cluster, and what keeps it from one."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cli_driving import poll, started
from cluster.user import SITE, SLOW, User, check_killed_submission, waiting

pytestmark = pytest.mark.slurm


def test_two_replicas_are_two_tasks_whose_rows_come_out_in_order(user: User) -> None:
    job = user.submit(user.job(rows=60, replicas=2, engine_options=SLOW))
    found = user.until("running")
    assert found["jobs"] == [{"id": job, "state": "running"}]
    user.until_published()
    logs = user.cli.ask("logs", user.run).data["logs"]
    ranks = [line for lines in logs.values() for line in lines if "hpc-llm rank" in line]
    assert sorted(re.findall(r'"replica": (\d), "rank": 0', "".join(ranks))) == ["0", "1"]
    user.until("done")
    assert user.texts() == [str(i) for i in range(60)]
    assert user.ended(f"{job}_0") == user.ended(f"{job}_1") == ["COMPLETED", "0:0"]
    assert user.cli.ask("submit", user.folder / "job.yaml").data["how"] == "done"


def test_a_queued_job_says_in_words_why_it_waits_and_can_be_cancelled(user: User) -> None:
    user, long = waiting(user)
    job = user.submit(long)

    def reason() -> str | None:
        [entry] = user.status()["jobs"]
        assert entry["state"] == "queued"
        return entry.get("reason") if "hopeless" in entry.get("reason", "") else None

    poll(reason, "a reason")
    assert user.cli.ask("cancel", user.run).data["jobs"] == [job]
    assert user.until("cancelled")["jobs"] == [{"id": job, "state": "failed"}]


@pytest.mark.parametrize("ended", [False, True], ids=["live", "over"])
def test_a_submission_that_was_killed_half_way_is_not_repeated(user: User, *, ended: bool) -> None:
    check_killed_submission(user, ended=ended)
    assert len(user.jobs()) == 1


def test_a_script_submitted_by_hand_is_a_job_of_the_run(user: User) -> None:
    job = user.job(rows=100, engine_options=SLOW)
    assert user.cli.ask("render", job, "--out", user.run).code == 0
    assert user.cli.state(user.run) == "ready"
    id_ = user.cluster.run("sbatch", "--parsable", str(user.run / "script.sh")).strip()
    user.until_published()
    attached = user.cli.ask("submit", job).data
    assert (attached["how"], attached["job"]) == ("attached", id_)
    assert user.status()["jobs"] == [{"id": id_, "state": "running"}]
    assert user.cli.ask("cancel", user.run).data["jobs"] == [id_]
    user.until("cancelled")


def allocation(user: User, command: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """``command`` by bash inside an allocation that its user asked for."""
    words = ("salloc", "--quiet", f"--job-name={user.name}", "--gres=gpu:1", "--time=5")
    return started(
        [*words, "bash", "-c", command],
        env=user.cli.environ,
        cwd=user.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_script_started_in_an_allocation_is_a_job_of_the_run(user: User) -> None:
    job = user.job(rows=60, engine_options=SLOW)
    assert user.cli.ask("render", job, "--out", user.run).code == 0
    with allocation(user, f"bash {user.run}/script.sh") as process:
        user.until_published()
        assert user.cli.ask("submit", job).data["how"] == "attached"
        assert user.status()["state"] == "running"
        out, _ = process.communicate(timeout=40)
    assert (process.returncode, out) == (0, "")
    user.until("done")
    assert user.texts() == [str(i) for i in range(60)]
    assert len(user.jobs()) == 1


def test_a_run_that_is_cancelled_leaves_the_allocation_to_its_user(user: User) -> None:
    job = user.job(rows=600, engine_options=SLOW)
    assert user.cli.ask("render", job, "--out", user.run).code == 0
    stay = "touch over; until [ -e leave ]; do sleep 0.1; done; echo left"
    with allocation(user, f"bash {user.run}/script.sh; echo code $?; {stay}") as own:
        user.until_published()
        [id_] = user.cli.ask("cancel", user.run).data["jobs"]
        poll((user.folder / "over").exists, "the end of the script")
        assert user.shown(id_, "JobState") == "RUNNING"
        assert user.status()["state"] == "cancelled"
        (user.folder / "leave").touch()
        out, _ = own.communicate(timeout=20)
    assert out.splitlines() == ["code 75", "left"]


def test_a_script_that_failed_in_an_allocation_ends_without_it(user: User) -> None:
    """The allocation is its user's: nothing is requeued, and the run is not still running."""
    job = user.job(engine_options={"die_after": 1}, limits={"engine_restarts": 0})
    assert user.cli.ask("render", job, "--out", user.run).code == 0
    stay = "touch over; until [ -e leave ]; do sleep 0.1; done"
    with allocation(user, f"bash {user.run}/script.sh; echo code $?; {stay}") as own:
        poll((user.folder / "over").exists, "the end of the script")
        assert user.status()["state"] == "failed"
        (user.folder / "leave").touch()
        out, _ = own.communicate(timeout=20)
    assert "code 7" in out
    assert "Only batch jobs" not in out


def test_a_job_with_nothing_left_to_do_leaves_at_once(user: User) -> None:
    user.submit(user.job())
    user.until("done")
    id_ = user.cluster.run("sbatch", "--parsable", str(user.run / "script.sh")).strip()
    assert user.ended(id_) == ["COMPLETED", "0:0"]
    elapsed = user.cluster.run("sacct", "-X", "-n", "-P", "-j", id_, "--format=ElapsedRaw")
    assert int(elapsed) < 5
    assert not list((user.run / "logs").glob(f"{id_}.s*.log"))


def test_a_partition_that_the_cluster_has_not_is_said_in_slurms_words(user: User) -> None:
    site = user.folder / "site.yaml"
    site.write_text(SITE.read_text().replace("  gpu:", "  other:"))
    job = user.job(resources={"partition": "other", "time": "10m"})
    done = user.cli.ask("submit", job, "--site", site)
    assert (done.code, done.codes) == (6, ["slurm.refused", "rundir.kept"])
    assert "other" in done.json["problems"][0]["message"]
    mended = user.cli.ask("submit", job, "--set", "resources.partition=gpu")
    assert mended.data["how"] == "submitted"


def test_an_account_that_its_user_has_not_points_at_the_job_files_key(user: User) -> None:
    asked = {"partition": "gpu", "time": "10m", "gpus_per_node": 1}
    job = user.job(resources={**asked, "account": "arts"})
    done = user.cli.ask("submit", job)
    assert (done.code, done.codes) == (6, ["slurm.refused", "rundir.kept"])
    [refused, _] = done.json["problems"]
    assert "Invalid account" in refused["message"]
    assert "resources.account" in refused["hint"]
    mended = user.cli.ask("submit", job, "--set", "resources.account=science")
    assert mended.data["how"] == "submitted"


def test_a_run_directory_that_the_nodes_do_not_see_ends_the_run_with_a_hint(user: User) -> None:
    # Each node has a /tmp of its own.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="hpc-llm-") as folder:
        hidden = replace(user, folder=Path(folder))
        job = hidden.submit(hidden.job())
        hidden.until("failed")
        [problem] = hidden.cli.ask("status", hidden.run).json["problems"]
    assert problem["code"] == "run.died"
    assert job in problem["message"]
    assert f"nodes see {hidden.run}" in problem["hint"]


def test_a_python_that_the_node_has_not_fails_the_run_and_is_in_its_log(user: User) -> None:
    job = user.submit(user.job(runtime={"python": "/nowhere/python"}))
    user.until("failed")
    assert user.ended(job)[0] == "FAILED"
    assert "/nowhere/python" in user.cli("logs", user.run).out


def test_what_another_cluster_left_in_the_environment_changes_nothing(user: User) -> None:
    foreign = user.with_environment(
        SLURM_JOB_ID="4",
        SLURM_CLUSTERS="other",
        SLURM_NTASKS="32",
        SLURM_ARRAY_JOB_ID="7",
        SBATCH_PARTITION="other",
        SBATCH_CLUSTERS="other",
        SQUEUE_PARTITION="other",
        SQUEUE_FORMAT2="JobID",
        SACCT_FORMAT="JobName",
        SCANCEL_PARTITION="other",
    )
    job = foreign.submit(user.job(rows=60, engine_options=SLOW))
    user.until_published()
    assert foreign.cli.ask("submit", user.folder / "job.yaml").data["how"] == "attached"
    assert foreign.cli.ask("cancel", user.run).data["jobs"] == [job]
    assert foreign.until("cancelled")["jobs"] == [{"id": job, "state": "failed"}]


def test_a_job_can_be_submitted_from_inside_another(user: User) -> None:
    job = user.job()
    command = f"srun --ntasks=1 {sys.executable} -m launcher submit {job}"
    with allocation(user, command) as process:
        out, _ = process.communicate(timeout=40)
    assert process.returncode == 0, out
    user.until("done")
    [entry] = user.status()["jobs"]
    assert user.shown(entry["id"], "NumNodes") == "1"
    assert user.shown(entry["id"], "StdIn") == "/dev/null"
    assert user.texts() == ["0", "1", "2", "3"]


def test_a_controller_out_of_reach_is_no_lost_submission(user: User) -> None:
    job = user.job()
    away = user.with_environment(SLURM_CONF=str(user.folder / "slurm.conf"))
    user.unreachable()
    done = away.cli.ask("submit", job)
    assert (done.code, done.codes) == (6, ["slurm.refused", "rundir.kept"])
    assert "Unable to contact slurm controller" in done.json["problems"][0]["message"]
    assert (user.run / "run.json").exists()
    asked = away.cli.ask("submit", job)  # a run is there now, whose jobs it asks after first
    assert asked.code == 6
    id_ = user.submit(job)
    user.until("done")
    assert user.jobs() == [id_]


def test_a_plan_names_the_time_at_which_slurm_would_start_it(user: User) -> None:
    """And, when all nodes are taken, that it is the end of who has them."""
    job = user.job(rows=4, resources={"partition": "gpu", "time": "10m"})
    at_once = user.cli.ask("plan", job).data["outlook"]["start"]
    assert at_once["why"] is None
    idle = datetime.fromisoformat(at_once["at"])
    nodes = len(user.cluster.profile.nodes)
    taking = (
        "sbatch",
        "--parsable",
        f"--nodes={nodes}",
        "--exclusive",
        "--time=30",
        "--output=/dev/null",
    )
    other = user.cluster.run(*taking, "--wrap=sleep 600").strip()
    try:
        poll(lambda: user.shown(other, "JobState") == "RUNNING", "all nodes are taken")
        then = user.cli.ask("plan", job).data["outlook"]["start"]
        wait = datetime.fromisoformat(then["at"]) - idle
        assert timedelta(minutes=20) < wait < timedelta(minutes=40)
    finally:
        user.cluster.run("scancel", other)
    refused = user.job(rows=4, resources={"partition": "gpu", "constraint": "nosuch"})
    told = user.cli.ask("plan", refused).data["outlook"]["start"]
    assert told["at"] is None
    assert "Invalid feature specification" in told["why"]
