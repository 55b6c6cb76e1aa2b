"""Jobs that state no sizes, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli, write_job

ROWS = [{"text": f"a question with a number, {n}"} for n in range(1000)]
AUTO = {"parallelism": "auto", "replicas": "auto"}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "home", {"HPC_LLM_SITE": "dgx-h100"})


def job(tmp_path: Path, **changes: Any) -> Path:
    (tmp_path / "home").mkdir(exist_ok=True)
    spec = {"engine": "tensorrt-llm", "model": "llama-3.1-405b", **AUTO}
    return write_job(tmp_path / "work", rows=ROWS, **(spec | changes))


def test_plan_shows_what_was_computed(cli: Cli, tmp_path: Path) -> None:
    done = cli("plan", job(tmp_path), "--explain")
    assert done.code == 0, done.err
    for part in (
        "tp 8 x pp 2 = 16 ranks",
        "memory of a GPU: 78.8 GiB",
        "->  tp 8, pp 2",
        "812 GB of weights: tp 8 x pp 2",
        "needs 99.3 GiB of 78.8 GiB a GPU",
        "4 characters a token",
        "site dgx-h100: gpus.request",
    ):
        assert part in done.out


def test_plan_has_all_of_it_as_data(cli: Cli, tmp_path: Path) -> None:
    data = cli.ask("plan", job(tmp_path)).data
    assert [data["layout"]["cut"][axis] for axis in ("tp", "pp", "ep")] == [8, 2, 1]
    assert [stage["capacity"] > stage["total"] for stage in data["memory"]] == [True, True]
    assert {"weights", "kv_cache", "activations", "reserve"} <= data["memory"][0].keys()
    assert data["candidates"][0]["tokens_s_gpu"] > 0
    assert data["rejected"][0]["code"] == "plan.gpu-memory"
    nodes = {"key": "--nodes", "value": "2", "source": "replicas in a job: 1, ranks in each: 16"}
    assert nodes in data["decisions"]


def test_the_arguments_of_the_engine_have_the_steps_that_were_chosen(
    cli: Cli, tmp_path: Path
) -> None:
    path, out = job(tmp_path, model="qwen2.5-7b"), tmp_path / "out"
    chosen = cli.ask("plan", path).data["candidates"][0]["options"]
    assert cli("render", path, "--out", out).code == 0
    arguments = json.loads((out / "plans/0001.engine.yaml").read_text())
    assert {name: arguments[name] for name in chosen} == chosen
    assert chosen["max_batch_size"] == arguments["cuda_graph_config"]["max_batch_size"]


def test_what_cannot_be_decided_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    done = cli.ask("plan", job(tmp_path), "--site", "isambard-ai")
    assert done.code == 4
    assert "plan.auto-gpu-memory" in done.codes
    stated = cli.ask(
        "plan", job(tmp_path), "--site", "isambard-ai", "--set", "parallelism={tp: 4, pp: 4}"
    )
    assert "plan.auto-gpu-memory" not in stated.codes
    assert stated.code != 1


def test_a_run_on_this_machine_needs_no_sizes(tmp_path: Path) -> None:
    local = Cli(tmp_path / "home")
    path = job(tmp_path, engine="echo", model="echo")
    assert local("submit", path, "--wait").code == 0
    status = local.ask("status", tmp_path / "work/run").data
    assert (status["state"], status["rows"]["ok"]) == ("done", len(ROWS))
