"""TensorRT-LLM's ranks on real nodes, over the stand-in: they answer, fail, and end together."""

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
from cluster.mpis import LAUNCHES
from cluster.user import User, runners
from trtllm_standin import python_path, write_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

SLOW = {"latency_s": 0.5}
MANY = 3000
# From the first sign of a lost world to its end.
END_S = 30.0
MakeReplica = Callable[..., "Replica"]


class Replica:
    """One run of tp 2 x pp 2, two GPUs on each of two nodes."""

    def __init__(self, user: User, launch: str, rows: int, **how: Any) -> None:
        site = LAUNCHES[launch].site(user.folder)
        self.user = user.with_environment(HPC_LLM_SITE=str(site), PYTHONPATH=python_path())
        self._job = self.user.job(
            rows=rows,
            engine="tensorrt-llm",
            model=str(write_checkpoint(user.folder / "model", **how)),
            parallelism={"tp": 2, "pp": 2},
            resources={"partition": "gpu", "time": "10m", "gpus_per_node": 2},
            engine_options={"max_batch_size": 16},
            sampling={"max_tokens": 16},
            limits={"warn_before": "31s"},
        )

    def submit(self) -> str:
        return self.user.submit(self._job)

    def log(self, job: str) -> str:
        path = self.user.run / "logs" / f"{job}.s0.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def hosts(self, job: str) -> dict[int, str]:
        """Where each rank of the newest start sits."""
        found = map(json.loads, re.findall(r"hpc-llm rank (\{.*?\})", self.log(job)))
        return {report["rank"]: report["host"] for report in found}

    def outcome(self, job: str, restart: int, kind: str) -> dict[str, Any]:
        path = self.user.run / "jobs" / f"{job}.{restart}.s0.{kind}"
        poll(path.exists, f"{path.name}; {self.log(job)[-3000:]}")
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def outcomes(self, job: str) -> set[str]:
        return {path.suffix[1:] for path in (self.user.run / "jobs").glob(f"{job}.*.s0.*")}

    def left(self, job: str, host: str) -> list[str]:
        """Processes of the job, and of MPI in it, on a node."""
        listed = subprocess.run(
            ["ip", "netns", "pids", host], capture_output=True, text=True, check=True
        ).stdout
        found = []
        for pid in listed.split():
            with suppress(OSError):  # it has ended
                words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
                mine = f"SLURM_JOB_ID={job}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
                if f"--job {job} " in words or (mine and "mgmn_" in words):
                    found.append(words)
        return found

    def until_nothing_is_left(self, job: str, hosts: dict[int, str]) -> None:
        nodes = set(hosts.values())
        poll(lambda: not [w for h in nodes for w in self.left(job, h)], f"the end of {job}")

    def until_at_work(self, job: str) -> dict[int, str]:
        self.user.until_ready(job)
        self.user.until_published()
        return self.hosts(job)


@pytest.fixture
def replica(user: User) -> MakeReplica:
    def make(launch: str = "srun-pmix", rows: int = 40, **how: Any) -> Replica:
        return Replica(user, launch, rows, **how)

    return make


def workers(host: str, job: str) -> list[int]:
    """Processes of TensorRT-LLM's world on a node."""
    listed = subprocess.run(
        ["ip", "netns", "pids", host], capture_output=True, text=True, check=True
    ).stdout
    found = []
    for pid in map(int, listed.split()):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text()
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            if "mgmn_worker_node" in words and f"SLURM_JOB_ID={job}".encode() in environ:
                found.append(pid)
    return found


