"""Logs of killed workers as disks may give them back: cut short, spoilt, or not this run's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.fault_scene import Scene, Zygote, kept, make_scene
from faults.injection import STEADY, disturbed

from launcher.data.open_unit import OpenUnit
from launcher.data.wal import Record, UnitLog, finished, scan
from launcher.rundir import RunDir


@pytest.fixture(scope="module")
def one_unit(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("one"), units=1, rows_per_unit=7)


@pytest.fixture(scope="module")
def left(scene: Scene, one_unit: Scene, zygote: Zygote) -> RunDir:
    """One unit whose worker was killed on the point of publishing it."""
    run, worker = disturbed(one_unit, zygote, "link", "signal=KILL:when=2")
    assert worker.wait() == -9
    assert run.wal_path(0, 1).exists()
    assert not run.published_units()
    assert len(kept(run)) >= 4
    return run


def records(scene: Scene) -> Iterator[Record]:
    """The rows of the one part, in input order, as an engine would have them answered."""
    lines = scene.parts["u000000.jsonl"].splitlines(keepends=True)
    keys = [(file, offset) for _, file, offset in sorted(scene.rows)]
    for key, line in zip(keys, lines, strict=True):
        yield Record(key, b'"ok"' in line, 1, 1, line)


def take_over(scene: Scene, run: RunDir) -> int:
    """Do what the next owner does; how many rows it had to answer."""
    unit = OpenUnit(run, 0, 2)
    answered = 0
    for record in records(scene):
        index = unit.add(record.key)
        if index is not None:
            answered += 1
            unit.finish(index, record)
    unit.all_read = True
    assert unit.complete
    assert unit.publish() is not None
    assert run.part_path(0).read_bytes() == scene.parts["u000000.jsonl"]
    assert list((run.path / "wal").iterdir()) == []
    run.part_path(0).unlink()
    return answered


def test_a_log_may_end_at_any_byte(one_unit: Scene, left: RunDir, tmp_path: Path) -> None:
    data = left.wal_path(0, 1).read_bytes()
    ends = [r.position + r.length for r in scan(left.wal_path(0, 1))]
    assert ends[-1] == len(data)
    run = one_unit.fresh(tmp_path / "run")
    for length in range(len(data) + 1):
        run.wal_path(0, 1).write_bytes(data[:length])
        whole = sum(end <= length for end in ends)
        assert take_over(one_unit, run) == len(one_unit.rows) - whole


def test_a_worker_goes_on_after_a_log_that_was_cut(
    one_unit: Scene, left: RunDir, zygote: Zygote
) -> None:
    data = left.wal_path(0, 1).read_bytes()
    for length in range(0, len(data), 53):
        run = one_unit.fresh()
        run.lease_path(0, 1).write_bytes(left.lease_path(0, 1).read_bytes())
        for heartbeat in (left.path / "workers").glob("*.hb"):
            (run.path / "workers" / heartbeat.name).write_bytes(heartbeat.read_bytes())
        run.wal_path(0, 1).write_bytes(data[:length])
        before = kept(run)
        worker = zygote.start(run, job="2", constants=STEADY)
        assert worker.wait() == 0, worker.text()
        one_unit.check_done(run)
        assert sorted(row for _, row in worker.finished()) == sorted(one_unit.rows - before)


def test_no_flipped_bit_gets_into_a_part(one_unit: Scene, left: RunDir, tmp_path: Path) -> None:
    data = left.wal_path(0, 1).read_bytes()
    good = [(r.key, r.position, r.length) for r in scan(left.wal_path(0, 1))]
    path = tmp_path / "u000000.g1.wal"
    for bit in range(0, len(data) * 8, 3):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        found = [(r.key, r.position, r.length) for r in scan(path)]
        before = sum(position + length <= bit // 8 for _, position, length in good)
        assert found == good[:before], bit


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"{"])
def test_blocks_that_were_never_written_end_a_log(
    left: RunDir, tmp_path: Path, fill: bytes
) -> None:
    """What some file systems give back after a crash of the machine."""
    data = left.wal_path(0, 1).read_bytes()
    good = list(scan(left.wal_path(0, 1)))
    path = tmp_path / "u000000.g1.wal"
    path.write_bytes(data + fill * 4096)
    assert [r.key for r in scan(path)] == [r.key for r in good]
    path.write_bytes(fill * 4096 + data)
    assert list(scan(path)) == []


def test_rows_that_the_input_has_not_stay_out_of_the_part(one_unit: Scene, zygote: Zygote) -> None:
    run = one_unit.fresh()
    log = UnitLog(run.wal_path(0, 1), run.path / "leases")
    log.write([Record((0, 1), True, 1, 1, b"{}\n"), Record((7, 0), True, 1, 1, b"{}\n")])
    log.close()
    run.lease_path(0, 1).write_text("gone")
    worker = zygote.start(run, constants=STEADY)
    assert worker.wait() == 0, worker.text()
    one_unit.check_done(run)


@pytest.mark.parametrize("strange", ["x.wal", "u000000.wal", ".u000000.g1.wal", "u9.g1.wal"])
def test_strange_files_among_the_logs_are_no_rows(
    one_unit: Scene, left: RunDir, zygote: Zygote, strange: str
) -> None:
    run = one_unit.fresh()
    (run.path / "wal" / strange).write_bytes(b"what is this")
    assert list(finished(run)) == []
    worker = zygote.start(run, constants=STEADY)
    assert worker.wait() == 0, worker.text()


def test_rows_of_a_log_that_becomes_a_part_while_it_is_read_are_no_error(
    one_unit: Scene, left: RunDir, tmp_path: Path
) -> None:
    run = one_unit.fresh(tmp_path / "run")
    run.wal_path(0, 1).write_bytes(left.wal_path(0, 1).read_bytes())
    reading = finished(run)
    next(reading)
    take_over(one_unit, run)
    assert list(reading) == []


def test_of_two_answers_readers_see_the_one_that_the_part_will_have(
    one_unit: Scene, tmp_path: Path
) -> None:
    run = one_unit.fresh(tmp_path / "run")
    key = next(records(one_unit)).key
    for generation in (1, 2, 10):
        log = UnitLog(run.wal_path(0, generation), run.path / "leases")
        log.write([Record(key, True, 1, 1, b"%d\n" % generation)])
        log.close()
    unit = OpenUnit(run, 0, 11)
    assert [line for _, _, line in finished(run)] == [b"10\n"]
    assert unit.add(key) is None
    unit.all_read = True
    unit.publish()
    assert run.part_path(0).read_bytes() == b"10\n"
