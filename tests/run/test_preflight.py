"""The wrappers of two "nodes" of this machine, of which one is not fit to start an engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_driving import Cli, poll, write_job
from fake_mpirun import write_mpirun
from gpu_runs import GpuRun
from vllm_standin import python_path, write_checkpoint

HERE = socket.gethostname()
ROWS = [{"text": f"row {n}"} for n in range(4)]
LIMIT_S = 40.0
# By what it sees, as on a node of its own.
LIST = """#!/bin/sh
case $CUDA_VISIBLE_DEVICES in {bad}) {what} ;; esac
for n in 0 1 2 3 4 5 6 7; do echo "GPU $n: NVIDIA H100 (UUID: GPU-$n)"; done
"""
Render = Callable[..., GpuRun]


@pytest.fixture
def render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Render:
    """Makes a run of tp 2 x pp 2 over two nodes, whose GPUs are 4,5 and 6,7."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    home = tmp_path / "home"
    home.mkdir()
    programs = write_mpirun(tmp_path / "bin", ("4,5", "6,7"))
    site = {
        "schema": 1,
        "name": "two",
        "scheduler": {"type": "slurm", "restart": "none"},
        "launch": {"with": "mpirun", "mpi": "openmpi4"},
        "env": {"PATH": f"{programs}:{os.environ['PATH']}"},
        "partitions": {"gpu": {"nodes": 2, "gpus": {"model": "h100", "per_node": 2}}},
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))

    def make(what: str = "", bad: str = "none", **changes: Any) -> GpuRun:
        listing = programs / "nvidia-smi"
        listing.write_text(LIST.format(bad=bad, what=what))
        listing.chmod(0o755)
        cli = Cli(home, {"HPC_LLM_SITE": str(tmp_path / "site.yaml")})
        job = write_job(
            tmp_path / "work",
            rows=ROWS,
            engine="vllm",
            model=str(write_checkpoint(tmp_path / "model")),
            parallelism={"tp": 2, "pp": 2},
            resources={"time": "1h"},
            runtime={"python": sys.executable},
            **changes,
        )
        run = GpuRun(cli, tmp_path / "work/run")
        done = cli("render", job, "--out", run.path)
        assert done.code == 0, done.err
        return run

    return make


def ended(run: GpuRun) -> dict[str, dict[str, Any]]:
    """How the step ended, by the kind of its end."""
    return {p.suffix[1:]: json.loads(p.read_bytes()) for p in (run.path / "jobs").glob("*.s0.*")}


def log(run: GpuRun) -> str:
    return "".join(path.read_text() for path in (run.path / "logs").glob("*.s0.log"))


def test_nodes_that_agree_start_their_engine_and_what_they_told_is_kept(render: Render) -> None:
    run = render()
    assert run.start().ended(LIMIT_S) == 0
    assert "replica 0: preflight: 4 ranks on 2 nodes agree in " in log(run)
    [path] = (run.path / "control").glob("*.preflight")
    kept = json.loads(path.read_bytes())
    assert kept["problems"] == []
    assert [rank["visible"] for rank in kept["ranks"]] == ["4,5", "6,7"]
    assert sorted(kept["ranks"][1]["node"]["model"]["files"]) == [
        "config.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    assert not list((run.path / "control").glob("*.r1"))


def test_a_node_whose_driver_fails_is_named_and_may_be_replaced(render: Render) -> None:
    run = render("echo GPU is lost; exit 15", bad="6,7")
    assert run.start().ended(LIMIT_S) == 7
    [problem] = ended(run)["died"]["problems"]
    assert problem["code"] == "preflight.gpus"
    assert problem["message"] == f"rank 1 on {HERE}: nvidia-smi failed: GPU is lost"
    assert ended(run)["died"]["host"] == HERE
    assert (run.path / "control/suspects").read_text().split() == [HERE]
    assert "stand-in rank" not in log(run)
    assert set(ended(run)) <= {"died", "resumable"}


def test_a_model_that_no_node_has_any_more_is_nobodys_fault_but_the_jobs(
    render: Render, tmp_path: Path
) -> None:
    run = render()
    shutil.rmtree(tmp_path / "model")
    assert run.start().ended(LIMIT_S) == 7
    [problem] = ended(run)["failed"]["problems"]
    assert problem["code"] == "preflight.model-missing"
    assert f"rank 1 on {HERE}: No such file or directory" in problem["message"]
    assert "died" not in ended(run)


def test_a_model_that_has_changed_since_the_run_began_is_not_loaded(
    render: Render, tmp_path: Path
) -> None:
    run = render()
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text().replace("300", "301"))
    assert run.start().ended(LIMIT_S) == 7
    [problem] = ended(run)["failed"]["problems"]
    assert problem["code"] == "preflight.model-differs"
    assert "is not what the run began with" in problem["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_that_look_at_their_nodes_leave_when_they_are_told_to(
    render: Render, tmp_path: Path, number: signal.Signals
) -> None:
    run = render(f"touch {tmp_path}/asked$CUDA_VISIBLE_DEVICES; exec sleep 50", bad="*")
    with run.start() as started:
        poll(lambda: len(list(tmp_path.glob("asked*"))) == 2, "two nodes that look at their GPUs")
        os.kill(started.process.pid, number)
        assert started.ended(LIMIT_S) == 75
    assert {kind: end["problems"] for kind, end in ended(run).items()} == {"resumable": []}


def test_a_run_that_is_stopped_is_not_waited_for(render: Render, tmp_path: Path) -> None:
    run = render(f"touch {tmp_path}/asked; exec sleep 3", bad="6,7")
    with run.start() as started:
        poll((tmp_path / "asked").exists, "a node that looks at its GPUs")
        (run.path / "control/STOP").touch()
        assert started.ended(LIMIT_S) == 75
    assert set(ended(run)) == {"resumable"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, None])
def test_ranks_that_measure_their_links_leave_and_end_the_processes_that_do(
    render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals | None
) -> None:
    """A torch that takes for ever to import, in one process for each of four GPUs."""
    site = yaml.safe_load((tmp_path / "site.yaml").read_text())
    site["partitions"]["gpu"]["fabric"] = {"type": "infiniband", "rate": 400}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "torch.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, f'measures{{os.getpid()}}').touch()\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{slow}:{python_path()}")
    run = render()
    with run.start() as started:
        poll(lambda: len(list(tmp_path.glob("measures*"))) == 4, "four processes that measure")
        if number is None:
            (run.path / "control/STOP").touch()
        else:
            os.kill(started.process.pid, number)
        assert started.ended(LIMIT_S) == 75
    assert set(ended(run)) == {"resumable"}
    pids = [path.name.removeprefix("measures") for path in tmp_path.glob("measures*")]
    poll(lambda: not any(Path("/proc", pid).exists() for pid in pids), "their ends")