@pytest.mark.parametrize("launch", ["srun-pmix", "openmpi4"])
def test_two_nodes_answer_as_one(launch: str, replica: MakeReplica) -> None:
    used = replica(launch)
    job = used.submit()
    used.user.until_file("DONE")
    assert used.user.texts() == [str(n) for n in range(40)]
    hosts = used.hosts(job)
    assert sorted(hosts) == [0, 1, 2, 3]
    assert hosts[0] == hosts[1] != hosts[2] == hosts[3]
    assert used.user.ended(job)[0] == "COMPLETED"
    assert used.outcomes(job) == {"done"}
    log = used.log(job)
    # In order: none of them had to be killed.
    assert {f"worker rank{n} quited" in log for n in (1, 2, 3)} == {True}
    assert "HMAC_KEY" not in log
    used.until_nothing_is_left(job, hosts)


@pytest.mark.parametrize("launch", ["srun-pmix", "openmpi4"])
def test_a_rank_that_raises_is_the_one_that_is_named(launch: str, replica: MakeReplica) -> None:
    fault = {"what": "raise", "when": 64, "rank": 3, "text": "an expert went astray"}
    used = replica(launch, MANY, **SLOW, fault=fault)
    job = used.submit()
    details = used.outcome(job, 0, "died")
    before = time.monotonic()
    hosts = used.hosts(job)
    [problem] = details["problems"]
    assert details["host"] == hosts[3]
    assert problem["code"] == "engine.died"
    assert problem["message"] == f"rank 3 on {hosts[3]}: an expert went astray"
    used.until_nothing_is_left(job, hosts)
    assert time.monotonic() - before < END_S
    assert used.outcomes(job) <= {"died", "resumable"}
    used.user.cli.ask("cancel", used.user.run)


def test_a_pass_that_fails_ends_the_world_and_leaves_no_row_as_an_error(
    replica: MakeReplica,
) -> None:
    fault = {"what": "forward", "when": 64, "text": "an expert went astray"}
    used = replica(rows=MANY, **SLOW, fault=fault)
    job = used.submit()
    [problem] = used.outcome(job, 0, "died")["problems"]
    hosts = used.hosts(job)
    assert problem["code"] == "engine.died"
    assert problem["message"].endswith("error in forward function: an expert went astray")
    used.until_nothing_is_left(job, hosts)
    assert used.user.cli.ask("status", used.user.run).data["rows"]["error"] == 0
    used.user.cli.ask("cancel", used.user.run)


def test_a_rank_that_has_no_memory_is_named_and_tried_no_more(replica: MakeReplica) -> None:
    used = replica(fault={"what": "oom", "when": "KV cache", "rank": 2})
    job = used.submit()
    details = used.outcome(job, 0, "failed")
    [problem] = details["problems"]
    assert problem["code"] == "engine.no-memory"
    assert problem["message"].startswith(f"rank 2 on {used.hosts(job)[2]}: ")
    assert used.user.ended(job)[0] == "FAILED"
    assert used.outcomes(job) <= {"failed", "resumable"}


@pytest.mark.parametrize("launch", ["srun-pmix", "openmpi4"])
def test_a_killed_rank_is_left_out_and_the_job_goes_on(launch: str, replica: MakeReplica) -> None:
    used = replica(launch, MANY, **SLOW)
    job = used.submit()
    hosts = used.until_at_work(job)
    victim = workers(hosts[2], job)[0]
    os.kill(victim, signal.SIGKILL)
    before = time.monotonic()
    details = used.outcome(job, 0, "died")
    [problem] = details["problems"]
    assert details["host"] == hosts[2]
    assert problem["code"] == "run.died"
    assert re.fullmatch(
        rf"rank [23] on {hosts[2]}: its worker was killed by SIGKILL", problem["message"]
    )
    used.until_nothing_is_left(job, hosts)
    assert time.monotonic() - before < END_S
    published = used.user.published()
    used.user.release(job)
    poll(lambda: len(re.findall("is ready", used.log(job))) == 2, "the second start")
    used.user.until_published(published)
    assert hosts[2] not in used.hosts(job).values()
    used.user.cli.ask("cancel", used.user.run)


