"""How long rows go on being begun, and waited for, once a replica knows that its job ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import virtual_time
from dispatching import Scene, scene
from run_making import make_plan

from launcher.rundir import publish
from launcher.runner.replica import ReplicaTask, _until_told_to_leave

WARNED, TOLD = signal.SIGUSR1, signal.SIGTERM
IN_FLIGHT = 4


def work(
    found: Scene,
    signals: Mapping[float, signal.Signals],
    *,
    row_s: float,
    stopped_s: float | None = None,
) -> tuple[bool, float]:
    """Whether the run is done and when its replica left, told so 300 s before the end of the job.

    It answers four rows in ``row_s``; closing takes 30 s of the 300.
    """
    options = {"latency_ms": int(1000 * row_s), "max_in_flight": IN_FLIGHT}
    plan = make_plan(engine_options=options, warn_before_s=300)
    task = ReplicaTask(
        run=found.run, plan_number="0001", replica=0, job="7", restart=0, worker="worker"
    )

    async def working() -> tuple[bool, float]:
        loop = asyncio.get_running_loop()
        for at_s, number in signals.items():
            loop.call_at(at_s, signal.raise_signal, number)
        if stopped_s is not None:
            loop.call_at(stopped_s, publish, found.run.stop_path, b"")
        return await _until_told_to_leave(task, plan, found.dispatcher), loop.time()

    return virtual_time.run(working())


@pytest.fixture
def found(tmp_path: Path) -> Scene:
    return scene(tmp_path, 20, rows_per_unit=40)


@pytest.mark.parametrize(
    ("row_s", "ends_s", "rows"),
    [
        # Begun for 270 s less what a row takes, in whole rounds of four, and all answered.
        (10.0, 1270.0, 508),
        (40.0, 1240.0, 124),
        (100.0, 1200.0, 48),
    ],
)
def test_on_a_warning_rows_are_begun_for_as_long_as_most_can_still_be_answered(
    found: Scene, row_s: float, ends_s: float, rows: int
) -> None:
    done, ended_s = work(found, {1000.0 + 0.25: WARNED}, row_s=row_s)
    assert not done
    assert ended_s == pytest.approx(ends_s, abs=1.0)
    assert found.dispatcher.totals.rows == rows
    assert found.published() == set(range(rows // 40))


def test_what_has_not_ended_by_then_is_cut_off(found: Scene) -> None:
    """Nothing was answered, so nothing is known and no row is begun."""
    done, ended_s = work(found, {100.0: WARNED}, row_s=500.0)
    assert not done
    assert ended_s == pytest.approx(370.0, abs=1.0)
    assert found.dispatcher.totals.rows == 0
    assert found.dispatcher.latencies.p95_s() is None


def test_a_run_that_ends_before_the_job_does_is_done(found: Scene) -> None:
    done, ended_s = work(found, {1900.0: WARNED}, row_s=10.0)
    assert done
    assert ended_s == pytest.approx(2000.0, abs=1.0)
    assert found.run.done_path.exists()


@pytest.mark.parametrize("signals", [{105.0: TOLD}, {50.0: WARNED, 105.0: TOLD}])
def test_who_is_told_to_end_leaves_at_once(
    found: Scene, signals: dict[float, signal.Signals]
) -> None:
    done, ended_s = work(found, signals, row_s=10.0)
    assert (done, ended_s) == (False, 105.0)
    assert found.dispatcher.totals.rows == 40


def test_a_run_that_is_stopped_is_left_within_a_beat(found: Scene) -> None:
    done, ended_s = work(found, {}, row_s=10.0, stopped_s=105.0)
    assert not done
    assert 105.0 <= ended_s <= 107.0


def test_a_warning_that_is_handed_on_again_gives_no_more_time(found: Scene) -> None:
    signals = {1000.25: WARNED, 1200.0: WARNED}
    _, ended_s = work(found, signals, row_s=10.0)
    assert ended_s == pytest.approx(1270.0, abs=1.0)


def test_a_warning_before_the_engine_is_there_ends_it(found: Scene) -> None:
    assert work(found, {0.0: WARNED}, row_s=10.0) == (False, 0.0)
    assert found.dispatcher.totals.rows == 0
