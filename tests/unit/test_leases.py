"""Who gets a unit, and when another may take it over."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from run_making import make_run

from launcher.data.leases import TTL_S, Heartbeat, Leases
from launcher.process import ProcessIds
from launcher.rundir import RunDir

ELSEWHERE = dataclasses.replace(ProcessIds.of(os.getpid()), host="another-host")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def beat(
    run: RunDir,
    worker: str,
    counter: int,
    *,
    process: ProcessIds = ELSEWHERE,
    released: bool = False,
) -> None:
    state = {"counter": counter, "released": released, "process": asdict(process)}
    (run.path / "workers" / f"{worker}.hb").write_text(json.dumps(state))


def test_a_unit_is_claimed_once_by_one_worker(run: RunDir) -> None:
    a, b = Leases(run, "a"), Leases(run, "b")
    beat(run, "a", 1)
    beat(run, "b", 1)
    assert a.claim(0) == 1
    assert not b.claim(0)
    assert b.claim(1)
    assert (run.path / "leases" / "u000000.g1").read_text() == "a"


def test_a_unit_that_its_own_worker_gave_up_is_the_next_generation(run: RunDir) -> None:
    worker = Leases(run, "a")
    assert (worker.claim(0), worker.claim(0)) == (1, 2)


def test_a_worker_that_released_its_heartbeat_is_replaced_at_once(run: RunDir) -> None:
    with Heartbeat(run, "a"):
        assert Leases(run, "a").claim(0)
        assert not Leases(run, "b").claim(0)
    assert Leases(run, "b").claim(0)
    assert (run.path / "leases" / "u000000.g2").read_text() == "b"


def test_a_worker_whose_process_was_killed_is_replaced_at_once(
    run: RunDir, child: subprocess.Popen[bytes]
) -> None:
    beat(run, "a", 1, process=ProcessIds.of(child.pid))
    assert Leases(run, "a").claim(0)
    other = Leases(run, "b", clock=Clock())
    assert not other.claim(0)
    child.kill()
    child.wait()
    assert other.claim(0)


def test_a_counter_that_stands_still_is_death_after_the_limit_and_not_before(run: RunDir) -> None:
    beat(run, "a", 5)
    assert Leases(run, "a").claim(0)
    clock = Clock()
    other = Leases(run, "b", clock=clock)
    assert not other.claim(0)
    clock.now += TTL_S
    assert not other.claim(0)
    clock.now += 0.1
    assert other.claim(0)


def test_a_rising_counter_is_life_however_long_it_takes(run: RunDir) -> None:
    assert Leases(run, "a").claim(0)
    clock = Clock()
    other = Leases(run, "b", clock=clock)
    for counter in range(50):
        beat(run, "a", counter)
        assert not other.claim(0)
        clock.now += TTL_S - 1


def test_a_counter_seen_for_the_first_time_is_given_the_whole_limit(run: RunDir) -> None:
    beat(run, "a", 5)
    assert Leases(run, "a").claim(0)
    clock = Clock(now=10 * TTL_S)  # an observer that has been up for long
    assert not Leases(run, "b", clock=clock).claim(0)


def test_a_living_process_of_this_host_is_judged_by_its_counter_too(run: RunDir) -> None:
    """A worker that hangs for good must not keep its units for good."""
    beat(run, "a", 1, process=ProcessIds.of(os.getpid()))
    assert Leases(run, "a").claim(0)
    clock = Clock()
    other = Leases(run, "b", clock=clock)
    assert not other.claim(0)
    clock.now += TTL_S + 1
    assert other.claim(0)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\xff", b"null", b"{}", b'{"counter": 1}', b'{"process": {}}']
)
def test_a_heartbeat_that_cannot_be_read_is_judged_by_the_clock(
    run: RunDir, content: bytes | None
) -> None:
    assert Leases(run, "a").claim(0)
    if content is not None:
        (run.path / "workers" / "a.hb").write_bytes(content)
    clock = Clock()
    other = Leases(run, "b", clock=clock)
    assert not other.claim(0)
    clock.now += TTL_S + 1
    assert other.claim(0)


def test_a_heartbeat_that_comes_after_the_lease_saves_it(run: RunDir) -> None:
    assert Leases(run, "a").claim(0)
    clock = Clock()
    other = Leases(run, "b", clock=clock)
    assert not other.claim(0)
    clock.now += TTL_S + 1
    beat(run, "a", 1)
    assert not other.claim(0)


def test_a_chain_of_dead_owners_is_walked_to_its_end(run: RunDir) -> None:
    for number, worker in enumerate("abc"):
        beat(run, worker, 1, released=True)
        assert Leases(run, worker).claim(0), number
    beat(run, "d", 1)
    assert Leases(run, "d").claim(0)
    assert not Leases(run, "e").claim(0)
    assert (run.path / "leases" / "u000000.g4").read_text() == "d"


def test_only_one_of_two_heirs_gets_the_unit(run: RunDir) -> None:
    beat(run, "dead", 1, released=True)
    beat(run, "b", 1)
    beat(run, "c", 1)
    assert Leases(run, "dead").claim(0)
    assert [Leases(run, heir).claim(0) for heir in "bc"] == [2, None]


def test_a_heartbeat_names_its_process_and_rises(run: RunDir) -> None:
    path = run.path / "workers" / "a.hb"
    with Heartbeat(run, "a"):
        first = json.loads(path.read_bytes())
        assert not first["released"]
        assert ProcessIds(**first["process"]) == ProcessIds.of(os.getpid())
    last = json.loads(path.read_bytes())
    assert last["released"]
    assert last["counter"] > first["counter"]


def test_a_heartbeat_that_cannot_say_it_ended_hides_no_reason_why(run: RunDir) -> None:
    def fail() -> None:
        shutil.rmtree(run.path / "workers")
        raise RuntimeError("the reason")

    with pytest.raises(RuntimeError, match="the reason"), Heartbeat(run, "a"):
        fail()


@pytest.mark.parametrize(
    ("worker", "replaced"),
    [
        ("7_1.10.s0.bb", True),
        ("7_1.1.s0.bb", False),
        ("7_1.2.s1.bb", False),
        ("7_2.10.s0.bb", False),
        ("7.10.s0.bb", False),
    ],
)
def test_only_a_later_start_of_the_same_job_replaces_its_earlier_one_at_once(
    run: RunDir, worker: str, *, replaced: bool
) -> None:
    """A requeued job's earlier start has ended, even if its node is not to be asked any more."""
    owner = "7_1.2.s0.aa"
    beat(run, owner, 1)
    assert Leases(run, owner).claim(0)
    assert Leases(run, worker).claim(0) == (2 if replaced else None)


