"""transformers through rendered scripts, on GPUs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli
from gpu_runs import GpuRun, gpu_numbers, render

from launcher.engines.base import Capabilities, Completion, Engine, EngineSetup, Request
from launcher.engines.registry import create
from launcher.plan.types import Cut, Sampling

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
    assert run.gpus() == gpu_numbers()[:1]


def stories(count: int, **sampling: Any) -> list[Request]:
    """Rows of unlike lengths, of which the longest would hold up a cohort."""
    return [
        Request(
            id=str(n),
            messages=({"role": "user", "content": f"Tell a story about the number {n}."},),
            sampling=Sampling(**{"max_tokens": 16 + 47 * n % 240, "seed": n, **sampling}),
        )
        for n in range(count)
    ]


def answered(
    engine: str, model: Path, rows: Sequence[Request], **options: Any
) -> tuple[list[Completion], Capabilities, float]:
    """The answers, what the engine said of itself, and the seconds that all of them took."""

    async def in_turn(made: Engine, room: asyncio.Semaphore, row: Request) -> Completion:
        async with room:
            return await made.generate(row)

    async def run() -> tuple[list[Completion], Capabilities, float]:
        made = create(engine, EngineSetup(model_path=str(model), cut=Cut(), options=options))
        try:
            capabilities = await made.start()
            room = asyncio.Semaphore(capabilities.max_in_flight)
            await made.generate(rows[0])  # what is slow once
            before = time.monotonic()
            done = await asyncio.gather(*(in_turn(made, room, row) for row in rows))
            return done, capabilities, time.monotonic() - before
        finally:
            await made.close()

    return asyncio.run(run())


def alike(these: Sequence[Completion], those: Sequence[Completion]) -> float:
    return sum(map(Completion.__eq__, these, those)) / len(these)


@pytest.mark.gpu
def test_continuous_batches_answer_as_cohorts_do(
    transformers: str, smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = stories(256)
    exact = {"dtype": "float32"}
    cohorts, few, cohorts_s = answered(transformers, smollm2, rows, **exact, batching="cohorts")
    batch, many, batch_s = answered(transformers, smollm2, rows, **exact, batching="continuous")
    with capsys.disabled():
        print(
            f"\n256 rows of SmolLM2: cohorts of {few.max_in_flight // 2}"
            f" {256 / cohorts_s:.1f} rows/s,"
            f" continuous, {many.max_in_flight} in flight, {256 / batch_s:.1f} rows/s"
        )
    # Sums in another order turn a near tie over, and the texts part from there on.
    assert alike(batch, cohorts) > 0.9


@pytest.mark.gpu
def test_a_gpu_has_continuous_batches_unless_told_otherwise(
    transformers: str, smollm2: Path
) -> None:
    _, capabilities, _ = answered(transformers, smollm2, stories(1), max_batch_size=100)
    assert capabilities.max_in_flight == 132


@pytest.mark.gpu
def test_a_seed_decides_what_is_drawn_whatever_runs_beside_it(
    transformers: str, smollm2: Path
) -> None:
    rows = stories(48, temperature=1.0, top_p=0.95)
    options: dict[str, Any] = {"dtype": "float32", "batching": "continuous"}
    first, _, _ = answered(transformers, smollm2, rows, **options)
    again, _, _ = answered(transformers, smollm2, rows[::-1], **options, max_batch_size=7)
    assert alike(first, again[::-1]) > 0.9
    assert len({row.text for row in first}) == len(first)


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
