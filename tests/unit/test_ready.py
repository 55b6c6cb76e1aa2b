"""Which row goes next, how many the engine holds, and which rows are tried apart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.open_unit import OpenUnit
from launcher.data.records import RowHead
from launcher.engines.base import Capabilities, Request
from launcher.errors import Problem, RowError, RunError
from launcher.plan.types import Sampling
from launcher.runner.inflight import InFlight
from launcher.runner.keeper import EngineKeeper
from launcher.runner.progress import Latencies, Progress
from launcher.runner.quarantine import Quarantine
from launcher.runner.ready import Lengths, Order, Prepared, Ready, Waiting

NO_UNIT = cast("OpenUnit", None)  # nothing here looks at it


def row(
    name: int, *, limit: int = 64, size: int = 8, number: int = 1, error: bool = False
) -> Waiting:
    head = RowHead(0, name)
    request = Request(id=str(name), sampling=Sampling(max_tokens=limit), text="x")
    prepared = Prepared(head, request, size=size)
    if error:
        prepared = Prepared(head, error=RowError("bad_type", "it is"))
    expected = 0.0 if error else limit / 2
    return Waiting(prepared, NO_UNIT, name, number, size + limit, expected)


def ready(order: Order = "auto", most_bytes: int = 10**9) -> Ready:
    return Ready(order, most_bytes)


def order_of(rows: Ready) -> list[int]:
    return [rows.pop().index for _ in range(len(rows))]


# --- which goes next ------------------------------------------------------------------------------


def test_the_longest_expected_answer_goes_first_and_equal_ones_as_they_came() -> None:
    rows = ready()
    for name, limit in enumerate([10, 500, 10, 3000, 500]):
        rows.push(row(name, limit=limit))
    assert order_of(rows) == [3, 1, 4, 0, 2]


def test_rows_in_input_order_go_as_they_came_whatever_their_length() -> None:
    rows = ready("input")
    for name in range(9):
        rows.push(row(name, limit=10 * (name % 3) + 1, number=1 + name // 4))
    assert order_of(rows) == list(range(9))


def test_rows_in_random_order_are_not_sorted_and_are_the_same_every_time() -> None:
    def shuffled() -> list[int]:
        rows = ready("random")
        for name in range(50):
            rows.push(row(name))
        return order_of(rows)

    assert sorted(shuffled()) == list(range(50))
    assert shuffled() != list(range(50))
    assert shuffled() == shuffled()


@pytest.mark.parametrize("order", ["auto", "input", "random"])
def test_an_error_row_goes_at_once_as_it_costs_nothing(order: Order) -> None:
    rows = ready(order)
    rows.push(row(0, limit=4000))
    rows.push(row(1, number=90, error=True))
    assert rows.peek().index == 1


@pytest.mark.parametrize("order", ["auto", "random"])
@given(data=st.data())
def test_a_row_is_overtaken_by_rows_of_at_most_eight_later_units(
    order: Order, data: st.DataObject
) -> None:
    limits = data.draw(st.lists(st.integers(1, 4096), min_size=1, max_size=40))
    rows = ready(order)
    for name, limit in enumerate(limits):
        rows.push(row(name, limit=limit, number=1 + name))
        if data.draw(st.booleans()):
            waiting = [entry[2].number for entry in rows._heap]
            assert rows.pop().number <= min(waiting) + 8
    while rows:
        waiting = [entry[2].number for entry in rows._heap]
        assert rows.pop().number <= min(waiting) + 8


@pytest.mark.parametrize("order", ["auto", "random"])
def test_a_row_that_was_tried_goes_after_the_others_of_its_unit(order: Order) -> None:
    rows = ready(order)
    again = row(0, limit=4000)
    rows.push(row(9, limit=4000, number=0))
    again.tries = 1
    rows.push(again)
    for name in range(1, 9):
        rows.push(row(name, limit=name))
    assert order_of(rows)[-1] == 0


def test_rows_are_bounded_by_their_number_and_by_the_bytes_of_their_prompts() -> None:
    rows = ready(most_bytes=400)
    assert not rows.full(1)
    rows.push(row(0, size=99))
    assert (rows.full(1), rows.full(2)) == (True, False)
    rows.push(row(1, size=1))
    assert rows.full(3)
    rows.pop()
    assert not rows.full(3)


# --- how long answers are ---------------------------------------------------------------------


def test_before_any_answer_the_limit_decides() -> None:
    lengths = Lengths()
    assert lengths.expect(10, 100) == 50.0
    assert lengths.expect(1000, 101) > lengths.expect(1, 100)


def test_lengths_are_learned_apart_by_prompt_and_limit_up_to_a_factor_of_two() -> None:
    lengths = Lengths()
    for _ in range(200):
        lengths.note(600, 1000, 900)  # long prompts, long answers
        lengths.note(20, 1000, 50)
    assert lengths.expect(513, 600) == pytest.approx(540, rel=0.05)
    assert lengths.expect(16, 1000) == pytest.approx(50, abs=20)
    assert lengths.expect(31, 1000) == lengths.expect(16, 1000)
    # One not seen is as all of them.
    assert lengths.expect(5000, 1000) == pytest.approx(475, rel=0.1)


def test_what_was_learned_is_forgotten_when_answers_change() -> None:
    lengths = Lengths()
    for _ in range(5000):
        lengths.note(10, 100, 100)
    for _ in range(1000):
        lengths.note(10, 100, 10)
    assert lengths.expect(10, 100) == pytest.approx(10, rel=0.2)


# --- how many are in flight ---------------------------------------------------------------------


def flight(most: int = 10, *, queues: bool = True, kv_tokens: int | None = None) -> InFlight:
    return InFlight(
        Capabilities(max_in_flight=most, chat_template=False, queues=queues, kv_tokens=kv_tokens)
    )


def test_requests_are_bounded_by_their_number() -> None:
    found = flight(2)
    found.take(10**9)
    assert found.may(10**9)
    found.take(1)
    assert not found.may(1)
    found.give(1)
    assert found.may(1)


def test_tokens_are_bounded_by_one_and_a_half_times_the_cache_but_one_row_is_always_let_in() -> (
    None
):
    found = flight(kv_tokens=100)
    assert found.may(10_000)
    found.take(100)
    assert (found.may(50), found.may(51)) == (True, False)
    found.give(100)
    found.take(10_000)
    assert not found.may(1)


@pytest.mark.parametrize(
    ("queued", "bound"),
    [
        (0, 120),  # it ran dry: of 100 that run, 10 end within four steps
        (9, 120),
        (10, 100),
        (40, 100),
        (41, 110),  # half the way to 120
        (300, 110),
    ],
)
def test_the_bound_follows_what_the_engine_lets_wait(queued: float, bound: int) -> None:
    found = flight(100)
    for _ in range(100):
        found.take(1)
    found.adapt({"running": 100, "queued": queued}, mean_tokens=40)
    assert found.bound == bound


def test_the_longer_the_answers_the_fewer_wait_in_the_engine() -> None:
    bounds = []
    for mean_tokens in (10_000, 400, 10, 1):
        found = flight(100)
        for _ in range(100):
            found.take(1)
        found.adapt({"running": 100, "queued": 0}, mean_tokens)
        bounds.append(found.bound)
    assert bounds == [104, 104, 180, 400]


def test_the_bound_falls_to_what_runs_and_a_little() -> None:
    found = flight(1000)
    for _ in range(1000):
        found.take(1)
    for _ in range(40):
        found.adapt({"running": 100, "queued": found.rows - 100}, mean_tokens=40)
    assert 120 <= found.bound <= 121


def test_the_bound_is_raised_four_times_at_most() -> None:
    found = flight(100)
    for _ in range(20):
        while found.may(1):
            found.take(1)
        found.adapt({"running": 100, "queued": 0}, mean_tokens=40)
    assert found.bound == 400


@pytest.mark.parametrize(
    ("queues", "rows", "stats", "mean_tokens"),
    [
        (False, 10, {"running": 10, "queued": 0}, 40.0),
        (True, 9, {"running": 9, "queued": 0}, 40.0),  # the bound is not what holds back
        (True, 10, {}, 40.0),
        (True, 10, {"running": 0, "queued": 10}, 40.0),
        (True, 10, {"running": 10}, 40.0),
        (True, 10, {"running": 10, "queued": 0}, None),  # nothing has ended
    ],
)
def test_the_bound_stays_where_the_engine_says_nothing_of_it(
    queues: bool,  # noqa: FBT001 - a case
    rows: int,
    stats: dict[str, float],
    mean_tokens: float | None,
) -> None:
    found = flight(10, queues=queues)
    for _ in range(rows):
        found.take(1)
    found.adapt(stats, mean_tokens)
    assert found.bound == 10


# --- who is tried apart -------------------------------------------------------------------------


@given(st.integers(1, 400))
def test_suspects_are_tried_in_sixteen_groups_at_most_each_once(count: int) -> None:
    quarantine = Quarantine()
    suspects = [row(name) for name in range(count)]
    assert quarantine.add(suspects) == []
    groups: list[list[Waiting]] = []
    while group := quarantine.pop():
        assert quarantine
        groups.append(group)
    assert not quarantine
    assert len(groups) <= 16
    assert [w.index for group in groups for w in group] == list(range(count))


def test_a_row_that_kills_twice_alone_is_given_up_and_no_other() -> None:
    quarantine = Quarantine()
    bad, good = row(0), row(1)
    assert quarantine.add([bad, good]) == []
    assert quarantine.pop() == [bad]
    assert quarantine.add([bad]) == []
    assert quarantine.pop() == [good]
    assert quarantine.pop() == [bad]
    assert quarantine.add([bad]) == [bad]
    assert quarantine  # until it is said that nothing is left
    assert quarantine.pop() == []
    assert not quarantine


@given(
    st.integers(1, 300).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=4))
    )
)
def test_whichever_rows_kill_they_are_found_and_each_other_row_passes(
    case: tuple[int, set[int]],
) -> None:
    count, killers = case
    quarantine, passed, given_up = Quarantine(), [], []
    quarantine.add([row(name) for name in range(count)] if count > 1 else [row(0), row(-1)])
    while group := quarantine.pop():
        if killers & {w.index for w in group}:
            given_up += quarantine.add(group)
        else:
            passed += group
    assert {w.index for w in given_up} == killers
    assert {w.index for w in passed} - {-1} == set(range(count)) - killers


# --- whether it gets on -------------------------------------------------------------------------


def stalls(signs: Sequence[float], *, until_s: int, idle_until_s: int = 0) -> int | None:
    """The second at which an engine is found dead that gives a sign at each of ``signs``."""
    progress = Progress(0.0)
    for now_s in range(1, until_s + 1):
        if now_s <= idle_until_s:
            progress.idle(now_s)
            continue
        count = sum(at_s <= now_s for at_s in signs)
        if progress.stalled_s(0, {"iterations": count}, now_s) is not None:
            return now_s
    return None


def test_before_the_first_sign_an_engine_has_ten_minutes() -> None:
    assert stalls([], until_s=2000) == 602  # after the first look at it
    assert stalls([590], until_s=700) is None


def test_after_it_two_minutes_or_ten_times_the_longest_gap() -> None:
    assert stalls([2, 3, 4, 5], until_s=2000) == 5 + 121
    slow = [2, *range(50, 500, 50)]
    assert stalls(slow, until_s=2000) == 450 + 501


def test_after_a_slow_first_sign_it_may_take_twice_as_long_again() -> None:
    """A batch of long prompts, and later another one."""
    assert stalls([401, 402, 403], until_s=3000) == 403 + 801
    assert stalls([401, 402, 403, 1100, 1101], until_s=1800) is None


def test_a_slow_engine_that_lives_is_left_alone() -> None:
    assert stalls(range(2, 20_000, 100), until_s=20_000) is None


def test_nothing_is_expected_of_an_idle_engine() -> None:
    assert stalls([], until_s=5000, idle_until_s=4500) is None
    progress = Progress(0.0)
    for now_s in range(1, 5):
        assert progress.stalled_s(0, {"iterations": now_s}, now_s) is None
    progress.idle(5000.0)
    assert progress.stalled_s(0, {"iterations": 4}, 5100.0) is None
    assert progress.stalled_s(0, {"iterations": 4}, 5121.0) == 121.0


@pytest.mark.parametrize("figure", ["iterations", "generated_tokens"])
def test_iterations_tokens_and_rows_are_signs_of_life(figure: str) -> None:
    progress = Progress(0.0)
    for now_s in range(100, 3000, 100):
        assert progress.stalled_s(0, {figure: now_s}, now_s) is None
    for now_s in range(3000, 6000, 100):
        assert progress.stalled_s(now_s, {figure: 0}, now_s) is None


def test_rows_that_the_model_never_saw_do_not_end_its_warm_up() -> None:
    progress = Progress(0.0)
    for rows in range(1, 6):
        assert progress.stalled_s(rows, {"iterations": 0}, float(rows)) is None
    assert progress.stalled_s(5, {"iterations": 0}, 604.0) is None
    assert progress.stalled_s(5, {"iterations": 0}, 606.0) == 601.0


def answers_only(answers: Sequence[int], *, until_s: int, max_tokens: int = 64) -> int | None:
    """As `stalls`, of an engine that gives no sign but its answers."""
    progress = Progress(0.0)
    progress.given(max_tokens)
    for now_s in range(1, until_s + 1):
        rows = sum(at_s <= now_s for at_s in answers)
        if progress.stalled_s(rows, {"running": 8, "queued": 0}, now_s) is not None:
            return now_s
    return None


def test_an_engine_that_has_only_answers_has_ten_minutes_for_each() -> None:
    assert answers_only([2, 3, 4, 5], until_s=2000) == 5 + 601
    assert answers_only(range(2, 20_000, 590), until_s=20_000) is None


def test_an_engine_that_has_only_answers_has_a_second_for_each_token_of_the_longest() -> None:
    assert answers_only([], until_s=5000, max_tokens=4096) == 1 + 4097
    assert answers_only(range(3000, 20_000, 4000), until_s=20_000, max_tokens=4096) is None


def test_an_engine_that_has_only_answers_has_ten_times_the_longest_wait_for_one() -> None:
    assert answers_only([501], until_s=9000) == 501 + 5001
    assert answers_only([501, 4000], until_s=5000) is None


def test_the_time_that_most_answers_took_is_that_of_the_last_two_thousand() -> None:
    latencies = Latencies()
    assert latencies.p95_s() is None
    latencies.note(7.0)
    assert latencies.p95_s() == 7.0
    times = list(range(1, 2001))
    random.Random(1).shuffle(times)
    for seconds in [9e9] * 500 + [float(t) for t in times]:
        latencies.note(seconds)
    assert latencies.p95_s() == 1900.0


# --- the next engine ----------------------------------------------------------------------------


def died(reason: str) -> RunError:
    return RunError(Problem("engine.died", reason))


def keeper(restarts: int, *, replaceable: bool = True) -> EngineKeeper:
    async def start() -> Capabilities:
        return Capabilities(max_in_flight=1, chat_template=False, replaceable=replaceable)

    engine: Any = SimpleNamespace(start=start)
    return EngineKeeper("told", lambda: engine, restarts=restarts, say=lambda _: None)


def test_only_a_dead_engine_is_replaced_and_no_more_often_than_allowed() -> None:
    found = keeper(2)
    assert not found.mends(RunError(Problem("engine.model", "it cannot be read")))
    for left in (2, 1):
        assert found.mends(died("no more")), left
        asyncio.run(found.replace(died("no more"), progress=True))
    assert not found.mends(died("no more"))


def test_an_engine_that_leaves_its_process_useless_is_not_replaced() -> None:
    found = keeper(2, replaceable=False)
    asyncio.run(found.start())
    assert not found.mends(died("no more"))


def test_three_starts_in_a_row_without_a_row_are_the_last_and_the_first_reason_is_told() -> None:
    found = keeper(9)
    asyncio.run(found.replace(died("long ago"), progress=True))
    asyncio.run(found.replace(died("first"), progress=True))
    for _ in range(2):
        asyncio.run(found.replace(died("later"), progress=False))
    with pytest.raises(RunError) as caught:
        asyncio.run(found.replace(died("last"), progress=False))
    assert [p.message for p in caught.value.problems] == ["first"]
    assert found.mends(died("no more"))  # it was not for want of restarts