# --- units that are shared ------------------------------------------------------------------------


def test_a_shared_unit_is_anybodys_and_says_who_has_begun_what(run: RunDir) -> None:
    beat(run, "a", 1)
    a, b = Leases(run, "a"), Leases(run, "b")
    assert a.claim(0) == 1
    a.share(0, 1, [(0, 5), (0, 70)])
    assert b.claim(0) == 3
    assert b.elsewhere(0, 3) == {(0, 5): "a", (0, 70): "a"}
    beat(run, "b", 1)
    assert a.claim(0) is None  # b has it now


def test_who_shared_a_unit_may_take_it_again_and_waits_for_its_own_rows(run: RunDir) -> None:
    a = Leases(run, "a")
    assert a.claim(0) == 1
    a.share(0, 1, [(0, 5)])
    assert a.claim(0) == 3
    assert a.elsewhere(0, 3) == {(0, 5): "a"}


@pytest.mark.parametrize(("most_shared", "generation"), [(0, None), (1, None), (2, 5), (None, 5)])
def test_a_unit_that_was_shared_more_often_is_left_for_later(
    run: RunDir, most_shared: int | None, generation: int | None
) -> None:
    a = Leases(run, "a")
    for number in (1, 3):
        assert a.claim(0) == number
        a.share(0, number, [])
    assert a.claim(0, most_shared) == generation


def test_rows_of_one_who_shared_and_died_are_nobodys(run: RunDir) -> None:
    a, b = Leases(run, "a"), Leases(run, "b")
    assert a.claim(0) == 1
    a.share(0, 1, [(0, 5)])
    beat(run, "a", 2, released=True)
    assert b.claim(0) == 3
    assert b.elsewhere(0, 3) == {}


@pytest.mark.parametrize("content", ["", "shared", "shared [[0,", "shared [[0,5],[0"])
def test_a_shared_lease_that_a_crash_has_cut_makes_rows_be_redone_and_nothing_worse(
    run: RunDir, content: str
) -> None:
    beat(run, "a", 1)
    assert Leases(run, "a").claim(0) == 1
    run.lease_path(0, 2).write_text(content)
    clock = Clock()
    b = Leases(run, "b", clock=clock)
    generation = b.claim(0)
    while generation is None:  # what is left of it names nobody who could be seen to live
        assert clock.now < 1000 + 3 * TTL_S
        clock.now += TTL_S + 1
        generation = b.claim(0)
    assert generation == 3
    assert b.elsewhere(0, 3) == {}