@pytest.mark.parametrize("launch", ["srun-pmix", "openmpi4"])
def test_a_world_that_is_aborted_has_died(launch: str, replica: MakeReplica) -> None:
    """All processes are killed, under srun before any of them can leave a word."""
    used = replica(launch, MANY, **SLOW, fault={"what": "abort", "when": 64, "rank": 1})
    job = used.submit()
    [problem] = used.outcome(job, 0, "died")["problems"]
    assert problem["code"] in {"run.died", "engine.died"}
    poll(lambda: used.user.shown(job, "JobState") == "PENDING", "the requeue")
    assert used.user.published()
    used.user.cli.ask("cancel", used.user.run)


def test_a_killed_runner_takes_its_world_with_it(replica: MakeReplica) -> None:
    used = replica(rows=MANY, **SLOW)
    job = used.submit()
    hosts = used.until_at_work(job)
    [victim] = runners(job, hosts[0], 0)
    os.kill(victim, signal.SIGKILL)
    before = time.monotonic()
    [problem] = used.outcome(job, 0, "died")["problems"]
    assert problem["message"] == f"rank 0 on {hosts[0]}: its runner was killed by SIGKILL"
    used.until_nothing_is_left(job, hosts)
    assert time.monotonic() - before < END_S
    used.user.cli.ask("cancel", used.user.run)


def test_a_warned_step_drains_and_its_ranks_end_in_order(replica: MakeReplica) -> None:
    used = replica(rows=MANY, **SLOW)
    job = used.submit()
    used.until_at_work(job)
    used.user.cluster.run("scancel", "--signal=USR1", "--batch", job)
    assert used.outcome(job, 0, "resumable")["problems"] == []
    poll(lambda: used.user.shown(job, "JobState") == "PENDING", "the requeue")
    log = used.log(job)
    assert "is killed" not in log
    assert used.outcomes(job) == {"resumable"}
    used.user.release(job)
    poll(lambda: len(re.findall("is ready", used.log(job))) == 2, "the second start")
    used.user.cli.ask("cancel", used.user.run)


def test_cancelling_ends_both_nodes(replica: MakeReplica) -> None:
    used = replica(rows=MANY, **SLOW)
    job = used.submit()
    hosts = used.until_at_work(job)
    assert used.user.cli.ask("cancel", used.user.run).data["jobs"] == [job]
    used.user.until("cancelled")
    used.until_nothing_is_left(job, hosts)
    assert used.outcomes(job) <= {"resumable"}


def test_a_leader_that_does_not_stop_holds_nobody_up(replica: MakeReplica) -> None:
    used = replica(leader="deaf")
    job = used.submit()
    used.user.until_file("DONE")
    assert used.user.ended(job)[0] == "COMPLETED"
    assert used.outcomes(job) == {"done"}
    used.until_nothing_is_left(job, used.hosts(job))


