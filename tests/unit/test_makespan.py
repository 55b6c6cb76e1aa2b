"""Virtual time, the simulated engine on it, and a run of real dispatchers on both."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from simulated_engine import Cost, SimulatedEngine
from virtual_time import run

from benchmarks.makespan import Replica, Scenario, bound_s, simulate
from benchmarks.makespan_ways import FIXED_WAYS, Order, order_of
from launcher.engines.base import Completion, Request
from launcher.errors import RowError, RunError
from launcher.plan.types import Sampling

COST = Cost(step_s=1.0, request_s=0.5, prompt_token_s=0.25)


def test_a_day_of_sleep_takes_no_time() -> None:
    async def sleep() -> float:
        await asyncio.sleep(86_400.0)
        return asyncio.get_running_loop().time()

    started_s = time.monotonic()
    assert run(sleep()) == pytest.approx(86_400.0)
    assert time.monotonic() - started_s < 60


def test_timers_come_in_order_and_at_their_time() -> None:
    async def note(after_s: float, seen: list[float]) -> None:
        await asyncio.sleep(after_s)
        seen.append(asyncio.get_running_loop().time())

    async def both() -> list[float]:
        seen: list[float] = []
        await asyncio.gather(*(note(after_s, seen) for after_s in (30.0, 10.0, 20.0)))
        return seen

    assert run(both()) == pytest.approx([10.0, 20.0, 30.0])


def test_what_a_thread_gives_arrives_before_time_jumps() -> None:
    async def work() -> tuple[int, float]:
        sleeping = asyncio.ensure_future(asyncio.sleep(0.001))
        found = await asyncio.to_thread(sum, range(1_000_000))
        now_s = asyncio.get_running_loop().time()
        await sleeping
        return found, now_s

    assert run(work()) == (499_999_500_000, 0.0)


def test_a_failure_in_a_thread_reaches_who_waits_for_it() -> None:
    async def work() -> None:
        await asyncio.to_thread(int, "none")

    with pytest.raises(ValueError, match="none"):
        run(work())


def test_who_waits_for_nothing_is_told_so() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="every task waits"):
        run(forever())


@pytest.mark.parametrize(("seed", "expected"), [(None, list(range(8))), (3, None)])
def test_a_seed_shuffles_threads_the_same_way_each_time(
    seed: int | None, expected: list[int] | None
) -> None:
    async def order() -> list[int]:
        seen: list[int] = []
        await asyncio.gather(*(asyncio.to_thread(seen.append, n) for n in range(8)))
        return seen

    found = run(order(), seed=seed)
    assert sorted(found) == list(range(8))
    assert found == run(order(), seed=seed)
    assert (found == list(range(8))) == (expected is not None)


def request(name: str, most: int = 1000) -> Request:
    """A request that asks for as many tokens as ``name`` says after its first letter."""
    return Request(id=name, sampling=Sampling(max_tokens=most), text=name)


def lengths(asked: Request) -> tuple[int, int]:
    return 4, int((asked.text or "")[1:])


def ends(names: list[str], **engine_options: Any) -> dict[str, tuple[float, Completion | str]]:
    """When each of ``names`` was answered, and how; all are asked at once."""

    async def one(engine: SimulatedEngine, name: str) -> tuple[float, Completion | str]:
        answer: Completion | str
        try:
            answer = await engine.generate(request(name))
        except (RowError, RunError) as exc:
            answer = str(exc)
        return asyncio.get_running_loop().time(), answer

    async def every() -> dict[str, tuple[float, Completion | str]]:
        engine = SimulatedEngine(lengths, COST, **({"slots": 8} | engine_options))
        await engine.start()
        found = await asyncio.gather(*(one(engine, name) for name in names))
        assert engine.stats()["running"] == engine.stats()["queued"] == 0
        return dict(zip(names, found, strict=True))

    return run(every())


def test_two_requests_share_the_steps_of_an_engine() -> None:
    found = ends(["a10", "b20"])
    # Both prompts (2 s), ten steps of two requests (20 s), ten of one (15 s).
    assert [found[name][0] for name in ("a10", "b20")] == pytest.approx([22.0, 37.0])
    answer = found["b20"][1]
    assert isinstance(answer, Completion)
    assert (answer.prompt_tokens, answer.completion_tokens) == (4, 20)


@pytest.mark.parametrize("bound", [{"slots": 1}, {"kv_tokens": 30}])
def test_a_request_waits_for_a_slot_or_for_memory(bound: dict[str, int]) -> None:
    found = ends(["a10", "b20"], **bound)
    assert [found[name][0] for name in ("a10", "b20")] == pytest.approx([16.0, 47.0])


def test_half_the_speed_takes_twice_as_long_after_a_late_start() -> None:
    found = ends(["a10", "b20"], speed=0.5, late_s=100.0)
    assert [found[name][0] for name in ("a10", "b20")] == pytest.approx([144.0, 174.0])


def test_an_engine_dies_at_its_time_with_all_that_it_holds() -> None:
    found = ends(["a10", "b20", "c30"], slots=2, dies_s=30.0)
    assert found["a10"][0] == pytest.approx(22.0)
    for name in ("b20", "c30"):
        assert found[name][0] == pytest.approx(30.0)
        assert "died" in str(found[name][1])


def test_what_is_given_up_leaves_its_slot() -> None:
    async def work() -> tuple[str, float, int]:
        engine = SimulatedEngine(lengths, COST, slots=1)
        first = asyncio.ensure_future(engine.generate(request("a1000")))
        second = asyncio.ensure_future(engine.generate(request("b10")))
        await asyncio.sleep(16.0)
        tokens = int(engine.stats()["generated_tokens"])
        await engine.abort("a1000")
        with pytest.raises(RowError) as error:
            await first
        await second
        return error.value.code, asyncio.get_running_loop().time(), tokens

    code, ended_s, tokens = run(work())
    assert (code, tokens) == ("cancelled", 10)
    assert ended_s == pytest.approx(32.0)


def small(trouble: str, *, known: bool = False) -> Scenario:
    return Scenario(
        lengths="chat", trouble=trouble, known=known, replicas=3, slots=8, rows_a_slot=6
    )


@pytest.mark.parametrize(
    ("trouble", "known"),
    [("slow", True), ("all", True), ("died", True), ("all", False), ("died", False)],
)
def test_dispatchers_answer_each_row_once_and_take_the_same_time_again(
    trouble: str,
    known: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    scenario = small(trouble, known=known)
    found = simulate(scenario, "dispatcher")  # fails unless every row is in a part, once
    assert found.ratio >= 1
    assert simulate(scenario, "dispatcher").makespan_s == found.makespan_s


@pytest.mark.parametrize("way", [*FIXED_WAYS, "longest:8"])
def test_no_way_is_below_the_bound(way: str) -> None:
    found = simulate(small("all"), way)
    assert found.ratio >= 1


def test_the_longest_rows_go_first_where_they_are_seen() -> None:
    async def taken(way: str) -> list[int | None]:
        order: Order = order_of(way, [1, 5, 3, 9], 1, [4])
        return [await order.next(0) for _ in range(4)]

    assert run(taken("longest")) == run(taken("shared:4")) == [3, 1, 2, 0]
    assert run(taken("in-order")) == [0, 1, 2, 3]


def test_the_bound_counts_what_each_replica_can_give_while_it_lives() -> None:
    sizes = [(0, 1000)] * 512
    whole = bound_s(sizes, [Replica()] * 2, slots=256)
    lost = bound_s(sizes, [Replica(), Replica(lost_s=whole / 2)], slots=256)
    late = bound_s(sizes, [Replica(), Replica(late_s=4.0)], slots=256)
    assert lost == pytest.approx(1.5 * whole)
    assert late == pytest.approx(whole + 2.0)
    assert bound_s([(0, 1000)], [Replica()] * 2, slots=256) == pytest.approx(6.256)
