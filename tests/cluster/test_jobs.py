"""The life of a job on a real cluster, and everything that can happen to it there."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli, poll, write_job
from cluster.cluster import Cluster

pytestmark = pytest.mark.slurm

SITE = Path(__file__).with_name("site.yaml")
SLOW = {"latency_ms": 100, "max_in_flight": 1}
NEVER = {"latency_ms": 600_000}
_numbers = itertools.count()


@dataclass(frozen=True)
class User:
    """Who has one run, under a job name of its own."""

    cluster: Cluster
    folder: Path
    name: str
    cli: Cli

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def job(self, *, rows: int = 4, **changes: Any) -> Path:
        """A job file of one GPU; its rows are the words 0, 1, …."""
        spec = {
            "name": self.name,
            "resources": {"partition": "gpu", "time": "10m", "gpus_per_node": 1},
            "runtime": {"python": sys.executable},
        }
        return write_job(
            self.folder, rows=[{"text": str(i)} for i in range(rows)], **spec | changes
        )

    def submit(self, job: Path) -> str:
        """The id of the job, which is submitted and not found."""
        done = self.cli.ask("submit", job)
        assert (done.code, done.data["how"]) == (0, "submitted"), done
        id_: str = done.data["job"]
        return id_

    def status(self) -> dict[str, Any]:
        return self.cli.ask("status", self.run).data

    def until(self, state: str) -> dict[str, Any]:
        found: dict[str, Any] = poll(
            lambda: (now := self.status())["state"] == state and now, f"{state} in {self.run}"
        )
        return found

    def published(self) -> int:
        return len(list((self.run / "parts").glob("u*.jsonl")))

    def until_published(self, more_than: int = 0) -> None:
        poll(lambda: self.published() > more_than, f"parts in {self.run}")

    def until_file(self, name: str) -> None:
        poll((self.run / name).exists, f"{name} in {self.run}")

    def until_ready(self, job: str, replica: int = 0) -> None:
        log = self.run / "logs" / f"{job}.s{replica}.log"
        poll(lambda: log.exists() and "is ready" in log.read_text(), f"an engine in {log}")

    def texts(self) -> list[str]:
        return self.cli.texts(self.run)

    def accounted(self, *, duplicates: bool = False) -> list[list[str]]:
        """Id, state and exit code of every job under this user's name, as sacct has them."""
        words = ("-X", "-n", "-P", "--format=JobID,State,ExitCode,JobName", "-S", "now-1hour")
        found = self.cluster.run("sacct", *words, *(["-D"] if duplicates else []))
        rows = (line.split("|") for line in found.splitlines())
        return [row[:3] for row in rows if row[3].partition(".")[0] == self.name]

    def jobs(self) -> list[str]:
        """The ids of all jobs ever submitted; accounting hears of them a moment later."""
        found: list[str] = poll(lambda: [row[0] for row in self.accounted()], "accounting")
        return found

    def ended(self, job: str) -> list[str]:
        """State and exit code of ``job`` once sacct has them for good."""

        def final() -> list[str] | None:
            found = [row[1:] for row in self.accounted() if row[0] == job]
            over = found and found[0][0].split()[0] not in ("PENDING", "RUNNING", "REQUEUED")
            return found[0] if over else None

        found: list[str] = poll(final, f"the end of job {job}")
        return found

    def shown(self, job: str, key: str) -> str:
        found = re.search(rf"\b{key}=(\S+)", self.cluster.run("scontrol", "show", "job", job))
        assert found, f"no {key} of job {job}"
        return found[1]

    def release(self, job: str) -> None:
        """Let a requeued job start now: Slurm holds it back for two minutes."""
        poll(lambda: self.shown(job, "JobState") == "PENDING", f"{job} is requeued")
        self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def with_environment(self, **more: str) -> User:
        return replace(self, cli=Cli(self.cli.home, self.cli.extra | more))


