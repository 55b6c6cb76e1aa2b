"""How files appear in a run directory, and what is read from it."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from run_making import make_identity, make_plan, make_run

from launcher.errors import OutputError, SpecError
from launcher.rundir import RunDir, publish, replace


class Crash(BaseException):
    """The process died here."""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_first_writer_wins_and_nothing_else_is_left(tmp_path: Path) -> None:
    final = tmp_path / "part"
    assert publish(final, b"first")
    assert not publish(final, b"second")
    assert final.read_bytes() == b"first"
    assert names(tmp_path) == ["part"]


def test_an_empty_file_can_be_published(tmp_path: Path) -> None:
    assert publish(tmp_path / "part", b"")
    assert (tmp_path / "part").read_bytes() == b""


def test_data_larger_than_one_write_arrives_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    data = bytes(range(256)) * 3
    assert publish(tmp_path / "part", data)
    assert (tmp_path / "part").read_bytes() == data


def test_a_published_file_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        publish(tmp_path / "part", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "part").stat().st_mode & 0o777 == 0o644


def test_a_missing_directory_is_an_error_and_not_a_lost_race(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "missing" / "part", b"x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_of_link_is_raised_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match=rf"Errno {number}\b"):
        publish(tmp_path / "part", b"x")
    assert names(tmp_path) == []


def test_a_link_that_worked_and_said_it_did_not_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def retransmitted(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "exists")

    monkeypatch.setattr(os, "link", retransmitted)
    assert publish(tmp_path / "part", b"x")
    assert names(tmp_path) == ["part"]


def test_replace_swaps_the_whole_file(tmp_path: Path) -> None:
    replace(tmp_path / "hb", b"old and longer")
    replace(tmp_path / "hb", b"new")
    assert (tmp_path / "hb").read_bytes() == b"new"
    assert names(tmp_path) == ["hb"]


STEPS = ("open", "write", "fsync", "close", "link")


def crash_after(monkeypatch: pytest.MonkeyPatch, survives: int) -> Callable[[], bool]:
    """Every call of `STEPS` in ``os``, but the first ``survives``, is death, before or after it."""
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2 * survives + 1:
                raise Crash
            result = real(*args, **keywords)
            calls += 1
            if calls == 2 * survives + 2:
                raise Crash
            return result

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    return lambda: calls > 2 * survives


@pytest.mark.parametrize("survives", range(12))
def test_a_crash_at_any_step_leaves_a_part_whole_or_absent(
    survives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "part"
    data = b"row\n" * 1000
    with monkeypatch.context() as patch:
        crashed = crash_after(patch, survives)
        try:
            publish(final, data)
        except Crash:
            assert crashed()
    if final.exists():
        assert final.read_bytes() == data
    else:
        assert crashed()
        assert publish(final, data)  # what a crash leaves is in nobody's way
    assert publish(final, b"late") is False


@pytest.mark.parametrize("survives", range(8))
def test_a_crash_at_any_step_of_replace_leaves_the_old_or_the_new(
    survives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "hb"
    final.write_bytes(b"old")
    with monkeypatch.context() as patch:
        crash_after(patch, survives)
        with contextlib.suppress(Crash):
            replace(final, b"new")
    assert final.read_bytes() in (b"old", b"new")


NAMES = 200


def race(folder: Path, who: int, barrier: Barrier, won: Any) -> None:
    barrier.wait()
    for number in range(NAMES):
        if publish(folder / f"{number:03}", f"{who}\n".encode() * 500):
            won.put((number, who))
    won.put(None)


def test_of_two_processes_exactly_one_publishes_each_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(2), context.Queue()
    racers = [context.Process(target=race, args=(tmp_path, who, barrier, won)) for who in range(2)]
    for racer in racers:
        racer.start()
    winners: dict[int, int] = {}
    ended = 0
    while ended < 2:
        if (found := won.get(timeout=60)) is None:
            ended += 1
            continue
        number, who = found
        assert number not in winners, "two winners of one name"
        winners[number] = who
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert sorted(winners) == list(range(NAMES))
    for number, who in winners.items():
        assert (tmp_path / f"{number:03}").read_bytes() == f"{who}\n".encode() * 500
    assert len(names(tmp_path)) == NAMES


def test_a_directory_without_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        RunDir.open(tmp_path)
    assert [p.code for p in caught.value.problems] == ["rundir.missing"]


def test_plans_are_listed_oldest_first_and_nothing_else_is_a_plan(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", plans={"0010": make_plan(), "0002": make_plan()})
    (run.path / "plans" / "README.json").touch()
    (run.path / "plans" / ".0003.json.aa.tmp").touch()
    assert run.plan_numbers() == ["0002", "0010"]


def test_published_units_are_parts_and_not_what_is_on_its_way(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for unit in (0, 7, 1234567):
        publish(run.part_path(unit), b"")
    (run.path / "parts" / ".u000001.jsonl.00.tmp").touch()
    (run.path / "parts" / "notes.txt").touch()
    assert run.published_units() == {0, 7, 1234567}


def test_identity_and_plan_come_back_as_they_were_written(tmp_path: Path) -> None:
    identity, plan = make_identity(tmp_path, b'{"text": "x"}\n'), make_plan(env={"A": "b"})
    run = make_run(tmp_path / "run", identity, plans={"0001": plan})
    assert run.identity() == identity
    assert run.plan("0001") == plan


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"keep": 1}'])
def test_a_damaged_run_json_is_said_to_be_damaged(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path / "run")
    run.identity_path.write_bytes(content)
    with pytest.raises(OutputError) as caught:
        run.identity()
    assert [p.code for p in caught.value.problems] == ["rundir.damaged"]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schema": 2}'])
def test_a_damaged_plan_is_said_to_be_damaged(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path / "run")
    run.plan_path("0001").write_bytes(content)
    with pytest.raises(OutputError) as caught:
        run.plan("0001")
    assert [p.code for p in caught.value.problems] == ["rundir.damaged"]


def test_missing_parts_directory_is_damage_and_no_bug(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / "parts").rmdir()
    with pytest.raises(OutputError) as caught:
        run.published_units()
    assert [p.code for p in caught.value.problems] == ["rundir.damaged"]


def submitted(run: RunDir, job: str, at: float) -> None:
    entry = {"id": job, "process": None, "submitted": at}
    (run.path / "jobs" / f"{job}.submitted").write_text(json.dumps(entry))


def registered(run: RunDir, job: str, at: float, *, restart: int = 0) -> None:
    entry = {"job": job, "restart": restart, "plan": "0001", "started": at, "process": {"pid": 1}}
    (run.path / "jobs" / f"{job}.{restart}.json").write_text(json.dumps(entry))


def test_jobs_are_those_submitted_and_those_started_by_hand(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    submitted(run, "20", 100.0)
    submitted(run, "9", 50.0)
    registered(run, "20", 101)
    registered(run, "20", 500, restart=1)  # requeued: still one job
    registered(run, "local-1-2", 70)
    assert [job["id"] for job in run.jobs()] == ["9", "local-1-2", "20"]
    assert [job["process"] for job in run.jobs()] == [None, {"pid": 1}, None]


def test_tasks_of_a_submitted_array_are_no_jobs_of_their_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    submitted(run, "77", 1.0)
    for task in range(3):
        registered(run, f"77_{task}", 2)
    assert [job["id"] for job in run.jobs()] == ["77"]


def test_tasks_of_an_array_queued_by_hand_are_jobs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    registered(run, "77_1", 2)
    registered(run, "77_0", 2)
    assert [job["id"] for job in run.jobs()] == ["77_0", "77_1"]


def test_registrations_come_oldest_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    registered(run, "b", 5)
    registered(run, "a", 9)
    registered(run, "b", 7, restart=1)
    found = [(entry["job"], entry["restart"]) for entry in run.registrations()]
    assert found == [("b", 0), ("b", 1), ("a", 0)]


def test_outcomes_are_of_one_start_of_one_job_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for job, restart, replica, outcome in (
        ("7", 0, 0, "done"),
        ("7", 0, 1, "failed"),
        ("7", 1, 0, "resumable"),
        ("77", 0, 0, "failed"),
        ("7_0", 0, 0, "failed"),
    ):
        publish(run.outcome_path(job, restart, replica, outcome), b'{"replica": %d}' % replica)
    assert list(run.outcomes("7", 0)) == [("done", {"replica": 0}), ("failed", {"replica": 1})]
