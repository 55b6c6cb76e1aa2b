"""What ranks over two "nodes" get of the site's fabric, and what NCCL's log makes of the step.

The log is recorded: a stand-in for vLLM's workers writes it as NCCL does. No NCCL takes part.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_driving import Cli, write_job
from fake_mpirun import write_mpirun
from gpu_runs import GpuRun
from vllm_standin import python_path, write_checkpoint

RECORDED = Path(__file__).parents[1] / "fixtures" / "nccl"
ROWS = [{"text": f"row {n}"} for n in range(20)]
LIMIT_S = 40.0
# One of this machine, so that there is something to be bound to.
NEAR = str(min(os.sched_getaffinity(0)))
Render = Callable[..., GpuRun]


@pytest.fixture
def render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Render:
    """Makes a run of tp 2 x pp 2 over two nodes of two GPUs, whose NCCL says ``case``."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    home = tmp_path / "home"
    home.mkdir()

    def make(case: str, *, seen: str = "0,1", **job: Any) -> GpuRun:
        mpirun = write_mpirun(tmp_path / "bin", (seen, seen))
        rails = [{"hca": f"mlx5_{n}:1", "gpus": [n % 2]} for n in range(8)]
        site = {
            "schema": 1,
            "name": "two",
            "scheduler": {"type": "slurm", "restart": "none"},
            "launch": {"with": "mpirun", "mpi": "openmpi4"},
            "env": {"PATH": f"{mpirun}:{os.environ['PATH']}"},
            "partitions": {
                "gpu": {
                    "nodes": 2,
                    "gpus": {
                        "model": "h100",
                        "per_node": 2,
                        "topology": "all-to-all",
                        "cpus": [NEAR, NEAR],
                    },
                    "fabric": {"type": "infiniband", "interface": "=eno1", "rails": rails},
                }
            },
        }
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
        cli = Cli(home, {"HPC_LLM_SITE": str(tmp_path / "site.yaml")})
        env = {"STANDIN_NCCL_LOG": str(RECORDED / f"{case}.log"), **job.pop("env", {})}
        path = write_job(
            tmp_path / "work",
            rows=ROWS,
            engine="vllm",
            model=str(write_checkpoint(tmp_path / "model")),
            parallelism={"tp": 2, "pp": 2},
            resources={"time": "1h"},
            runtime={"python": sys.executable},
            env=env,
            **job,
        )
        run = GpuRun(cli, tmp_path / "work/run")
        done = cli("render", path, "--out", run.path)
        assert done.code == 0, done.err
        return run

    return make


def reports(run: GpuRun) -> list[dict[str, Any]]:
    found = re.findall(r"hpc-llm rank (\{.*\})", run.log_tail())
    return sorted(map(json.loads, found), key=lambda report: int(report["rank"]))


def test_a_plan_has_the_network_and_what_it_sets(render: Render, tmp_path: Path) -> None:
    run = render("infiniband")
    data = run.cli.ask("plan", tmp_path / "work/job.yaml").data
    assert data["gpus"]["count"] == 2
    assert data["fabric"]["type"] == "infiniband"
    assert data["fabric"]["rails"][1] == {"hca": "mlx5_1:1", "gpus": [1]}
    assert data["fabric"]["env"]["NCCL_SOCKET_IFNAME"] == "=eno1"
    text = run.cli("plan", tmp_path / "work/job.yaml", "--explain").out
    assert "between nodes: infiniband, 8 port(s) a node" in text
    assert re.search(r"env\.NCCL_IB_HCA +=mlx5_0:1,.* \S+site\.yaml:\d+", text)


def test_each_rank_says_its_cpus_its_gpus_and_what_is_set_for_the_network(render: Render) -> None:
    run = render("infiniband")
    run.complete()
    first, second = reports(run)
    assert (first["gpus"], first["cpu_list"], first["unbound"]) == ("0,1", NEAR, None)
    rails = ",".join(f"mlx5_{n}:1" for n in range(8))
    for report in (first, second):
        wanted = {
            "NCCL_IB_HCA": f"={rails}",
            "UCX_NET_DEVICES": rails,
            "NCCL_SOCKET_IFNAME": "=eno1",
            "GLOO_SOCKET_IFNAME": "eno1",
            "TP_SOCKET_IFNAME": "eno1",
        }
        assert {f"{name}={value}" for name, value in wanted.items()} <= set(report["network"])


def test_on_a_part_of_a_node_cpus_stay_and_the_log_says_why(render: Render) -> None:
    run = render("infiniband", seen="4,5")
    run.complete()
    cpus = len(os.sched_getaffinity(0))
    why = "it is not certain which GPUs of the node these are"
    assert [(r["cpus"], r["unbound"]) for r in reports(run)] == [(cpus, why)] * 2


def test_status_says_what_nccl_uses_and_its_lines_are_not_in_the_log(render: Render) -> None:
    run = render("infiniband")
    run.complete()
    text = run.cli("status", run.path).out
    assert "network: InfiniBand, 8 rails\n" in text
    assert "warning" not in text
    assert "NCCL INFO" not in run.log_tail()
    (network,) = run.cli.ask("status", run.path).data["networks"]
    assert network["problems"] == []


def test_tcp_in_place_of_infiniband_ends_the_step_and_says_where(render: Render) -> None:
    run = render("sockets")
    assert run.start().ended(LIMIT_S) == 7
    (problem, *_) = run.problems()
    assert problem["code"] == "run.fabric"
    assert f"NCCL uses sockets (node {os.uname().nodename})" in problem["message"]
    assert list((run.path / "jobs").glob("*.died"))
    assert "NCCL WARN Failed to open libibverbs" in run.log_tail()


def test_tcp_is_a_warning_where_the_job_allows_it(render: Render) -> None:
    run = render("sockets", allow=["tcp-fallback"])
    run.complete()
    text = run.cli("status", run.path).out
    assert "network: TCP on ibp5s0, ibp70s0\n" in text
    assert text.count("warning: NCCL uses TCP sockets through ibp5s0, ibp70s0 (node ") == 1


def test_a_strange_port_is_a_warning_of_each_rank_and_shown_once(render: Render) -> None:
    run = render("roce-bond")
    run.complete()
    text = run.cli("status", run.path).out
    assert text.count("warning: NCCL uses RoCE: mlx5_bond_0:1") == 1
    assert run.log_tail().count("warning[run.fabric]") == 2


def test_who_asks_for_nccls_log_has_it_in_the_log_of_the_step(render: Render) -> None:
    run = render("infiniband", env={"NCCL_DEBUG": "INFO"})
    run.complete()
    assert "NCCL INFO NET/IB : Using [0]mlx5_0:1/IB" in run.log_tail()
    assert "network: InfiniBand, 8 rails\n" in run.cli("status", run.path).out
