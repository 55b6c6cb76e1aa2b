"""transformers through rendered scripts, on GPUs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli
from gpu_runs import GpuRun, render

pytestmark = [pytest.mark.timeout(400)]

QUESTIONS = Path(__file__).resolve().parents[2] / "jobs/prompts/questions.jsonl"


def ask(cli: Cli, folder: Path, engine: str, model: Path, **job: Any) -> GpuRun:
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    given: dict[str, Any] = {
        "engine": engine,
        "model": str(model),
        "input": {"path": "in.jsonl", "prompt": "{{ question }}"},
        "sampling": {"max_tokens": 32},
        "engine_options": {"dtype": "float32"},
    }
    return render(cli, folder, rows, **(given | job))


def texts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    assert {row["status"] for row in rows} == {"ok"}
    return [row["response"]["text"] for row in rows]


@pytest.mark.gpu
def test_one_gpu_answers_rightly(
    cli: Cli, tmp_path: Path, transformers: str, smollm2: Path
) -> None:
    run = ask(cli, tmp_path / "one", transformers, smollm2)
    assert texts(run.complete())[0] == "The capital of France is Paris."
    assert run.gpus() == ["0"]


@pytest.mark.multigpu
def test_two_ranks_over_nccl_answer_as_one(
    cli: Cli,
    tmp_path: Path,
    transformers: str,
    smollm2: Path,
    wide: Path,
    mpirun: dict[str, str],
) -> None:
    one = ask(cli, tmp_path / "one", transformers, smollm2)
    two = ask(cli, tmp_path / "two", transformers, wide, parallelism={"tp": 2}, launch=mpirun)
    assert texts(two.complete()) == texts(one.complete())
    assert two.gpus() == ["0,1", "0,1"]
