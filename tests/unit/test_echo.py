from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.engines.base import Completion, Engine, EngineSetup, Request
from launcher.engines.registry import create
from launcher.errors import RowError, RunError
from launcher.plan.types import Cut, Sampling

T = TypeVar("T")


def setup(**options: Any) -> EngineSetup:
    return EngineSetup(model_path=None, cut=Cut(), options=options)


def request(text: str, *, id: str = "r", max_tokens: int = 16, seed: int = 0) -> Request:  # noqa: A002 - the protocol's name
    return Request(id=id, text=text, sampling=Sampling(max_tokens=max_tokens, seed=seed))


def with_echo(body: Callable[[Engine], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        engine = create("echo", setup(**options))
        await engine.start()
        try:
            return await body(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def answer(row: Request, **options: Any) -> Completion:
    return with_echo(lambda engine: engine.generate(row), **options)


def outcomes(rows: list[Request], **options: Any) -> list[Completion | BaseException]:
    async def body(engine: Engine) -> list[Completion | BaseException]:
        return await asyncio.gather(*map(engine.generate, rows), return_exceptions=True)

    return with_echo(body, **options)


def codes(error: RunError) -> list[str]:
    return [problem.code for problem in error.problems]


@given(words=st.lists(st.text("abc", min_size=1), max_size=12), max_tokens=st.integers(1, 15))
def test_an_answer_is_the_tail_of_the_prompt_counted_in_words(
    words: list[str], max_tokens: int
) -> None:
    done = answer(request("  \n".join(words), max_tokens=max_tokens))
    assert done.text.split() == words[-max_tokens:]
    assert done.prompt_tokens == len(words)
    assert done.completion_tokens == min(len(words), max_tokens)
    assert done.finish_reason == ("length" if len(words) > max_tokens else "stop")


def test_chat_turns_are_answered_with_the_last_one() -> None:
    turns = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hello you"})
    row = Request(id="r", messages=turns, sampling=Sampling(max_tokens=8))
    assert answer(row).text == "hello you"


@pytest.mark.parametrize("turns", [(), ({"role": "user"},), ({"content": [1]},)])
def test_chat_turns_without_text_are_a_row_error(turns: tuple[dict[str, Any], ...]) -> None:
    row = Request(id="r", messages=turns, sampling=Sampling(max_tokens=8))
    with pytest.raises(RowError) as err:
        answer(row)
    assert err.value.code == "template_error"


def test_latency_delays_rows_side_by_side() -> None:
    started = time.monotonic()
    assert len(outcomes([request("a")] * 50, latency_ms=50)) == 50
    assert 0.05 <= time.monotonic() - started < 50 * 0.05


def test_the_token_rate_holds_for_all_rows_together() -> None:
    started = time.monotonic()
    outcomes([request("a b c d e")] * 4, tokens_per_s=200)
    assert time.monotonic() - started >= 20 / 200


def test_the_same_rows_fail_again_and_about_as_many_as_asked_for() -> None:
    rows = [request("a", id=str(seed), seed=seed) for seed in range(1000)]
    failed = [isinstance(out, RowError) for out in outcomes(rows, fail_rate=0.2)]
    again = [isinstance(out, RowError) for out in outcomes(rows, fail_rate=0.2)]
    assert failed == again
    assert 150 < sum(failed) < 250


@pytest.mark.parametrize(("rate", "failures"), [(0, 0), (1, 20)])
def test_a_fail_rate_of_nothing_or_everything_is_exact(rate: float, failures: int) -> None:
    rows = [request("a", seed=seed) for seed in range(20)]
    errors = [out for out in outcomes(rows, fail_rate=rate) if isinstance(out, RowError)]
    assert [error.code for error in errors] == ["engine_error"] * failures


def test_it_dies_after_so_many_answers_and_stays_dead() -> None:
    outs = outcomes([request("a", id=str(n)) for n in range(5)], die_after=3)
    assert [out.text for out in outs if isinstance(out, Completion)] == ["a"] * 3
    assert [codes(out) for out in outs if isinstance(out, RunError)] == [["engine.died"]] * 2


def test_a_death_ends_the_rows_that_are_on_their_way() -> None:
    started = time.monotonic()
    rows = [request("a"), request("a " * 5000, max_tokens=5000)]  # 20 ms, and 100 s
    outs = outcomes(rows, tokens_per_s=50, die_after=0)
    assert time.monotonic() - started < 50
    assert [codes(out) for out in outs if isinstance(out, RunError)] == [["engine.died"]] * 2


def test_an_aborted_row_is_cancelled_and_no_other() -> None:
    async def body(engine: Engine) -> tuple[float, list[Completion | BaseException]]:
        rows = [
            asyncio.create_task(engine.generate(request("a", id=name, max_tokens=1)))
            for name in ("kept", "dropped")
        ]
        await asyncio.sleep(0)
        running = engine.stats()["running"]
        await engine.abort("dropped")
        return running, await asyncio.gather(*rows, return_exceptions=True)

    running, (kept, dropped) = with_echo(body, latency_ms=20)
    assert running == 2
    assert isinstance(kept, Completion)
    assert isinstance(dropped, RowError)
    assert dropped.code == "cancelled"


def test_closing_ends_what_runs_and_refuses_what_comes() -> None:
    async def body(engine: Engine) -> None:
        row = asyncio.create_task(engine.generate(request("a")))
        await asyncio.sleep(0)
        await engine.close()
        for late in (row, engine.generate(request("b"))):
            with pytest.raises(RunError) as err:
                await late
            assert codes(err.value) == ["engine.died"]

    with_echo(body, latency_ms=60_000)


def test_stats_tell_of_no_work_between_answers() -> None:
    async def body(engine: Engine) -> dict[str, float]:
        await engine.generate(request("a b c", max_tokens=2))
        return dict(engine.stats())

    assert with_echo(body) == {"queued": 0, "running": 0}


def test_it_says_how_many_rows_it_wants_and_takes_chats() -> None:
    async def run() -> None:
        capabilities = await create("echo", setup(max_in_flight=3)).start()
        assert capabilities.max_in_flight == 3
        assert capabilities.chat_template

    asyncio.run(run())


def test_a_misspelt_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RunError) as err:
        create("echo", setup(latency_m=3))
    assert codes(err.value) == ["engine.options"]
    assert err.value.problems[0].hint == "write latency_ms"


@pytest.mark.parametrize(
    "options",
    [
        {"latency_ms": "fast"},
        {"latency_ms": -1},
        {"tokens_per_s": 0},
        {"fail_rate": 1.5},
        {"fail_rate": True},
        {"die_after": 1.5},
        {"die_after": -1},
        {"max_in_flight": 0},
        {"max_in_flight": None},
    ],
)
def test_an_option_of_the_wrong_kind_or_size_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RunError) as err:
        create("echo", setup(**options))
    assert codes(err.value) == ["engine.options"]


def test_all_wrong_options_are_reported_at_once() -> None:
    with pytest.raises(RunError) as err:
        create("echo", setup(speed=1, fail_rate="often"))
    assert codes(err.value) == ["engine.options", "engine.options"]


def test_an_engine_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(RunError, match="ollama") as err:
        create("ollama", setup())
    assert codes(err.value) == ["engine.unavailable"]


def test_it_is_sure_of_each_word() -> None:
    row = request("one two three")
    plain, some = (
        answer(row._replace(sampling=Sampling(max_tokens=2, logprobs=count))) for count in (None, 5)
    )
    assert plain.logprobs is None
    word = {"token": "two", "logprob": 0.0, "bytes": [116, 119, 111]}
    told = json.loads(some.logprobs or "")
    assert told[0] == {**word, "top_logprobs": [word]}
    assert "".join(entry["token"] for entry in told) == some.text
    none = answer(row._replace(sampling=Sampling(max_tokens=2, logprobs=0)))
    assert [entry["top_logprobs"] for entry in json.loads(none.logprobs or "")] == [[], []]