@pytest.fixture
def user(cluster: Cluster, shared: Path) -> Iterator[User]:
    home = shared / "home"
    home.mkdir()
    extra = {"SLURM_CONF": str(cluster.conf), "HPC_LLM_SITE": str(SITE)}
    found = User(cluster, shared, f"jobs-{os.getpid()}-{next(_numbers)}", Cli(home, extra))
    yield found
    rows = [line.split() for line in cluster.run("squeue", "-h", "-o", "%F %j").splitlines()]
    if ids := {id_ for id_, name in rows if name.partition(".")[0] == found.name}:
        cluster.run("scancel", *ids)


def changed_conf(user: User, *edits: tuple[str, str]) -> str:
    """A copy of slurm.conf with lines changed, for the commands of one user."""
    text = user.cluster.conf.read_text()
    for pattern, new in edits:
        text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
        assert count, pattern
    path = user.folder / "slurm.conf"
    path.write_text(text)
    return str(path)


def without_accounting(user: User) -> User:
    """The same on a cluster that has none, as far as its commands can tell."""
    none = (r"^AccountingStorageType=.*", "AccountingStorageType=accounting_storage/none")
    conf = changed_conf(user, none, (r"^AccountingStorage(Host|TRES|Pass)=.*\n", ""))
    return user.with_environment(SLURM_CONF=conf)


def unreachable(user: User) -> User:
    """The same while nobody listens where the controller should be."""
    dead = (r"^SlurmctldHost=.*", "SlurmctldHost=slctl(127.0.0.1)\nSlurmctldPort=9")
    return user.with_environment(
        SLURM_CONF=changed_conf(user, dead, (r"^MessageTimeout=.*", "MessageTimeout=2"))
    )


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


def waiting(user: User) -> tuple[User, Path]:
    """A job that stays in the queue, over a limit that its user's site file does not know."""
    site = user.folder / "site.yaml"
    site.write_text(SITE.read_text().replace("    time_limit: 2h\n", ""))
    job = user.job(resources={"partition": "gpu", "time": "3h", "gpus_per_node": 1})
    return user.with_environment(HPC_LLM_SITE=str(site)), job


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


