"""Workers that wake after others took them for dead, and what a kill may lose at most."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping

import pytest
from faults.fault_scene import LIMIT_S, QUICK, Scene, Worker, Zygote, kept, make_scene

from launcher.rundir import RunDir

IMPATIENT = QUICK | {"launcher.data.leases:TTL_S": 0.2, "launcher.data.leases:BEAT_S": 0.02}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder, units=3, rows_per_unit=12, latency_ms=20, max_in_flight=4)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def stopped(scene: Scene, zygote: Zygote, run: RunDir, job: str, rows: int) -> Worker:
    """A worker that stands still once so many rows of the run are finished."""
    worker = zygote.start(run, job=job, constants=IMPATIENT)
    until(lambda: len(kept(run)) >= rows or worker.reap(block=False) is not None)
    worker.send(signal.SIGSTOP)
    assert worker.reap(block=False) is None, worker.text()
    assert len(run.published_units()) < len(scene.parts)
    return worker


def inodes(run: RunDir) -> Mapping[str, int]:
    return {path.name: path.stat().st_ino for path in (run.path / "parts").glob("u*")}


@pytest.mark.parametrize("rows", [1, 8, 14, 20])
def test_a_zombie_that_wakes_after_its_units_were_published_changes_nothing(
    scene: Scene, zygote: Zygote, rows: int
) -> None:
    run = scene.fresh()
    zombie = stopped(scene, zygote, run, "1", rows)
    heir = zygote.start(run, job="2", constants=IMPATIENT)
    assert heir.wait() == 0, heir.text()
    scene.check_done(run, kills=1)  # it may stand still between making a file and naming it
    before = inodes(run)
    zombie.send(signal.SIGCONT)
    assert zombie.wait() == 0, zombie.text()
    scene.check_done(run)
    assert inodes(run) == before


@pytest.mark.parametrize("rows", [1, 8, 14])
def test_an_heir_whose_zombie_publishes_first_changes_nothing(
    scene: Scene, zygote: Zygote, rows: int
) -> None:
    run = scene.fresh()
    zombie = stopped(scene, zygote, run, "1", rows)
    heir = stopped(scene, zygote, run, "2", rows + 6)
    zombie.send(signal.SIGCONT)
    assert zombie.wait() == 0, zombie.text()
    scene.check_parts(run)
    before = inodes(run)
    assert len(before) == len(scene.parts)
    heir.send(signal.SIGCONT)
    assert heir.wait() == 0, heir.text()
    scene.check_done(run)
    assert inodes(run) == before


def test_a_zombie_killed_the_moment_it_wakes_leaves_nothing_that_another_start_does_not_remove(
    scene: Scene, zygote: Zygote
) -> None:
    run = scene.fresh()
    zombie = stopped(scene, zygote, run, "1", 8)
    assert zygote.start(run, job="2", constants=IMPATIENT).wait() == 0
    zombie.send(signal.SIGCONT)
    time.sleep(0.01)
    zombie.send(signal.SIGKILL)
    zombie.reap(block=True)
    assert zygote.start(run, job="3", constants=IMPATIENT).wait() == 0
    scene.check_done(run, kills=1)


@pytest.fixture(scope="module")
def one_unit(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("long")
    return make_scene(folder, units=1, rows_per_unit=400, latency_ms=10, max_in_flight=4)


@pytest.mark.parametrize("alive_s", [0.45, 0.6, 0.75])
def test_a_kill_loses_no_row_that_was_finished_longer_ago_than_a_flush(
    one_unit: Scene, zygote: Zygote, alive_s: float
) -> None:
    run = one_unit.fresh()
    flush_s, slack_s = 0.1, 0.3
    worker = zygote.start(run, constants=IMPATIENT | {"launcher.runner.dispatch:FLUSH_S": flush_s})
    until(worker.finished)
    time.sleep(alive_s)
    killed = time.monotonic()
    worker.send(signal.SIGKILL)
    worker.reap(block=True)
    assert run.published_units() == set()
    old = {row for when, row in worker.finished() if when < killed - flush_s - slack_s}
    assert old
    assert old <= kept(run)
