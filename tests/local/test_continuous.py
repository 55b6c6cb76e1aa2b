"""Continuous batching on the CPU, where it has to be asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from local_engines import FRANCE, LIMIT, chat, run_code, setup, text, unreachable, with_engine

from launcher.engines.base import Completion, Engine, Request
from launcher.engines.continuous import Draws
from launcher.engines.registry import create
from launcher.engines.sampler import Draw
from launcher.errors import RowError, RunError
from launcher.plan.types import Cut, Sampling

pytestmark = pytest.mark.local

CONTINUOUS: dict[str, Any] = {"batching": "continuous", "cache_memory": 0.05}
MIXED = [
    FRANCE,
    chat("warm", "Name a colour and a city.", temperature=0.9, seed=1),
    chat("twin", "Name a colour and a city.", temperature=0.9, seed=2),
    chat("few", "Tell a story about a very old bridge.", temperature=1.2, top_k=5, seed=3),
    text("narrow", "Once upon a time", temperature=1.5, top_p=0.7, seed=2**70),
    text("plain", "The first five letters are A, B, C,", max_tokens=3),
    chat("stopped", "What is the capital of France?", stop=(" Paris",)),
    text("long", "One, two, three, four, five, six,", max_tokens=40),
]


async def answers(engine: Engine, rows: Sequence[Request]) -> list[Completion]:
    return await asyncio.gather(*map(engine.generate, rows))


async def running(engine: Engine, row: Request) -> asyncio.Task[Completion]:
    """``row`` once its first token is there."""
    task = asyncio.create_task(engine.generate(row))
    before = engine.stats()["generated_tokens"]
    while engine.stats()["generated_tokens"] == before:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.001)
    return task


def test_continuous_batches_answer_as_cohorts_do(smollm2: Path) -> None:
    async def body(engine: Engine) -> list[Completion]:
        return await answers(engine, MIXED)

    cohorts = with_engine(smollm2, body, batching="cohorts")
    assert with_engine(smollm2, body, **CONTINUOUS, max_batch_size=3) == cohorts
    assert cohorts[1].text != cohorts[2].text  # the seeds differ


def test_rows_are_answered_as_if_alone_whatever_runs_beside_them(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        alone = [await engine.generate(row) for row in MIXED]
        beside = await running(engine, text("beside", "One, two,", max_tokens=500))
        assert await answers(engine, MIXED[::-1]) == alone[::-1]
        assert not beside.done()
        await engine.abort("beside")
        with pytest.raises(RowError):
            await beside

    with_engine(smollm2, body, **CONTINUOUS)


def test_a_row_that_comes_late_joins_the_batch_that_runs(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        long = await running(engine, text("long", "One, two,", max_tokens=2000))
        late = await engine.generate(text("late", "One, two,", max_tokens=2))
        assert late.completion_tokens == 2
        assert not long.done()
        assert engine.stats()["running"] == 1
        await engine.abort("long")
        with pytest.raises(RowError) as err:
            await long
        assert err.value.code == "cancelled"

    with_engine(smollm2, body, **CONTINUOUS)


def test_rows_that_find_no_room_wait_and_can_be_given_up(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        long = await running(engine, text("long", "One, two,", max_tokens=2000))
        waiting = asyncio.create_task(engine.generate(FRANCE))
        dropped = asyncio.create_task(engine.generate(text("dropped", "One, two,")))
        while engine.stats()["queued"] < 2:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)
        await engine.abort("dropped")
        with pytest.raises(RowError):
            await dropped
        long.cancel()
        assert (await waiting).text == "The capital of France is Paris."
        assert engine.stats()["queued"] == engine.stats()["running"] == 0

    with_engine(smollm2, body, **CONTINUOUS, max_batch_size=1)


def test_tokens_are_counted_as_they_come(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        done = await answers(engine, MIXED)
        counted = engine.stats()["generated_tokens"]
        assert counted == sum(completion.completion_tokens for completion in done)

    with_engine(smollm2, body, **CONTINUOUS, max_batch_size=2)


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> int:
    """Positions of a cache that is too small for all rows, in steps of eight tokens."""
    from transformers import ContinuousBatchingConfig as Config

    made = Config.__post_init__
    page = "page_size" if "page_size" in Config.__dataclass_fields__ else "block_size"

    def made_small(config: Any) -> None:
        made(config)
        vars(config).update({page: 4, "num_blocks": 10, "max_batch_tokens": 8})

    monkeypatch.setattr(Config, "__post_init__", made_small)
    return 40


def numbers(found: Completion) -> list[float]:
    told: list[float] = [each["logprob"] for each in json.loads(found.logprobs or "")]
    assert len(told) == found.completion_tokens
    return told


def test_rows_that_lose_their_place_in_a_full_cache_draw_on(
    tiny: Path, small_cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching.requests import RequestState

    rows = [
        text(str(n), " the" * (6 + 3 * n), max_tokens=16, temperature=1.0, seed=n, logprobs=n % 2)
        for n in range(4)
    ]
    again: list[str] = []
    restart = RequestState.create_equivalent_initial_request

    def noted(state: RequestState) -> RequestState:
        again.append(state.request_id)
        return restart(state)

    monkeypatch.setattr(RequestState, "create_equivalent_initial_request", noted)

    async def body(engine: Engine) -> None:
        full = await engine.generate(text("full", " the" * 5, max_tokens=1000))
        assert full.prompt_tokens + full.completion_tokens == small_cache
        alone = [await engine.generate(row) for row in rows]
        assert not again
        beside = await answers(engine, rows)
        assert again
        for one, other in zip(alone, beside, strict=True):
            assert one._replace(logprobs=None) == other._replace(logprobs=None)
            assert numbers(one) == pytest.approx(numbers(other), abs=1e-4)
        with pytest.raises(RowError) as err:
            await engine.generate(text("long", " the" * small_cache))
        assert err.value.code == "prompt_too_long"

    with_engine(tiny, body, **CONTINUOUS)


def test_closing_fails_what_runs_and_what_waits(smollm2: Path) -> None:
    async def body(engine: Engine) -> None:
        rows = [text(str(n), "One, two,", max_tokens=5000) for n in range(3)]
        first = await running(engine, rows[0])
        others = [asyncio.create_task(engine.generate(row)) for row in rows[1:]]
        await asyncio.sleep(0)
        await engine.close()
        for task in (first, *others):
            with pytest.raises(RunError) as err:
                await task
            assert run_code(err.value) == "engine.died"

    with_engine(smollm2, body, **CONTINUOUS, max_batch_size=1)


@pytest.mark.parametrize("spoilt", ["_generation_step", "prepare_next_batch", "update_batch"])
def test_no_memory_within_a_step_ends_the_engine(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    import torch
    from transformers.generation.continuous_batching.continuous_api import (
        ContinuousBatchProcessor,
    )

    async def body(engine: Engine) -> None:
        long = await running(engine, text("long", "One, two,", max_tokens=2000))

        def out_of_memory(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB")

        monkeypatch.setattr(ContinuousBatchProcessor, spoilt, out_of_memory)
        late = asyncio.create_task(engine.generate(text("late", "One, two,", max_tokens=2000)))
        for task in (long, late):
            with pytest.raises(RunError, match="OutOfMemoryError: CUDA out of memory") as err:
                await task
            assert run_code(err.value) == "engine.died"

    with_engine(smollm2, body, **CONTINUOUS)


def test_a_thread_that_ends_without_a_word_ends_the_engine(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching.continuous_api import (
        ContinuousBatchingManager,
    )

    async def body(engine: Engine) -> None:
        long = await running(engine, text("long", "One, two,", max_tokens=2000))
        stop = lambda *_, **__: False  # noqa: E731 - said once
        monkeypatch.setattr(ContinuousBatchingManager, "_generation_loop_body", stop)
        silent = lambda *_: None  # noqa: E731 - as above
        monkeypatch.setattr(ContinuousBatchingManager, "_fail_all_remaining_requests", silent)
        with pytest.raises(RunError, match="ended without a word") as err:
            await long
        assert run_code(err.value) == "engine.died"

    with_engine(smollm2, body, **CONTINUOUS)


def test_a_cache_that_does_not_fit_is_told_at_the_start(smollm2: Path) -> None:
    with pytest.raises(RunError, match="cannot be batched so: ") as err:
        with_engine(smollm2, unreachable, batching="continuous", cache_memory=1e-9)
    assert run_code(err.value) == "engine.options"


def test_ranks_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    from dataclasses import replace

    asked = replace(setup(tmp_path, **CONTINUOUS), cut=Cut(tp=2))
    with pytest.raises(RunError, match="2 ranks answer in cohorts") as err:
        create("transformers", asked)
    assert run_code(err.value) == "engine.options"


def test_the_room_in_the_batch_decides_how_many_rows_are_worth_handing_over(tiny: Path) -> None:
    async def run(**options: Any) -> tuple[int, int | None]:
        engine = create("transformers", setup(tiny, **options))
        try:
            capabilities = await engine.start()
        finally:
            await engine.close()
        return capabilities.max_in_flight, capabilities.max_seq_len

    assert asyncio.run(run(**CONTINUOUS, max_batch_size=200)) == (250, LIMIT)
    assert asyncio.run(run(max_batch_size=200)) == (400, LIMIT)  # cohorts, unless asked


@pytest.mark.usefixtures("smollm2")  # which skips where torch is missing
def test_a_row_whose_tokens_were_not_drawn_by_its_seed_is_no_answer() -> None:
    draws = Draws("cpu")
    draws.add("greedy", None)
    draws.drop("greedy", 3)
    draws.add("warm", Draw.of(Sampling(max_tokens=3, temperature=1.0), "cpu"))
    with pytest.raises(RuntimeError, match="only 0 of 3 tokens"):
        draws.drop("warm", 3)
