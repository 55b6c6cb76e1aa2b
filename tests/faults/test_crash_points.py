"""A worker that is killed at any system call that touches its run, and one that goes on.

strace delivers the kill on entering a call, which is not made then. So between them the kills
before each call leave every state on disk that a killed worker can leave, but for a write that
was cut short; see test_wal_damage.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.fault_scene import Scene, Zygote, kept
from faults.injection import CALLS, STEADY, disturbed, each, points


def crash(scene: Scene, zygote: Zygote, call: str, point: int, *, links: bool) -> bool:
    """Kill a worker there and let another go on; whether the first one was killed."""
    run, worker = disturbed(scene, zygote, call, f"signal=KILL:when={point}", links=links)
    assert worker.wait() in (0, -9), worker.text()
    scene.check_parts(run)
    scene.check_strangers(run)
    before = kept(run)
    again = zygote.start(run, constants=STEADY, job="2")
    assert again.wait() == 0, again.text()
    scene.check_done(run, kills=scene.kills + 1)
    scene.check_strangers(run)
    assert sorted(row for _, row in again.finished()) == sorted(scene.rows - before)
    return worker.wait() != 0


def crash_at_each(
    scene: Scene, zygotes: list[Zygote], call: str, log: Path, *, links: bool = True
) -> None:
    found = points(scene, zygotes[0], call, log, links=links)
    killed = each(zygotes, found, lambda zygote, n: crash(scene, zygote, call, n, links=links))
    # The last ones may not come: how often a log is written depends on the clock.
    assert sum(killed) >= len(killed) / 2


@pytest.mark.parametrize("call", CALLS)
def test_a_worker_killed_at_any_call_loses_nothing_that_it_wrote(
    scene: Scene, zygotes: list[Zygote], tmp_path: Path, call: str
) -> None:
    crash_at_each(scene, zygotes, call, tmp_path / "strace.log")


@pytest.mark.parametrize("call", ["rename", "openat", "write"])
def test_nor_does_one_where_there_are_no_hard_links(
    scene: Scene, zygotes: list[Zygote], tmp_path: Path, call: str
) -> None:
    """Names come by rename there, and leases are made empty and written then."""
    crash_at_each(scene, zygotes, call, tmp_path / "strace.log", links=False)


@pytest.mark.parametrize("call", ["write", "fsync", "link", "unlink", "openat"])
def test_nor_does_one_that_took_units_over(
    inherited: Scene, zygotes: list[Zygote], tmp_path: Path, call: str
) -> None:
    crash_at_each(inherited, zygotes, call, tmp_path / "strace.log")
