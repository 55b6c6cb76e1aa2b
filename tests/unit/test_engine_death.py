"""What becomes of rows when the engine dies, hangs or fails on them, on a clock that jumps."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import virtual_time
from dispatching import Scene, scene
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.echo import EchoEngine
from launcher.errors import Problem, RowError, RunError
from launcher.plan.types import Cut
from launcher.runner.keeper import EngineKeeper
from launcher.runner.preparing import InThread
from launcher.runner.ready import Prepared

NEVER_S = 10.0**9


@dataclass
class World:
    """What the engines of one replica do, one after the other, and what was asked of them.

    Attributes
    ----------
    kill
        Rows that an engine dies of, and of those that it has then, ``hang`` hear nothing of it.
    dies_after
        After how many answers the n-th engine dies, if not later.
    took_s
        How long an answer takes.
    held
        By engine, the rows that it had at one time, the last come last: one more for each row.
    """

    kill: frozenset[str] = frozenset()
    hang: bool = False
    dies_after: Mapping[int, int] = field(default_factory=dict)
    fails: dict[str, list[str]] = field(default_factory=dict)
    took_s: Callable[[str], float] = lambda _: 1.0
    start_s: float = 0.0
    unstartable: int = 10**9
    steps: bool = True
    held: list[list[list[str]]] = field(default_factory=list)

    @property
    def deaths(self) -> int:
        return len(self.held) - 1

    def rows(self, engine: int) -> list[str]:
        """In the order in which they came."""
        return [held[-1] for held in self.held[engine]]

    @property
    def asked(self) -> list[list[frozenset[str]]]:
        return [[frozenset(held) for held in engine] for engine in self.held]


class Mortal:
    """One engine of a `World`."""

    def __init__(self, world: World, window: int) -> None:
        self._world, self._window = world, window
        self._number = len(world.held)
        world.held.append([])
        self._held: dict[str, asyncio.Future[None]] = {}
        self._answers = 0
        self._gone: Problem | None = None

    async def start(self) -> Capabilities:
        if self._number >= self._world.unstartable:
            raise RunError(Problem("gpu.lost", "the GPU has fallen off the bus"))
        await asyncio.sleep(self._world.start_s)
        return Capabilities(max_in_flight=self._window, chat_template=False)

    async def generate(self, request: Request) -> Completion:
        text = request.text or ""
        self._check_alive()
        self._held[text] = asyncio.get_running_loop().create_future()
        self._world.held[self._number].append(list(self._held))
        try:
            await asyncio.wait([self._held[text]], timeout=self._world.took_s(text))
            if text in self._world.kill:
                self._die()
            if self._gone and self._world.hang and text not in self._world.kill:
                await asyncio.sleep(NEVER_S)
            self._check_alive()
            if left := self._world.fails.get(text):
                raise RowError(left.pop(0), "it is")
            self._answers += 1
            if self._answers > self._world.dies_after.get(self._number, 10**9):
                self._die()
                self._check_alive()
        finally:
            del self._held[text]
        return Completion(text=text, finish_reason="stop", prompt_tokens=2, completion_tokens=3)

    def _check_alive(self) -> None:
        if self._gone is not None:
            raise RunError(self._gone)

    def _die(self) -> None:
        self._gone = Problem("engine.died", f"engine {self._number} is no more")
        for held in self._held.values():
            if not held.done():
                held.set_result(None)

    async def abort(self, request_id: str) -> None:
        raise NotImplementedError

    def stats(self) -> Mapping[str, float]:
        now_s = asyncio.get_running_loop().time()
        return {"iterations": now_s} if self._world.steps else {}

    async def close(self) -> None:
        await asyncio.sleep(0)


def work(
    found: Scene,
    world: World,
    window: int = 8,
    *,
    restarts: int = 8,
    make_rows: type[InThread] = InThread,
    beside: Callable[[], None] = lambda: None,
    beside_at_s: float = NEVER_S,
) -> tuple[bool, float]:
    """Whether the run is done, and when the work ended."""

    async def working() -> tuple[bool, float]:
        loop = asyncio.get_running_loop()
        unit = found.claim()
        keeper = EngineKeeper(
            "mortal", lambda: Mortal(world, window), restarts=restarts, say=lambda _: None
        )
        await keeper.start()
        rows = make_rows(found.dispatcher.identity)
        timer = loop.call_later(beside_at_s, beside)
        try:
            return await found.dispatcher.work(keeper, rows, unit), loop.time()
        finally:
            timer.cancel()
            rows.close()
            await keeper.close()

    return virtual_time.run(working())


def statuses(found: Scene) -> dict[str, int]:
    """How many rows ended how: ``ok``, or the code of an error."""
    ends: dict[str, int] = {}
    for unit in found.published():
        for row in found.part(unit):
            end = "ok" if row["status"] == "ok" else row["error"]["code"]
            ends[end] = ends.get(end, 0) + 1
    return ends


def answered(found: Scene) -> list[str]:
    rows = [row for unit in sorted(found.published()) for row in found.part(unit)]
    return [row["response"]["text"] for row in rows if row["status"] == "ok"]


def names(*rows: int) -> frozenset[str]:
    return frozenset(f"row-{n:04}" for n in rows)


# --- rows that fail -----------------------------------------------------------------------------


def test_a_row_on_which_the_engine_failed_is_asked_once_more_at_the_end_of_its_unit(
    tmp_path: Path,
) -> None:
    found = scene(tmp_path, 3, rows_per_unit=6)
    world = World(fails={"row-0001": ["engine_error"]})
    assert work(found, world, 1)[0]
    assert world.rows(0)[:7] == [f"row-{n:04}" for n in (0, 1, 2, 3, 4, 5, 1)]
    assert statuses(found) == {"ok": 18}


def test_a_row_on_which_it_fails_again_is_an_error_and_not_asked_a_third_time(
    tmp_path: Path,
) -> None:
    found = scene(tmp_path, 2)
    world = World(fails={"row-0001": ["engine_error"] * 9})
    assert work(found, world)[0]
    assert world.rows(0).count("row-0001") == 2
    assert statuses(found) == {"ok": 7, "engine_error": 1}


@pytest.mark.parametrize("code", ["prompt_too_long", "template_error", "cancelled"])
def test_a_row_that_is_itself_at_fault_is_asked_once(tmp_path: Path, code: str) -> None:
    found = scene(tmp_path, 2)
    world = World(fails={"row-0001": [code]})
    assert work(found, world)[0]
    assert world.rows(0).count("row-0001") == 1
    assert statuses(found) == {"ok": 7, code: 1}


# --- engines that die ---------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 8, 50])
@pytest.mark.parametrize("hang", [False, True])
def test_after_a_death_every_row_is_answered_once(tmp_path: Path, window: int, hang: bool) -> None:  # noqa: FBT001 - a case
    found = scene(tmp_path, 25)
    world = World(dies_after={0: 30}, hang=hang)
    assert work(found, world, window)[0]
    assert answered(found) == [f"row-{n:04}" for n in range(100)]
    assert world.deaths == 1
    assert found.dispatcher.totals.rows == 100
    assert found.dispatcher._flight.rows == 0


def test_those_in_flight_are_tried_in_sixteen_groups_with_nothing_beside_them(
    tmp_path: Path,
) -> None:
    found = scene(tmp_path, 50)
    world = World(dies_after={0: 10}, took_s=lambda text: 1.0 + int(text[-4:]) % 7)
    assert work(found, world, 64)[0]
    suspects = world.asked[0][-1]
    assert len(suspects) == 64
    groups: list[frozenset[str]] = []
    for held in itertools.takewhile(lambda held: held <= suspects, world.asked[1]):
        if groups and held > groups[-1]:
            groups[-1] = held
        else:
            groups.append(held)
    assert [len(group) for group in groups] == [4] * 16
    assert frozenset().union(*groups) == suspects
    assert all(held & suspects == frozenset() for held in world.asked[1][64:])
    assert answered(found) == [f"row-{n:04}" for n in range(200)]


@pytest.mark.parametrize("killer", [0, 13, 77, 99])
@pytest.mark.parametrize("window", [1, 8, 64])
def test_a_row_that_kills_twice_alone_is_an_error_and_the_others_are_answered(
    tmp_path: Path, killer: int, window: int
) -> None:
    """Be it the first of all, so that nothing was finished before."""
    found = scene(tmp_path, 25)
    world = World(kill=names(killer))
    assert work(found, world, window)[0]
    assert statuses(found) == {"ok": 99, "engine_crash": 1}
    [row] = [r for r in found.part(killer // 4) if r["status"] == "error"]
    assert row["error"]["message"].startswith("the engine died twice while it had this row alone")
    alone = [engine[-1] == names(killer) for engine in world.asked[:-1]]
    assert alone.count(True) == 2
    assert world.deaths <= 4


def test_what_kills_the_engine_is_not_given_to_it_beside_others_again(tmp_path: Path) -> None:
    found = scene(tmp_path, 25)
    world = World(kill=names(7), took_s=lambda text: 5.0 if text == "row-0007" else 1.0)
    assert work(found, world, 8)[0]
    assert {held for engine in world.asked[1:] for held in engine if names(7) <= held} == {names(7)}


def test_two_killers_at_the_start_are_both_found(tmp_path: Path) -> None:
    found = scene(tmp_path, 10)
    world = World(kill=names(0, 1))
    assert work(found, world, 8)[0]
    assert statuses(found) == {"ok": 38, "engine_crash": 2}


def test_with_no_restart_left_the_reason_ends_the_work(tmp_path: Path) -> None:
    found = scene(tmp_path, 25)
    world = World(dies_after=dict.fromkeys(range(9), 20))
    with pytest.raises(RunError) as caught:
        work(found, world, 4, restarts=2)
    assert [p.message for p in caught.value.problems] == ["engine 2 is no more"]
    assert world.deaths == 2


def test_an_engine_that_dies_whatever_it_is_asked_is_given_up_for_what_it_first_died_of(
    tmp_path: Path,
) -> None:
    found = scene(tmp_path, 25)
    world = World(dies_after=dict.fromkeys(range(99), 0))
    with pytest.raises(RunError) as caught:
        work(found, world, 8, restarts=99)
    assert [p.message for p in caught.value.problems] == ["engine 0 is no more"]
    assert world.deaths == 3
    assert statuses(found) == {}


def test_a_start_that_fails_after_a_death_ends_the_work_with_its_reason(tmp_path: Path) -> None:
    found = scene(tmp_path, 25)
    with pytest.raises(RunError) as caught:
        work(found, World(dies_after={0: 20}, unstartable=1))
    assert [p.code for p in caught.value.problems] == ["gpu.lost"]


def test_leaving_while_it_is_started_again_does_not_wait_for_the_start(tmp_path: Path) -> None:
    found = scene(tmp_path, 25)
    world = World(dies_after={0: 20}, start_s=300.0)
    done, ended_s = work(found, world, beside=found.dispatcher.leave, beside_at_s=50.0)
    assert not done
    assert ended_s == pytest.approx(350.0, abs=1.0)
    assert world.rows(1) == []
    assert found.dispatcher.totals.rows == 20
    assert statuses(found).keys() == {"ok"}


class Torn(InThread):
    """Rows whose input changes before the fourth unit."""

    async def some(self, unit: int) -> list[Prepared]:
        if unit == 3:
            raise RunError(Problem("input.changed", "it is shorter"))
        return await super().some(unit)


def test_an_error_of_the_input_begins_no_more_rows_and_no_other_engine(tmp_path: Path) -> None:
    found = scene(tmp_path, 25)
    found.dispatcher.order = "input"  # some rows wait, then
    world = World()
    with pytest.raises(RunError) as caught:
        work(found, world, 5, make_rows=Torn)
    assert [p.code for p in caught.value.problems] == ["input.changed"]
    assert world.deaths == 0
    assert len(world.rows(0)) < 12
    assert len(world.held[0][-1]) == 5
    assert found.dispatcher._flight.rows == 0


@settings(max_examples=30)
@given(
    kill=st.frozensets(st.integers(0, 39), max_size=1),
    dies_after=st.dictionaries(st.integers(0, 5), st.integers(1, 30), max_size=3),
    hang=st.booleans(),
    window=st.sampled_from([1, 3, 17, 40]),
    fails=st.frozensets(st.integers(0, 39), max_size=5),
    seed=st.integers(0, 99),
)
def test_every_row_is_answered_once_whatever_dies_when(
    kill: frozenset[int],
    dies_after: dict[int, int],
    hang: bool,  # noqa: FBT001 - a case
    window: int,
    fails: frozenset[int],
    seed: int,
) -> None:
    world = World(
        kill=names(*kill),
        dies_after=dies_after,
        hang=hang,
        fails={name: ["engine_error"] for name in names(*fails - kill)},
        took_s=lambda text: 1.0 + (int(text[-4:]) * 7919 + seed) % 11,
    )
    with TemporaryDirectory() as folder:
        found = scene(Path(folder), 4, rows_per_unit=10)
        assert work(found, world, window, restarts=99)[0]
        ends = statuses(found)
        crashed = ends.pop("engine_crash", 0)
        assert len(kill) <= crashed <= len(kill) + len(dies_after)
        assert ends == {"ok": 40 - crashed}
        texts = answered(found)
        assert texts == sorted(set(texts))
        assert found.dispatcher.totals.rows == 40
        assert found.dispatcher._flight.rows == 0


# --- engines that hang --------------------------------------------------------------------------


def test_an_engine_that_hangs_is_dead_and_its_rows_are_tried_again(tmp_path: Path) -> None:
    found = scene(tmp_path, 10)
    hung: list[str] = []

    def took_s(text: str) -> float:
        if text == "row-0020" and not hung:
            hung.append(text)
            return NEVER_S
        return 1.0

    done, ended_s = work(found, World(took_s=took_s, steps=False), 4)
    assert done
    assert hung
    assert answered(found) == [f"row-{n:04}" for n in range(40)]
    assert 600.0 < ended_s < 700.0  # it tells nothing between its answers


def test_a_hanging_engine_that_may_not_be_replaced_ends_the_work(tmp_path: Path) -> None:
    found = scene(tmp_path, 10)
    with pytest.raises(RunError) as caught:
        work(found, World(took_s=lambda _: NEVER_S, steps=False), restarts=0)
    assert [p.code for p in caught.value.problems] == ["engine.died"]
    assert "no sign of life for 60" in caught.value.problems[0].message


def test_an_engine_that_takes_an_hour_for_a_row_and_iterates_is_left_alone(tmp_path: Path) -> None:
    found = scene(tmp_path, 1)
    world = World(took_s=lambda _: 3000.0)
    done, ended_s = work(found, world)
    assert (done, world.deaths) == (True, 0)
    assert ended_s >= 3000.0


@pytest.mark.parametrize("window", [1, 8])
def test_an_engine_that_has_only_answers_and_takes_minutes_for_each_is_left_alone(
    tmp_path: Path, window: int
) -> None:
    found = scene(tmp_path, 5)
    world = World(took_s=lambda _: 590.0, steps=False)
    done, ended_s = work(found, world, window)
    assert (done, world.deaths) == (True, 0)
    assert ended_s >= 590.0 * 20 / window


def test_echo_may_take_minutes_for_each_answer(tmp_path: Path) -> None:
    found = scene(tmp_path, 2)

    async def working() -> bool:
        options = {"latency_ms": 300_000.0, "max_in_flight": 2}
        echo = EchoEngine(EngineSetup(model_path=None, cut=Cut(), options=options))
        unit = found.claim()
        keeper = EngineKeeper("echo", lambda: echo)
        await keeper.start()
        return await found.dispatcher.work(keeper, InThread(found.dispatcher.identity), unit)

    assert virtual_time.run(working())
    assert statuses(found) == {"ok": 8}
