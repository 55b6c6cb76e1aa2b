"""What a worker leaves to the next one when it ends in the middle of its units."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from pathlib import Path

import pytest
from dispatching import ToldEngine, at_once, scene, work

from launcher.data.open_unit import OpenUnit
from launcher.data.wal import finished
from launcher.errors import Problem, RowError, RunError
from launcher.rundir import RunDir, publish

RELEASED = {"counter": 1, "released": True, "process": {}}


def ended(run: RunDir, worker: str) -> None:
    (run.path / "workers" / f"{worker}.hb").write_text(json.dumps(RELEASED))


def dying_at(row: str) -> ToldEngine:
    async def tell(text: str) -> str:
        if text == row:
            raise RunError(Problem("engine.died", "no more"))
        return text

    return ToldEngine(tell)


def test_what_was_answered_before_an_engine_died_is_not_asked_again(tmp_path: Path) -> None:
    found = scene(tmp_path, 3)
    with pytest.raises(RunError):
        work(found, dying_at("row-0006"), 1)
    assert found.published() == {0}
    assert [json.loads(line)["response"]["text"] for _, _, line in finished(found.run)] == [
        "row-0004",
        "row-0005",
    ]
    ended(found.run, "worker")
    heir, engine = scene(tmp_path, 3, worker="heir"), ToldEngine(at_once)
    assert work(heir, engine) is True
    assert engine.asked == [f"row-{n:04}" for n in range(6, 12)]
    assert heir.texts() == [f"row-{n:04}" for n in range(12)]
    assert list(finished(heir.run)) == []


def test_errors_of_rows_are_kept_for_the_next_worker_too(tmp_path: Path) -> None:
    async def tell(text: str) -> str:
        if text == "row-0000":
            raise RowError("prompt_too_long", "it is")
        if text == "row-0002":
            raise RunError(Problem("engine.died", "no more"))
        return text

    found = scene(tmp_path, 1)
    with pytest.raises(RunError):
        work(found, ToldEngine(tell), 1)
    ended(found.run, "worker")
    heir, engine = scene(tmp_path, 1, worker="heir"), ToldEngine(at_once)
    assert work(heir, engine) is True
    assert engine.asked == ["row-0002", "row-0003"]
    assert [row["status"] for row in heir.part(0)] == ["error", "ok", "ok", "ok"]
    [counts] = heir.counts
    assert (counts.ok, counts.error) == (3, 1)


def test_a_unit_whose_log_went_is_answered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever removed it had made the part, or thought so."""
    found = scene(tmp_path, 2)
    with pytest.raises(RunError):
        work(found, dying_at("row-0002"), 1)
    ended(found.run, "worker")
    heir, engine = scene(tmp_path, 2, worker="heir"), ToldEngine(at_once)
    publish_unit = OpenUnit.publish

    def without_log(unit: OpenUnit) -> object:
        found.run.wal_path(0, 1).unlink(missing_ok=True)
        return publish_unit(unit)

    monkeypatch.setattr(OpenUnit, "publish", without_log)
    assert work(heir, engine) is True
    assert heir.texts() == [f"row-{n:04}" for n in range(8)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_work_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    found = scene(tmp_path, 3)
    real = os.fsync

    def full(descriptor: int) -> None:
        if "/parts/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(number)):
        work(found, ToldEngine(at_once))
    monkeypatch.undo()
    assert found.published() == set()
    assert not list((found.run.path / "parts").iterdir())
    ended(found.run, "worker")
    heir, engine = scene(tmp_path, 3, worker="heir"), ToldEngine(at_once)
    assert work(heir, engine) is True
    assert len(engine.asked) < 12
    assert heir.texts() == [f"row-{n:04}" for n in range(12)]


def test_finished_rows_are_in_the_log_while_others_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.runner.dispatch.FLUSH_S", 0.01)
    monkeypatch.setattr("launcher.runner.dispatch.SYNC_S", 0.02)
    found = scene(tmp_path, 1)

    async def tell(text: str) -> str:
        if text == "row-0003":
            while len(list(finished(found.run))) < 3:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
        return text

    assert work(found, ToldEngine(tell)) is True
    assert found.texts() == [f"row-{n:04}" for n in range(4)]


def test_a_run_in_which_everything_fails_is_stopped(tmp_path: Path) -> None:
    async def tell(text: str) -> str:
        raise RowError("prompt_too_long", "it is")

    found = scene(tmp_path, 100)
    engine = ToldEngine(tell)
    with pytest.raises(RunError) as caught:
        work(found, engine)
    assert [p.code for p in caught.value.problems] == ["run.rows-fail"]
    assert 200 <= len(engine.asked) < 250


def test_an_overlay_asks_for_its_errors_alone(tmp_path: Path) -> None:
    async def tell(text: str) -> str:
        if int(text[-4:]) % 3 == 0:
            raise RowError("engine_error", "once")
        return text

    found = scene(tmp_path, 3)
    assert work(found, ToldEngine(tell)) is True
    found.run.create_overlay([0, 1, 2], ["engine_error"])
    again, engine = scene(tmp_path, 3, worker="again"), ToldEngine(at_once)
    assert work(again, engine) is True
    assert engine.asked == [f"row-{n:04}" for n in (0, 3, 6, 9)]
    assert again.run.published_units(1) == {0, 1, 2}
    assert [counts.overlay for counts in again.counts] == [1, 1, 1]


def test_whoever_finishes_one_pass_goes_on_with_the_next(tmp_path: Path) -> None:
    found = scene(tmp_path, 2)
    publish(found.run.part_path(0), b'{"row": [0, 0], "status": "error", "error": {"code": "x"}}\n')
    found.run.create_overlay([0], None)
    engine = ToldEngine(at_once)
    assert work(found, engine) is True
    assert engine.asked == ["row-0004", "row-0005", "row-0006", "row-0007", "row-0000"]


def test_units_wait_for_a_disk_that_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an engine that is faster fills the memory with complete units."""
    found, most, room = scene(tmp_path, 30), 0, threading.Lock()
    publish_unit = OpenUnit.publish

    def slowly(unit: OpenUnit) -> object:
        nonlocal most
        with room:
            most = max(most, len(found.dispatcher._publishing))
            return publish_unit(unit)

    monkeypatch.setattr(OpenUnit, "publish", slowly)
    assert work(found, ToldEngine(at_once)) is True
    assert 1 < most <= 5
