"""A model cut over three nodes: it answers, drains, loses a rank, and has nothing to do."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cli_driving
import pytest
from cli_driving import Cli, Done, poll, write_job
from cluster.cluster import Cluster
from cluster.user import SITE, runners

from launcher.engines.smollm2 import prepare
from launcher.errors import SpecError

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

QUESTION = {"text": "What is the capital of France?"}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    cache = os.environ.get("HPC_LLM_MODEL_CACHE", "~/.cache/hpc-llm/models")
    try:
        return prepare(Path(cache).expanduser() / "smollm2-135m")
    except SpecError as exc:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(exc))


@dataclass(frozen=True)
class Replica:
    """One run of three ranks, each on a node of its own."""

    cluster: Cluster
    folder: Path
    cli: Cli
    model: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def submit(self, *, rows: int, max_tokens: int, **changes: Any) -> tuple[str, Done]:
        """The job's id, and what the command said."""
        job = write_job(
            self.folder,
            **changes,
            rows=[QUESTION] * rows,
            name=f"spmd-{os.getpid()}",
            engine="transformers",
            model=str(self.model),
            engine_options={"dtype": "float32", "max_batch_size": 2},
            input={"path": "in.jsonl", "prompt": "{{ text }}"},
            sampling={"max_tokens": max_tokens},
            parallelism={"tp": 3},
            allow=["tp-over-fabric"],
            resources={"partition": "gpu", "time": "10m", "gpus_per_node": 1},
            runtime={"python": sys.executable},
            # More threads than cores make three ranks on one machine wait for each other.
            env={"OMP_THREAD_LIMIT": "1"},
        )
        done = self.cli.ask("submit", job)
        assert done.code == 0, done
        return str(done.data["job"]), done

    def log(self, job: str) -> str:
        path = self.run / "logs" / f"{job}.s0.log"
        return path.read_text() if path.exists() else ""

    def until_logged(self, job: str, text: str, times: int = 1) -> None:
        poll(lambda: self.log(job).count(text) >= times, f"{text!r} in the log of {job}")

    def outcome(self, job: str, restart: int) -> tuple[str, dict[str, Any]]:
        """How the step of one start ended, and its details."""

        def ended() -> list[Path]:
            found = (self.run / "jobs").glob(f"{job}.{restart}.s0.*")
            return sorted(found)

        path: Path = poll(ended, f"an outcome of {job}.{restart}")[0]
        return path.suffix[1:], json.loads(path.read_text())

    def state(self, job: str) -> str:
        found = re.search(r"\bJobState=(\S+)", self.cluster.run("scontrol", "show", "job", job))
        assert found
        return found[1]

    def until_state(self, job: str, *states: str) -> None:
        poll(lambda: self.state(job) in states, f"{' or '.join(states)} of {job}")

    def hosts(self, job: str) -> dict[int, str]:
        """Where each rank sat in the newest start, by its report in the log."""
        found = re.findall(r"hpc-llm rank (\{.*\})", self.log(job))
        return {report["rank"]: report["host"] for report in map(json.loads, found)}


@pytest.fixture
def replica(
    cluster: Cluster, shared: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replica]:
    # Three processes that import torch and load a model, perhaps on two cores.
    monkeypatch.setattr(cli_driving, "LIMIT_S", 100.0)
    home = shared / "home"
    home.mkdir()
    extra = {"SLURM_CONF": str(cluster.conf), "HPC_LLM_SITE": str(SITE)}
    found = Replica(cluster, shared, Cli(home, extra), smollm2)
    yield found
    names = [line.split() for line in cluster.run("squeue", "-h", "-o", "%A %j").splitlines()]
    if ids := [id_ for id_, name in names if name.startswith(f"spmd-{os.getpid()}")]:
        cluster.run("scancel", *ids)


def test_three_nodes_answer_as_one_and_a_later_start_has_nothing_to_do(replica: Replica) -> None:
    job, said = replica.submit(rows=3, max_tokens=12)
    assert said.codes == ["plan.tp-over-fabric", "site.never-run"]
    assert replica.outcome(job, 0)[0] == "done"
    assert replica.cli.texts(replica.run) == ["The capital of France is Paris."] * 3
    assert sorted(replica.hosts(job)) == [0, 1, 2]
    assert len(set(replica.hosts(job).values())) == 3
    replica.until_state(job, "COMPLETED")
    # Nothing but reports and news: no warnings of libraries, no tracebacks.
    noise = [
        line
        for line in replica.log(job).splitlines()
        if not re.match(
            r"(\d+: )?(hpc-llm rank |hpc-llm: start |\[\d\d:\d\d:\d\d\] replica 0: )", line
        )
    ]
    assert noise == []

    # All is published, and whoever published the last part died before it said so.
    (replica.run / "DONE").unlink()
    words = ("sbatch", "--parsable", str(replica.run / "script.sh"))
    again = replica.cluster.run(*words).strip()
    replica.until_state(again, "COMPLETED")
    assert "nothing is left to do" in replica.log(again)
    assert "is ready" not in replica.log(again)
    assert (replica.run / "DONE").exists()
    assert json.loads((replica.run / "control" / f"{again}.0.s0.meeting").read_text()) is None


def test_a_warned_step_drains_and_one_that_loses_a_rank_says_which(replica: Replica) -> None:
    job, _ = replica.submit(rows=4000, max_tokens=4, limits={"warn_before": "31s"})
    replica.until_logged(job, "is ready")
    replica.cluster.run("scancel", "--signal=USR1", "--batch", job)
    outcome, details = replica.outcome(job, 0)
    assert (outcome, details["problems"]) == ("resumable", [])
    # Ranks that had been left behind would have been killed by srun, which says so.
    assert "Traceback" not in replica.log(job)

    replica.until_state(job, "PENDING")
    # Slurm holds a requeued job back for two minutes.
    replica.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    replica.until_logged(job, "is ready", times=2)
    assert (replica.run / "control" / f"{job}.1.s0.meeting").exists()  # not that of the first start
    hosts = replica.hosts(job)
    (victim,) = runners(job, hosts[2], 2)
    os.kill(victim, signal.SIGKILL)
    outcome, details = replica.outcome(job, 1)
    assert (outcome, details["host"]) == ("died", hosts[2])
    (problem,) = details["problems"]
    assert problem["code"] == "run.died"
    assert problem["message"] == f"rank 2 on {hosts[2]} was killed by SIGKILL"
    poll(
        lambda: not [pid for rank, host in hosts.items() for pid in runners(job, host, rank)],
        "the end of all ranks",
    )
