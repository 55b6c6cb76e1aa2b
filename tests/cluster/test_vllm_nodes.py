"""The stand-in for vLLM over two nodes of Slurm: it meets, dies, is cancelled, has no work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cli_driving import poll
from cluster.cluster import Cluster
from cluster.mpis import LAUNCHES, install
from cluster.user import User, runners
from vllm_standin import python_path, write_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

# 33 rows at once: half a minute.
SLOW = {"latency_s": 0.3}
MANY = 3300
END_S = 30.0
Replica = Callable[..., "Nodes"]


class Nodes:
    """One run of tp 2 x pp 2, two GPUs on each of two nodes."""

    def __init__(self, user: User, launch: str, rows: int, **how: Any) -> None:
        site = LAUNCHES[launch].site(user.folder)
        self.user = user.with_environment(HPC_LLM_SITE=str(site), PYTHONPATH=python_path())
        self._job = self.user.job(
            rows=rows,
            engine="vllm",
            model=str(write_checkpoint(user.folder / "model", **how)),
            parallelism={"tp": 2, "pp": 2},
            resources={"partition": "gpu", "time": "10m", "gpus_per_node": 2},
            engine_options={"max_num_seqs": 33},
        )

    def submit(self) -> str:
        return self.user.submit(self._job)

    def log(self, job: str) -> str:
        path = self.user.run / "logs" / f"{job}.s0.log"
        return path.read_text() if path.exists() else ""

    def reports(self, job: str) -> list[dict[str, Any]]:
        return list(map(json.loads, re.findall(r"hpc-llm rank (\{.*?\})", self.log(job))))

    def hosts(self, job: str) -> dict[int, str]:
        """By its first rank, where each task of the newest start sits."""
        return {report["rank"]: report["host"] for report in self.reports(job)}

    def outcome(self, job: str, restart: int, kind: str) -> dict[str, Any]:
        path = self.user.run / "jobs" / f"{job}.{restart}.s0.{kind}"
        poll(path.exists, f"{path.name}; {self.log(job)}")
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def until_nothing_is_left(self, job: str, hosts: dict[int, str]) -> None:
        def left() -> list[str]:
            return [words for host in hosts.values() for words in on(host) if job_of(words, job)]

        poll(lambda: not left(), f"the end of all processes of {job}")


def on(host: str) -> list[str]:
    """The words of every process of a node."""
    listed = subprocess.run(
        ["ip", "netns", "pids", host], capture_output=True, text=True, check=True
    ).stdout
    found = []
    for pid in listed.split():
        with suppress(OSError):  # it has ended
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return found


def job_of(words: str, job: str) -> bool:
    return f"--job {job} " in words or "standins/vllm" in words


@pytest.fixture
def nodes(user: User) -> Replica:
    def make(launch: str = "srun-pmix", rows: int = 40, **how: Any) -> Nodes:
        if launch != "srun-pmix":
            install()
        return Nodes(user, launch, rows, **how)

    return make


@pytest.mark.parametrize("launch", ["srun-pmix", "openmpi4"])
def test_two_nodes_answer_as_one_and_a_later_start_has_nothing_to_do(
    launch: str, nodes: Replica, cluster: Cluster
) -> None:
    used = nodes(launch)
    job = used.submit()
    used.user.until_file("DONE")
    assert used.user.texts() == [str(n) for n in range(40)]
    hosts = used.hosts(job)
    assert sorted(hosts) == [0, 2]
    log = used.log(job)
    found = re.findall(r"stand-in rank (\d) is (\S+) GPU (\d) (\S+)", log)
    # By the addresses by which they reach each other, though every node has a loopback too.
    address = cluster.profile.address
    assert [(rank, host, ip) for rank, host, _, ip in sorted(found)] == [
        (str(rank), hosts[rank // 2 * 2], address(hosts[rank // 2 * 2])) for rank in range(4)
    ]
    seen = {report["host"]: report["gpus"].split(",") for report in used.reports(job)}
    assert all(gpu == seen[host][int(rank) % 2] for rank, host, gpu, _ in found)
    assert used.user.ended(job)[0] == "COMPLETED"
    assert not list(used.user.run.glob("jobs/*.died"))
    assert "EngineDeadError" not in log

    (used.user.run / "DONE").unlink()
    words = ("sbatch", "--parsable", str(used.user.run / "script.sh"))
    again = cluster.run(*words).strip()
    poll(lambda: used.user.shown(again, "JobState") == "COMPLETED", "the second start")
    assert "nothing is left to do" in used.log(again)
    assert json.loads((used.user.run / f"control/{again}.0.s0.meeting").read_bytes()) is None


@pytest.mark.parametrize("launch", ["srun-pmix", "openmpi4"])
def test_a_later_node_that_dies_is_named_and_the_job_goes_on_elsewhere(
    launch: str, nodes: Replica
) -> None:
    used = nodes(launch, MANY, **SLOW)
    job = used.submit()
    used.user.until_ready(job)
    used.user.until_published()
    hosts = used.hosts(job)
    (victim,) = runners(job, hosts[2], 1)
    os.kill(victim, signal.SIGKILL)
    before = time.monotonic()
    details = used.outcome(job, 0, "died")
    (problem,) = details["problems"]
    assert details["host"] == hosts[2]
    assert problem["code"] == "run.died"
    assert problem["message"] == f"the process of ranks 2-3 on {hosts[2]} was killed by SIGKILL"
    used.until_nothing_is_left(job, hosts)
    assert time.monotonic() - before < END_S
    used.user.release(job)
    poll(lambda: len(re.findall("is ready", used.log(job))) == 2, "the second start")
    assert hosts[2] not in used.hosts(job).values()
    used.user.cli.ask("cancel", used.user.run)


def test_a_later_node_that_cannot_start_is_named(nodes: Replica) -> None:
    used = nodes(start_of_node={"1": "weights"})
    job = used.submit()
    details = used.outcome(job, 0, "failed")
    hosts = used.hosts(job)
    assert details["host"] == hosts[2]
    (problem,) = details["problems"]
    assert problem["code"] == "engine.no-memory"
    assert problem["message"].endswith(f"(ranks 2-3, on {hosts[2]})")
    used.until_nothing_is_left(job, hosts)
    assert used.user.ended(job)[0] == "FAILED"


def test_cancelling_ends_both_nodes(nodes: Replica) -> None:
    used = nodes("srun-pmix", MANY, **SLOW)
    job = used.submit()
    used.user.until_ready(job)
    hosts = used.hosts(job)
    assert used.user.cli.ask("cancel", used.user.run).data["jobs"] == [job]
    used.user.until("cancelled")
    used.until_nothing_is_left(job, hosts)
    assert not list((used.user.run / "jobs").glob("*.died"))
    assert not list((used.user.run / "jobs").glob("*.failed"))
