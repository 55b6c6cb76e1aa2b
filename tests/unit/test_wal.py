"""Logs of finished rows: what was written comes back, whatever a crash left behind it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_making import json_lines, make_identity, make_run

from launcher.data.wal import Record, UnitLog, finished, scan
from launcher.rundir import RunDir, publish


def record(place: int, line: bytes = b"{}\n", *, ok: bool = True) -> Record:
    return Record((0, place), ok, place, 2 * place, line)


def told(path: Path) -> list[tuple[tuple[int, int], bool, int, int, bytes]]:
    """What a log says, with the lines that its records point to."""
    data = path.read_bytes()
    return [
        (r.key, r.ok, r.prompt_tokens, r.completion_tokens, data[r.position :][: r.length])
        for r in scan(path)
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", make_identity(tmp_path, json_lines([{"text": "a"}] * 99)))


rows = st.lists(st.tuples(st.integers(0, 2**60), st.booleans(), st.binary(max_size=40)))


@given(rows, st.integers(0, 5))
def test_what_is_written_is_read_whatever_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[int, bool, bytes]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("wal") / "u.wal"
    records = [Record((3, place), ok, 7, 8, line) for place, ok, line in found]
    log = UnitLog(path, path.parent)
    for piece in (records[:cut], records[cut:]):
        if piece:
            log.write(piece)
    log.close()
    expected = [((3, place), ok, 7, 8, line) for place, ok, line in found]
    assert (told(path) if records else list(scan(path))) == expected
    assert all(r.line is None and r.log == path for r in records)


def test_a_torn_end_costs_the_torn_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "u.wal"
    log = UnitLog(path, path.parent)
    log.write([record(1, b"first\n"), record(2, b"second\n")])
    log.close()
    whole = path.read_bytes()
    first = len(whole) // 2  # the second line is longer by one byte
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        keys = [r.key[1] for r in scan(path)]
        assert keys == ([1] if length >= first else []), length


def test_a_flipped_bit_ends_what_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "u.wal"
    log = UnitLog(path, path.parent)
    log.write([record(1, b"first\n"), record(2, b"second\n"), record(3, b"third\n")])
    log.close()
    whole = bytearray(path.read_bytes())
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 4
        path.write_bytes(broken)
        keys = [r.key[1] for r in scan(path)]
        assert keys in ([], [1], [1, 2]), place


def test_a_log_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert list(scan(tmp_path / "none.wal")) == []


def test_no_file_is_made_before_there_is_something_to_write(tmp_path: Path) -> None:
    log = UnitLog(tmp_path / "u.wal", tmp_path)
    log.sync()
    log.close()
    assert not log.path.exists()


def test_a_disk_that_fills_in_mid_write_leaves_no_torn_record_before_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = UnitLog(tmp_path / "u.wal", tmp_path)
    log.write([record(1)])
    write, calls = os.write, 0

    def half(descriptor: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data[: len(data) // 2])

    late = record(2)
    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="full"):
        log.write([late])
    assert late.line is not None
    monkeypatch.undo()
    log.write([late])
    assert [r.key[1] for r in scan(log.path)] == [1, 2]


def test_finished_rows_are_those_without_a_part_each_once(run: RunDir) -> None:
    for unit, generation, places in [(0, 1, [1]), (1, 1, [2, 3]), (1, 2, [3, 4])]:
        log = UnitLog(run.wal_path(unit, generation), run.path / "leases")
        log.write([record(place, f"{generation}\n".encode()) for place in places])
    publish(run.part_path(0), b"")
    (run.path / "wal" / "notes.txt").write_text("mine")
    assert list(finished(run)) == [
        (1, (0, 3), b"2\n"),  # what the part will have, too
        (1, (0, 4), b"2\n"),
        (1, (0, 2), b"1\n"),
    ]