def killing_sbatch(user: User) -> User:
    """The same, whose submission is killed as soon as Slurm has the job."""
    folder = user.folder / "bin"
    folder.mkdir()
    wrapper = folder / "sbatch"
    wrapper.write_text(f'#!/bin/bash\n{shutil.which("sbatch")} "$@"\nkill -9 $PPID\n')
    wrapper.chmod(0o755)
    return user.with_environment(PATH=f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize("accounting", [True, False], ids=["accounting", "no-accounting"])
@pytest.mark.parametrize("ended", [False, True], ids=["live", "over"])
def test_a_submission_that_was_killed_half_way_is_not_repeated(
    user: User, *, ended: bool, accounting: bool
) -> None:
    own = user if accounting else without_accounting(user)
    job = user.job(rows=4 if ended else 60, engine_options={} if ended else SLOW)
    assert killing_sbatch(own).cli("submit", job).code == -signal.SIGKILL
    assert not list((user.run / "jobs").glob("*.submitted"))
    if ended:
        user.until_file("DONE")
        poll(lambda: user.name not in user.cluster.run("squeue", "-h", "-o", "%j"), "its end")
    again = own.cli.ask("submit", job)
    assert (again.code, again.data["how"]) == (0, "done" if ended else "attached")
    [entry] = own.status()["jobs"]
    assert user.jobs() == [entry["id"]]
    if not ended:
        assert again.data["job"] == entry["id"]
        assert own.cli.ask("cancel", user.run).data["jobs"] == [entry["id"]]
        own.until("cancelled")


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


@contextmanager
def allocation(user: User, command: str) -> Iterator[subprocess.Popen[str]]:
    """``command`` by bash inside an allocation that its user asked for."""
    words = ("salloc", "--quiet", f"--job-name={user.name}", "--gres=gpu:1", "--time=5")
    with subprocess.Popen(
        [*words, "bash", "-c", command],
        env=user.cli.environ,
        cwd=user.folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        yield process


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


def test_a_script_that_failed_in_an_allocation_ends_without_it(user: User) -> None:
    """The allocation is its user's: nothing is requeued, and the run is not still running."""
    job = user.job(engine_options={"die_after": 1})
    assert user.cli.ask("render", job, "--out", user.run).code == 0
    stay = "touch over; until [ -e leave ]; do sleep 0.1; done"
    with allocation(user, f"bash {user.run}/script.sh; echo code $?; {stay}") as own:
        poll((user.folder / "over").exists, "the end of the script")
        assert user.status()["state"] == "failed"
        (user.folder / "leave").touch()
        out, _ = own.communicate(timeout=20)
    assert "code 7" in out
    assert "Only batch jobs" not in out


def test_a_warned_task_drains_and_is_requeued_alone(user: User) -> None:
    job = user.submit(user.job(rows=120, replicas=2, engine_options=SLOW))
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


def test_a_job_that_its_user_scancels_is_not_requeued(user: User) -> None:
    job = user.submit(user.job(rows=100, engine_options=SLOW))
    user.until_published()
    user.cluster.run("scancel", job)
    assert user.ended(job)[0].startswith("CANCELLED")
    user.until("stopped")
    assert user.shown(job, "Restarts") == "0"


# A daemon that is started here outlives the test on purpose, and its handle does not.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_job_whose_node_dies_is_finished_on_another(user: User) -> None:
    cluster = user.cluster
    job = user.job(rows=100, engine_options=SLOW)
    assert user.cli.ask("render", job, "--out", user.run).code == 0
    words = ("sbatch", "--parsable", "--nodelist=node04", str(user.run / "script.sh"))
    id_ = cluster.run(*words).strip()
    user.until_published()
    cluster.kill_node("node04")
    try:
        # slurmctld misses it only after SlurmdTimeout, 30 s here; this says the same at once.
        cluster.run("scontrol", "update", "NodeName=node04", "State=DOWN", "Reason=killed")
        poll(lambda: user.shown(id_, "JobState") == "PENDING", "the requeue")
        assert user.status()["state"] == "queued"
        cluster.run("scontrol", "update", f"JobId={id_}", "ReqNodeList=", "StartTime=now")
        user.until_file(f"jobs/{id_}.1.json")
        assert user.shown(id_, "BatchHost") != "node04"
        user.until("done")
    finally:
        cluster.start_node("node04")
        cluster.run("scontrol", "update", "NodeName=node04", "State=RESUME", check=False)
        poll(lambda: "idle" in cluster.run("sinfo", "-h", "-n", "node04", "-o", "%T"), "node04")
    assert user.texts() == [str(i) for i in range(100)]
    states = [state for id_, state, _ in user.accounted(duplicates=True)]
    assert states == ["NODE_FAIL", "COMPLETED"]


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


def test_a_profile_that_hides_waiting_jobs_lets_no_second_one_start(user: User) -> None:
    """Nor does it without accounting, where what squeue does not show is over."""
    own = without_accounting(user).with_environment(SQUEUE_STATES="RUNNING")
    own, job = waiting(own)
    id_ = own.submit(job)
    again = own.cli.ask("submit", job).data
    assert (again["how"], again["job"]) == ("attached", id_)
    assert own.status()["state"] == "queued"


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
    away = unreachable(user)
    done = away.cli.ask("submit", job)
    assert (done.code, done.codes) == (6, ["slurm.refused", "rundir.kept"])
    assert "Unable to contact slurm controller" in done.json["problems"][0]["message"]
    assert (user.run / "run.json").exists()
    asked = away.cli.ask("submit", job)  # a run is there now, whose jobs it asks after first
    assert asked.code == 6
    id_ = user.submit(job)
    user.until("done")
    assert user.jobs() == [id_]
