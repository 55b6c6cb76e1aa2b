"""vLLM over two "nodes" of this machine, over the stand-in: rendered, started, killed, resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_driving import Cli, poll, session_processes, write_job
from fake_mpirun import write_mpirun
from gpu_runs import GpuRun, Started
from vllm_standin import python_path, write_checkpoint

HERE = socket.gethostname()
ROWS = [{"text": f"row {n}"} for n in range(40)]
# 33 rows at once: ten seconds.
SLOW = {"latency_s": 0.2}
MANY = [{"text": f"row {n}"} for n in range(1600)]
LIMIT_S = 40.0
Render = Callable[..., GpuRun]
Wanted = Callable[[Sequence[str]], bool]


@pytest.fixture
def render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Render:
    """Makes a run of tp 2 x pp 2 over two nodes of two GPUs each."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    home = tmp_path / "home"
    home.mkdir()
    site = {
        "schema": 1,
        "name": "two",
        "scheduler": {"type": "slurm", "restart": "none"},
        "launch": {"with": "mpirun", "mpi": "openmpi4"},
        "env": {"PATH": f"{write_mpirun(tmp_path / 'bin', ('4,5', '6,7'))}:{os.environ['PATH']}"},
        "partitions": {"gpu": {"nodes": 2, "gpus": {"model": "h100", "per_node": 2}}},
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))

    def make(rows: Sequence[dict[str, Any]] = ROWS, **how: Any) -> GpuRun:
        cli = Cli(home, {"HPC_LLM_SITE": str(tmp_path / "site.yaml")})
        job = write_job(
            tmp_path / "work",
            rows=rows,
            engine="vllm",
            model=str(write_checkpoint(tmp_path / "model", **how)),
            parallelism={"tp": 2, "pp": 2},
            resources={"time": "1h"},
            engine_options={"max_num_seqs": 33},
            runtime={"python": sys.executable},
        )
        run = GpuRun(cli, tmp_path / "work/run")
        done = cli("render", job, "--out", run.path)
        assert done.code == 0, done.err
        return run

    return make


def outcomes(run: GpuRun) -> list[tuple[str, list[str]]]:
    """How the steps of all starts ended, and what they said of it."""
    found = sorted((run.path / "jobs").glob("*.s0.*"))
    return [
        (path.suffix[1:], [p["code"] for p in json.loads(path.read_bytes())["problems"]])
        for path in found
    ]


def runner(number: int) -> Wanted:
    """The process of a task below its wrapper."""
    return lambda words: "launcher.runner" in words and words[-3:-1] == ["--rank", str(number)]


def worker(rank: int) -> Wanted:
    return lambda words: words[1].endswith("workers.py") and words[3] == str(rank)


@contextmanager
def at_work(run: GpuRun) -> Iterator[Started]:
    with run.start() as started:
        poll(run.parts, f"a part of {run.path}")
        yield started


def test_the_workers_of_both_nodes_meet_where_the_plan_has_them(render: Render) -> None:
    run = render()
    assert [row["response"]["text"] for row in run.complete()] == [row["text"] for row in ROWS]
    log = run.log_tail()
    found = re.findall(rf"stand-in rank (\d) is {HERE} GPU (\d) (\S+)", log)
    assert sorted(found) == [(str(n), str(4 + n), "127.0.0.1") for n in range(4)]
    reports = [json.loads(text) for text in re.findall(r"hpc-llm rank (\{.*?\})", log)]
    assert sorted((r["rank"], r["last_rank"], r["pp_rank"], r["gpus"]) for r in reports) == [
        (0, 1, 0, "4,5"),
        (2, 3, 1, "6,7"),
    ]
    assert "died" not in log
    assert outcomes(run) == [("done", [])]


def test_with_nothing_to_do_the_later_nodes_leave_too(render: Render) -> None:
    run = render()
    run.complete()
    (run.path / "DONE").unlink()
    assert run.start().ended(LIMIT_S) == 0
    assert "nothing is left to do" in run.log_tail()
    assert len(list(run.path.glob("control/*.meeting"))) == 2


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_cannot_start_says_so_alone(render: Render, node: int) -> None:
    run = render(start_of_node={str(node): "weights"})
    assert run.start().ended(LIMIT_S) == 7
    assert ("failed", ["engine.no-memory"]) in outcomes(run)
    assert {kind for kind, _ in outcomes(run)} <= {"failed", "resumable"}
    (problem,) = (p for p in run.problems() if p["code"] == "engine.no-memory")
    assert problem["message"].endswith(f"(ranks 2-3, on {HERE})") == (node == 1)


@pytest.mark.parametrize(
    ("victim", "number", "code", "said"),
    [
        (runner(0), signal.SIGKILL, "run.died", f"the process of ranks 0-1 on {HERE} was killed"),
        (runner(1), signal.SIGKILL, "run.died", f"the process of ranks 2-3 on {HERE} was killed"),
        (worker(3), signal.SIGUSR2, "engine.died", "CUDA out of memory"),
        (worker(3), signal.SIGKILL, "engine.died", "a worker has ended (ranks 2-3"),
    ],
)
def test_whoever_dies_is_named_and_nothing_is_left_but_to_resume(
    render: Render, victim: Wanted, number: signal.Signals, code: str, said: str
) -> None:
    run = render(MANY, **SLOW)
    with at_work(run) as started:
        os.kill(started.find(victim), number)
        assert started.ended(LIMIT_S) == 7
    assert ("died", [code]) in outcomes(run)
    assert {kind for kind, _ in outcomes(run)} <= {"died", "resumable"}
    assert said in run.problems()[0]["message"]
    assert len(run.complete()) == len(MANY)


def test_a_step_that_is_told_to_end_is_resumable_and_no_node_is_called_dead(
    render: Render,
) -> None:
    run = render(MANY, **SLOW)
    with at_work(run) as started:
        for pid in session_processes(started.process.pid):  # as Slurm does
            with suppress(ProcessLookupError):  # one before it has ended it
                os.kill(pid, signal.SIGTERM)
        assert started.ended(LIMIT_S) == 75
    assert outcomes(run) == [("resumable", [])]


def test_a_start_that_hangs_on_one_node_can_be_left(render: Render) -> None:
    run = render(start_of_node={"1": "hang"})
    with run.start() as started:
        poll(lambda: len(workers(started)) == 4, "all workers")
        os.kill(started.process.pid, signal.SIGTERM)
        assert started.ended(LIMIT_S) == 75
    assert outcomes(run) == [("resumable", [])]


def workers(started: Started) -> list[int]:
    found = session_processes(started.process.pid)
    return [pid for pid, words in found.items() if any(w.endswith("workers.py") for w in words)]
