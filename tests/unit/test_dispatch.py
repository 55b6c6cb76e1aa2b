"""Rows to an engine and answers to parts, with an engine that does what a test tells it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
from dispatching import LIMIT_S, ROWS_PER_UNIT, ToldEngine, at_once, scene, scene_of, until, work
from run_making import json_lines, make_identity, make_plan

from launcher.data.leases import Leases
from launcher.errors import OutputError, Problem, RowError, RunError
from launcher.plan import grid
from launcher.plan.types import UnitGrid
from launcher.process import ProcessIds
from launcher.rundir import RunDir, publish
from launcher.runner.keeper import EngineKeeper
from launcher.runner.preparing import InThread
from launcher.runner.replica import ReplicaTask, run_replica


def test_every_row_is_answered_once_in_its_place(tmp_path: Path) -> None:
    found = scene(tmp_path, 5)
    engine = ToldEngine(at_once)
    assert work(found, engine)
    assert found.texts() == [f"row-{n:04}" for n in range(20)]
    assert sorted(engine.asked) == found.texts()
    assert found.dispatcher.totals.rows == 20
    assert found.dispatcher.figures() == {"in_flight": 0, "engine_restarts": 0}
    counts = sorted((c.unit, c.ok, c.error) for c in found.counts)
    assert counts == [(unit, 4, 0) for unit in range(5)]
    assert sum(c.completion_tokens for c in found.counts) == 60


def test_figures_are_those_of_the_engine_that_answers(tmp_path: Path) -> None:
    found = scene(tmp_path, 2)
    released = asyncio.Event()
    engines: list[ToldEngine] = []

    async def first_dying(text: str) -> str:
        if len(engines) == 1:
            raise RunError(Problem("engine.died", "no more"))
        await released.wait()
        return text

    class Counting(ToldEngine):
        def stats(self) -> Mapping[str, float]:
            return {"running": self.held, "queued": 0}

    def make() -> ToldEngine:
        engines.append(Counting(first_dying, window=1))
        return engines[-1]

    async def watched() -> bool:
        assert found.dispatcher.figures() == {}
        keeper = EngineKeeper("told", make, restarts=1)
        await keeper.start()
        rows = InThread(found.dispatcher.identity)
        working = asyncio.ensure_future(found.dispatcher.work(keeper, rows, found.claim()))
        await until(lambda: len(engines) > 1 and engines[1].held == 1)
        expected = {"running": 1, "queued": 0, "in_flight": 1, "engine_restarts": 1}
        assert found.dispatcher.figures() == expected
        released.set()
        return await asyncio.wait_for(working, LIMIT_S)

    assert asyncio.run(watched())


def test_answers_that_come_in_any_order_are_published_in_input_order(tmp_path: Path) -> None:
    found = scene(tmp_path, 2, rows_per_unit=6)

    async def backwards(text: str) -> str:
        await asyncio.sleep(0.05 - 0.004 * int(text[-4:]))
        return text

    assert work(found, ToldEngine(backwards), 12)
    assert found.texts() == [f"row-{n:04}" for n in range(12)]


def test_a_straggler_holds_back_its_own_unit_alone(tmp_path: Path) -> None:
    found = scene(tmp_path, 6)
    released = asyncio.Event()

    async def straggling(text: str) -> str:
        if text == "row-0000":
            await released.wait()
        return text

    async def watched() -> bool:
        unit = found.claim()
        working = asyncio.ensure_future(found.work(ToldEngine(straggling), 2, unit))
        await until(lambda: found.published() == {1, 2, 3, 4, 5})
        assert not working.done()
        released.set()
        return await asyncio.wait_for(working, LIMIT_S)

    assert asyncio.run(watched())
    assert len(found.texts()) == 24


@pytest.mark.parametrize("window", [1, 3, 7])
def test_the_window_is_filled_and_never_exceeded(tmp_path: Path, window: int) -> None:
    found = scene(tmp_path, 6)

    async def slow(text: str) -> str:
        await asyncio.sleep(0.002)
        return text

    engine = ToldEngine(slow)
    assert work(found, engine, window)
    assert engine.most == window


def test_a_row_that_cannot_be_answered_is_an_error_row(tmp_path: Path) -> None:
    found = scene(tmp_path, 2)

    async def picky(text: str) -> str:
        if text == "row-0001":
            raise RowError("prompt_too_long", "9 tokens, the limit is 8")
        return text

    assert work(found, ToldEngine(picky))
    rows = found.part(0)
    assert [row["status"] for row in rows] == ["ok", "error", "ok", "ok"]
    assert rows[1]["error"]["code"] == "prompt_too_long"
    assert sorted((c.ok, c.error) for c in found.counts) == [(3, 1), (4, 0)]


@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("fatal", [0, 5, 11])
def test_a_dead_engine_ends_the_work_with_its_reason(
    tmp_path: Path, window: int, fatal: int
) -> None:
    """Wherever it dies, the last rows included, and however full the window is."""
    found = scene(tmp_path, 3)

    async def dying(text: str) -> str:
        if text == f"row-{fatal:04}":
            raise RunError(Problem("engine.died", "no more"))
        return text

    with pytest.raises(RunError) as caught:
        work(found, ToldEngine(dying), window)
    assert [p.code for p in caught.value.problems] == ["engine.died"]
    assert fatal // ROWS_PER_UNIT not in found.published()


def test_a_dead_engine_is_noticed_while_the_window_is_full_of_rows_that_hang(
    tmp_path: Path,
) -> None:
    found = scene(tmp_path, 3)

    async def hanging(text: str) -> str:
        if text == "row-0002":
            await asyncio.sleep(0.01)
            raise RunError(Problem("engine.died", "no more"))
        await asyncio.Event().wait()
        return text

    with pytest.raises(RunError):
        work(found, ToldEngine(hanging), 4)


def test_a_dead_engine_is_noticed_while_another_worker_has_the_last_unit(tmp_path: Path) -> None:
    found = scene(tmp_path, 2)
    other(found.run, "other")
    assert Leases(found.run, "other").claim(1)

    async def dying(text: str) -> str:
        await asyncio.sleep(0.05)
        raise RunError(Problem("engine.died", "no more"))

    with pytest.raises(RunError):
        work(found, ToldEngine(dying), 8)


def test_a_bug_is_not_swallowed(tmp_path: Path) -> None:
    found = scene(tmp_path, 3)

    async def wrong(text: str) -> str:
        if text == "row-0006":
            raise ZeroDivisionError("a bug")
        return text

    with pytest.raises(ZeroDivisionError):
        work(found, ToldEngine(wrong), 4)
    assert 1 not in found.published()


def test_a_part_that_cannot_be_written_ends_the_work(tmp_path: Path) -> None:
    found = scene(tmp_path, 3)

    async def remove(text: str) -> str:
        if (found.run.path / "parts").exists():
            (found.run.path / "parts").rmdir()
        return text

    with pytest.raises((FileNotFoundError, OutputError)):
        work(found, ToldEngine(remove))


def test_leaving_hands_over_no_more_and_publishes_what_ends(tmp_path: Path) -> None:
    found = scene(tmp_path, 3)
    released = asyncio.Event()

    async def waiting(text: str) -> str:
        await released.wait()
        return text

    engine = ToldEngine(waiting)

    async def left() -> bool:
        unit = found.claim()
        working = asyncio.ensure_future(found.work(engine, 6, unit))
        await until(lambda: engine.held == 6)
        found.dispatcher.leave()
        released.set()
        return await asyncio.wait_for(working, LIMIT_S)

    assert asyncio.run(left()) is False
    assert len(engine.asked) == 6
    assert found.published() == {0}  # rows 4 and 5 belong to a unit that is not whole


def test_leaving_before_the_engine_is_ready_answers_nothing(tmp_path: Path) -> None:
    found = scene(tmp_path, 2)
    engine = ToldEngine(at_once)
    found.dispatcher.leave()
    assert work(found, engine) is False
    assert engine.asked == []


def test_leaving_while_waiting_for_others_does_not_wait_on(tmp_path: Path) -> None:
    found = scene(tmp_path, 2)
    other(found.run, "other")
    assert Leases(found.run, "other").claim(1)

    async def left() -> bool:
        unit = found.claim()
        working = asyncio.ensure_future(found.work(ToldEngine(at_once), 8, unit))
        await until(lambda: found.published() == {0})
        found.dispatcher.leave()
        return await asyncio.wait_for(working, LIMIT_S)

    assert asyncio.run(left()) is False


def test_a_unit_without_rows_is_an_empty_part(tmp_path: Path) -> None:
    data = json_lines([{"text": "x" * 300}, {"text": "y"}])
    cut = UnitGrid(total_bytes=len(data), unit_bytes=64, head_units=len(data) // 64, tail_bytes=64)
    found = scene_of(tmp_path, make_identity(tmp_path, data, grid=cut))
    assert work(found, ToldEngine(at_once))
    assert found.published() == set(grid.units(cut))
    sizes = [len(found.part(unit)) for unit in grid.units(cut)]
    assert sum(sizes) == 2
    assert sizes.count(0) == len(sizes) - 2
    assert len(found.counts) == len(sizes)


def other(run: RunDir, worker: str, *, released: bool = False) -> None:
    """A worker on another host, of whom only its heartbeat is known."""
    process = dataclasses.replace(ProcessIds.of(os.getpid()), host="another-host")
    state = {"counter": 1, "released": released, "process": asdict(process)}
    (run.path / "workers" / f"{worker}.hb").write_text(json.dumps(state))


def test_a_part_that_another_published_first_stands(tmp_path: Path) -> None:
    found = scene(tmp_path, 2)
    theirs = b'{"row": [0, 0], "status": "ok", "theirs": true}\n'

    async def slow(text: str) -> str:
        publish(found.run.part_path(0), theirs)
        return text

    assert work(found, ToldEngine(slow))
    assert found.run.part_path(0).read_bytes() == theirs
    assert [c.unit for c in found.counts] == [1]


def test_units_of_a_worker_that_left_are_done_by_who_is_there(tmp_path: Path) -> None:
    found = scene(tmp_path, 3)
    other(found.run, "gone")
    assert Leases(found.run, "gone").claim(1)
    released = False

    async def slow(text: str) -> str:
        nonlocal released
        if text == "row-0011" and not released:
            released = True
            other(found.run, "gone", released=True)
        return text

    assert work(found, ToldEngine(slow))
    assert found.published() == {0, 1, 2}


def test_published_units_are_not_claimed_again(tmp_path: Path) -> None:
    found = scene(tmp_path, 3)
    publish(found.run.part_path(0), b"")
    publish(found.run.part_path(2), b"")
    unit = found.dispatcher.claim()
    assert unit is not None
    assert unit.unit == 1
    other(found.run, "other")
    assert Leases(found.run, "other").claim(1) is None


def task(run: RunDir, worker: str = "worker") -> ReplicaTask:
    return ReplicaTask(run=run, plan_number="0001", replica=0, job="7", restart=0, worker=worker)


def test_a_replica_answers_all_and_says_so(tmp_path: Path) -> None:
    found = scene(tmp_path, 3)
    assert run_replica(task(found.run))
    assert found.run.done_path.exists()
    assert found.texts() == [f"row-{n:04}" for n in range(12)]


def test_a_run_whose_last_worker_died_before_it_said_done_is_finished(tmp_path: Path) -> None:
    found = scene(tmp_path, 3)
    assert run_replica(task(found.run))
    found.run.done_path.unlink()
    assert run_replica(task(found.run, "next"))
    assert found.run.done_path.exists()


def test_a_replica_that_finds_all_units_held_by_living_others_leaves_and_calls_nothing_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.runner.replica.TAKE_OVER_S", 0.1)
    found = scene(tmp_path, 1)
    other(found.run, "other")
    assert Leases(found.run, "other").claim(0)
    assert not run_replica(task(found.run))
    assert not found.run.done_path.exists()


def test_units_of_a_worker_that_died_on_another_node_are_taken_over_by_the_next_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is left may be its: who left at once would leave them for good."""
    monkeypatch.setattr("launcher.data.leases.TTL_S", 0.05)
    found = scene(tmp_path, 1)
    other(found.run, "dead")
    assert Leases(found.run, "dead").claim(0)
    assert run_replica(task(found.run))
    assert found.run.done_path.exists()


def test_a_changed_input_stops_a_replica_before_it_answers(tmp_path: Path) -> None:
    found = scene(tmp_path, 1)
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "other"}\n')
    with pytest.raises(RunError) as caught:
        run_replica(task(found.run))
    assert [p.code for p in caught.value.problems] == ["input.changed"]
    assert found.published() == set()


def test_a_run_that_was_cancelled_out_of_reach_ends_within_a_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.runner.replica.BEAT_S", 0.01)
    found = scene(tmp_path, 3)
    never = make_plan(engine_options={"latency_ms": 600_000})
    (found.run.path / "plans" / "0001.json").write_text(json.dumps(never.to_json()))
    publish(found.run.stop_path, b"")
    assert not run_replica(task(found.run))
    assert found.run.published_units() == set()