# Replicas, their cut, and how many nodes the ranks of a replica are on.
LAYOUTS = {
    "8 x tp1": (8, {}, 1),
    "4 x tp2": (4, {"tp": 2}, 1),
    "tp4 ep2": (1, {"tp": 4, "ep": 2}, 1),
    "tp4 x pp2": (1, {"tp": 4, "pp": 2}, 2),
    "tp8 x pp4": (1, {"tp": 8, "pp": 4}, 4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_are_where_the_cut_wants_them(name: str, user: User) -> None:
    """The stand-in ends if its world or a rank's place is not what TensorRT-LLM's mapping says."""
    replicas, cut, nodes = LAYOUTS[name]
    ranks = cut.get("tp", 1) * cut.get("pp", 1)
    own = user.with_environment(PYTHONPATH=python_path())
    rows = 400 * replicas
    job = own.submit(
        own.job(
            rows=rows,
            engine="tensorrt-llm",
            model=str(write_checkpoint(user.folder / "model", experts=8, latency_s=0.1)),
            parallelism=cut,
            replicas=replicas,
            resources={
                "partition": "gpu",
                "time": "10m",
                "gpus_per_node": ranks * replicas // nodes,
            },
            engine_options={"max_batch_size": 16},
            sampling={"max_tokens": 16},
        )
    )
    own.until_file("DONE")
    assert own.texts() == [str(n) for n in range(rows)]
    assert own.ended(job)[0] == "COMPLETED"
    for replica in range(replicas):
        log = (own.run / "logs" / f"{job}.s{replica}.log").read_text()
        reports = list(map(json.loads, re.findall(r"hpc-llm rank (\{.*?\})", log)))
        assert sorted(report["rank"] for report in reports) == list(range(ranks))
        hosts = {report["rank"] // (ranks // nodes): report["host"] for report in reports}
        assert len(set(hosts.values())) == nodes
        assert all(r["host"] == hosts[r["rank"] // (ranks // nodes)] for r in reports)
    assert {path.suffix for path in (own.run / "jobs").glob(f"{job}.0.s?.*")} == {".done"}


def test_one_rank_has_no_world_at_all(user: User) -> None:
    own = user.with_environment(PYTHONPATH=python_path())
    model = str(write_checkpoint(user.folder / "model"))
    job = own.submit(
        own.job(engine="tensorrt-llm", model=model, engine_options={"max_batch_size": 4})
    )
    own.until_file("DONE")
    assert own.texts() == ["0", "1", "2", "3"]
    assert own.ended(job)[0] == "COMPLETED"


@pytest.mark.parametrize("kv_tokens", [32, 64])
def test_requests_in_flight_are_those_that_the_kv_cache_of_the_ranks_has_room_for(
    kv_tokens: int, user: User
) -> None:
    """What the leader prints reaches the runner, of which it is no child: 1.5 times the tokens."""
    own = user.with_environment(PYTHONPATH=python_path())
    journal, long = user.folder / "journal", 40
    how: dict[str, Any] = {"kv_tokens": kv_tokens, "latency_s": 0.2, "journal": str(journal)}
    job = own.submit(
        own.job(
            rows=60,
            engine="tensorrt-llm",
            model=str(write_checkpoint(user.folder / "model", **how)),
            input={
                "path": "in.jsonl",
                "prompt": f"{{{{ text }}}}{{% if text == '7' %}}{'x' * long}{{% endif %}}",
                "chat": False,
            },
            parallelism={"tp": 2},
            resources={"partition": "gpu", "time": "10m", "gpus_per_node": 2},
            engine_options={"max_batch_size": 16},
            sampling={"max_tokens": 15},
            limits={"max_bad_fraction": 1.0},
        )
    )
    own.until_file("DONE")
    fits = long + 1 < kv_tokens
    assert own.texts()[7] == (f"7{'x' * 14}" if fits else "prompt_too_long")
    now, most = 0, 0
    for line in journal.read_text().splitlines():
        now += 1 if line.startswith("asked") else -1
        most = max(most, now)
    assert 1 < most <= 1.5 * kv_tokens / 16
    log = (own.run / "logs" / f"{job}.s0.log").read_text()
    assert f"the KV cache holds {kv_tokens} tokens" in log


def test_a_wrapper_that_is_killed_leaves_its_launchers_word(user: User) -> None:
    """Nobody of the step is left to say why it ended, but srun has printed it."""
    own = user.with_environment(PYTHONPATH=python_path())
    model = str(write_checkpoint(user.folder / "model", latency_s=0.5))
    job = own.submit(own.job(rows=MANY, engine="tensorrt-llm", model=model))
    own.until_ready(job)
    host = own.cluster.run("squeue", "--noheader", "--format=%N", f"--job={job}").strip()
    [runner] = runners(job, host, 0)
    wrapper = int(Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(wrapper, signal.SIGKILL)
    own.until("failed")
    [problem] = own.cli.ask("status", own.run).json["problems"]
    assert problem["code"] == "run.died"
    assert problem["message"] == f"replica 0: srun: error: {host}: task 0: Killed"
