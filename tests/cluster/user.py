"""One cluster of a profile, and who has a run on it."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli, poll, write_job
from cluster.cluster import PROFILES, Cluster, install, why_not

__all__ = [
    "NEVER",
    "SITE",
    "SLOW",
    "User",
    "check_killed_submission",
    "runners",
    "running",
    "somebody",
    "waiting",
]

SITE = Path(__file__).with_name("site.yaml")
SLOW = {"latency_ms": 100, "max_in_flight": 1}
NEVER = {"latency_ms": 600_000}
_numbers = itertools.count()


@contextmanager
def running(name: str) -> Iterator[Cluster]:
    """The cluster of profile ``name``. One that somebody left running is used and kept."""
    cluster = Cluster(PROFILES[name])
    if cluster.is_up():
        yield cluster
        return
    if (reason := why_not(cluster.profile)) is not None:
        # CI has what a cluster needs; which cgroups it has is not for it to say.
        needed = os.environ.get("CI") == "true" and not cluster.profile.cgroup
        (pytest.fail if needed else pytest.skip)(reason)
    install()
    cluster.up()
    try:
        yield cluster
    finally:
        cluster.down()


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

    def unknown(self, job: str) -> bool:
        """Whether squeue does not know ``job`` any more, over as it is."""
        return job not in self.cluster.run("squeue", "-h", "-t", "all", "-o", "%F").split()

    def release(self, job: str) -> None:
        """Let a requeued job start now: Slurm holds it back for two minutes."""
        poll(lambda: self.shown(job, "JobState") == "PENDING", f"{job} is requeued")
        self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def unreachable(self) -> Path:
        """A slurm.conf of which nobody listens where the controller should be."""
        text = self.cluster.conf.read_text()
        for key, value in (("SlurmctldPort", "9"), ("MessageTimeout", "2")):
            text, count = re.subn(rf"\b{key}=\S+", f"{key}={value}", text)
            assert count == 1, key
        path = self.folder / "slurm.conf"
        path.write_text(text)
        return path

    def with_environment(self, **more: str) -> User:
        return replace(self, cli=Cli(self.cli.home, self.cli.extra | more))


@contextmanager
def somebody(cluster: Cluster, folder: Path) -> Iterator[User]:
    """A user whose home and run are in ``folder``, and whose jobs end with them."""
    home = folder / "home"
    home.mkdir(parents=True)
    extra = {"SLURM_CONF": str(cluster.conf), "HPC_LLM_SITE": str(SITE)}
    found = User(cluster, folder, f"jobs-{os.getpid()}-{next(_numbers)}", Cli(home, extra))
    yield found
    rows = [line.split() for line in cluster.run("squeue", "-h", "-o", "%F %j").splitlines()]
    if ids := {id_ for id_, name in rows if name.partition(".")[0] == found.name}:
        cluster.run("scancel", *ids)


def waiting(user: User) -> tuple[User, Path]:
    """A job that stays in the queue, over a limit that its user's site file does not know."""
    site = user.folder / "site.yaml"
    site.write_text(SITE.read_text().replace("    time_limit: 2h\n", ""))
    job = user.job(resources={"partition": "gpu", "time": "3h", "gpus_per_node": 1})
    return user.with_environment(HPC_LLM_SITE=str(site)), job


def killing_sbatch(user: User) -> User:
    """The same, whose submission is killed as soon as Slurm has the job."""
    folder = user.folder / "bin"
    folder.mkdir()
    wrapper = folder / "sbatch"
    wrapper.write_text(
        f'#!/bin/bash\n{shutil.which("sbatch")} "$@" | tee {user.folder}/submitted\nkill -9 $PPID\n'
    )
    wrapper.chmod(0o755)
    return user.with_environment(PATH=f"{folder}:{os.environ['PATH']}")


def check_killed_submission(user: User, *, ended: bool) -> None:
    """One that is killed as soon as Slurm has its job is found again, live or over."""
    own = killing_sbatch(user)
    job = user.job(rows=4 if ended else 60, engine_options={} if ended else SLOW)
    assert own.cli("submit", job).code == -signal.SIGKILL
    assert not list((user.run / "jobs").glob("*.submitted"))
    id_ = (user.folder / "submitted").read_text().split()[-1]
    if ended:
        user.until_file("DONE")
        poll(lambda: id_ not in user.cluster.run("squeue", "-h", "-o", "%F").split(), "its end")
    again = own.cli.ask("submit", job)  # killed as well, should it submit
    assert (again.code, again.data["how"]) == (0, "done" if ended else "attached")
    assert [entry["id"] for entry in own.status()["jobs"]] == [id_]
    if not ended:
        assert again.data["job"] == id_
        assert own.cli.ask("cancel", user.run).data["jobs"] == [id_]
        own.until("cancelled")


def runners(job: str, node: str, rank: int) -> list[int]:
    """The processes on ``node`` that are a rank of ``job``, below its wrapper."""
    listed = subprocess.run(
        ["ip", "netns", "pids", node], capture_output=True, text=True, check=True
    ).stdout
    return [
        int(pid)
        for pid in listed.split()
        if {f"--job={job}", f"--rank={rank}"} <= _options(int(pid))
    ]


def _options(pid: int) -> set[str]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:  # it has ended
        return set()
    return {f"{name}={value}" for name, value in itertools.pairwise(words)}
