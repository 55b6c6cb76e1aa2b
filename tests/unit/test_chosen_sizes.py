"""Runs whose sizes the planner chose: what later submissions keep of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_slurm import FakeSlurm
from run_making import json_lines

from launcher.plan.grid import units
from launcher.plan.types import Cut
from launcher.prepare import Prepared, prepare
from launcher.rundir import RunDir
from launcher.submit import retry_errors, scale, submit

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
GPUS = {"model": "h100", "memory": "80GB", "per_node": 8, "link": "nvlink4"}
SITE: dict[str, Any] = {
    "name": "mine",
    "scheduler": {"type": "slurm"},
    "launch": {"with": "srun", "mpi": "pmix"},
    "partitions": {
        "gpu": {
            "nodes": 8,
            "time_limit": "1d",
            "cpus": {"count": 64},
            "limits": {},
            "gpus": {**GPUS, "topology": "all-to-all", "request": "--gres=gpu:{n}"},
        }
    },
}
JOB: dict[str, Any] = {
    "name": "summaries",
    "engine": "vllm",
    "model": "model",
    "input": {"path": "rows.jsonl", "prompt": "{{ text }}", "chat": False},
    "sampling": {"max_tokens": 256},
    "resources": {"time": "2h"},
    "runtime": {"venv": "/opt/vllm"},
    "output": {"path": "out"},
}


@pytest.fixture
def slurm(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    found = FakeSlurm(own_home / "slurm")
    found.home.mkdir()
    for name, value in found.environ.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_70B))
    (tmp_path / "rows.jsonl").write_bytes(json_lines([{"text": "word " * 360}] * 2000))
    return found


def prepared(folder: Path, limits: dict[str, Any], *, rows: int | None) -> Prepared:
    SITE["partitions"]["gpu"]["limits"] = limits
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    (folder / "mine.yaml").write_text(yaml.safe_dump(SITE))
    return prepare(folder / "job.yaml", site=str(folder / "mine.yaml"), limit=rows)


def cuts(run: RunDir) -> list[Cut]:
    return [run.plan(number).layout.cut for number in sorted(run.plan_numbers())]


@pytest.mark.parametrize(
    ("limits", "rows"), [({}, 10), ({"max_gpus": 2}, None)], ids=["few-rows", "gpus-of-a-user"]
)
def test_more_replicas_are_cut_as_those_that_are_there(
    tmp_path: Path, slurm: FakeSlurm, limits: dict[str, Any], rows: int | None
) -> None:
    run = submit(prepared(tmp_path, limits, rows=rows)).run
    slurm.set(j1000="COMPLETED")
    assert scale(run, 1).how == "submitted"
    assert cuts(run) == [Cut(tp=2)] * 2


def failed(folder: Path, slurm: FakeSlurm) -> RunDir:
    """A run over ten of the rows whose job is over, with an error in each unit."""
    run = submit(prepared(folder, {}, rows=10)).run
    slurm.set(j1000="COMPLETED")
    line = json_lines([{"row": [0, 0], "status": "error", "error": {"code": "timeout"}}])
    for unit in units(run.identity().grid):
        run.part_path(unit).write_bytes(line)
    run.done_path.write_text("{}")
    return run


@pytest.mark.parametrize(
    ("settings", "cut", "replicas"),
    [
        (["engine_options.enforce_eager=true"], Cut(tp=2), 1),
        (["replicas=3"], Cut(tp=2), 3),
        (["parallelism={tp: 8}"], Cut(tp=8), 1),
        (["engine=transformers"], Cut(tp=4), 1),
        (["parallelism={tp: 8}", "replicas=2"], Cut(tp=8), 2),
    ],
)
def test_failed_rows_are_answered_in_the_cut_of_the_run_unless_it_is_set(
    tmp_path: Path, slurm: FakeSlurm, settings: list[str], cut: Cut, replicas: int
) -> None:
    run = failed(tmp_path, slurm)
    before = run.newest_plan()
    assert (before.layout.cut, before.layout.replicas) == (Cut(tp=2), 1)
    assert retry_errors(run, settings=settings).how == "submitted"
    plan = run.newest_plan()
    assert (plan.layout.cut, plan.layout.replicas) == (cut, replicas)
    kept = before.engine_options.items() <= plan.engine_options.items()
    assert kept == (cut == before.layout.cut)


def test_an_automatic_cut_is_searched_anew_where_that_is_asked_for(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    run = failed(tmp_path, slurm)
    anew = prepared(tmp_path, {}, rows=None).resolution.plan
    assert retry_errors(run, settings=["parallelism=auto"]).how == "submitted"
    assert cuts(run)[-1] == anew.layout.cut != cuts(run)[0]
    assert run.newest_plan().layout.replicas == 1 < anew.layout.replicas
