"""The newest answers, from logs and parts, without touching either."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from finished_runs import add_overlay, answer, answered, finished_run, fresh_run

from launcher.data.records import encode
from launcher.data.wal import Record, UnitLog
from launcher.errors import OutputError
from launcher.report.peek import PeekRow, peek
from launcher.rundir import RunDir
from launcher.telemetry.metrics import WorkerLog

ROWS = [{"text": "bad" if n % 7 == 1 else f"row {n}", "id": f"id-{n}"} for n in range(40)]


def ids(rows: list[PeekRow]) -> list[str]:
    return [entry.row["id"] for entry in rows]


def log_rows(run: RunDir, unit: int, *, torn: bool = False) -> list[str]:
    """Put the rows of ``unit`` into a log; their ids."""
    log = UnitLog(run.wal_path(unit, 1), run.path / "leases")
    rows = [answer(row) for number, row in answered(run) if number == unit]
    for row in rows:
        key = (row["row"][0], row["row"][1])
        log.write([Record(key, row["status"] == "ok", 1, 1, encode(row))])
    log.close()
    if torn:
        with log.path.open("rb+") as file:
            file.truncate(log.path.stat().st_size - 3)
        rows.pop()
    return [row["id"] for row in rows]


def tree(run: RunDir) -> dict[str, Any]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in run.path.rglob("*")}


def note(run: RunDir, worker: str, *parts: tuple[int, int]) -> None:
    log = WorkerLog(run.path / "metrics", worker)
    for unit, overlay in parts:
        log.part({"unit": unit, "overlay": overlay, "ok": 1, "error": 0})
    log.close()


def test_a_run_that_has_just_begun_has_nothing_to_show(tmp_path: Path) -> None:
    assert peek(fresh_run(tmp_path, ROWS), 5) == []


@pytest.mark.parametrize("torn", [False, True])
def test_rows_of_an_open_unit_are_the_newest(tmp_path: Path, torn: bool) -> None:  # noqa: FBT001 - a parameter of the case
    run = finished_run(tmp_path, ROWS)
    unit = 2
    run.part_path(unit).unlink()
    logged = log_rows(run, unit, torn=torn)
    before = tree(run)
    found = peek(run, len(logged) + 2)
    assert tree(run) == before
    assert ids(found)[: len(logged)] == logged[::-1]
    assert [entry.published for entry in found] == [*[False] * len(logged), True, True]
    assert ids(peek(run, 1)) == [logged[-1]]


def test_a_log_whose_part_is_out_gives_no_row_twice(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ROWS)
    log_rows(run, 2)
    found = peek(run, 100)
    assert all(entry.published for entry in found)
    assert sorted(ids(found)) == sorted(row["id"] for row in ROWS)


def test_of_the_parts_the_newest_come_first(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ROWS)
    for unit in run.published_units():
        os.utime(run.part_path(unit), (1000 - unit, 1000 - unit))
    first = [row["id"] for row in map(json.loads, run.part_path(0).read_bytes().splitlines())]
    assert ids(peek(run, len(first))) == first[::-1]


def test_only_the_last_parts_of_each_worker_are_looked_at(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ROWS)
    add_overlay(run, 1, {(0, 0): "mended"})
    note(run, "a", (3, 0), (0, 1))
    note(run, "b", (1, 0), (99_999, 0))  # that part was deleted
    os.utime(run.part_path(0, 1), (2**32, 2**32))
    os.utime(run.part_path(1), (2**31, 2**31))
    last = json.loads(run.part_path(1).read_bytes().splitlines()[-1])
    assert ids(peek(run, 2)) == ["id-0", last["id"]]
    assert peek(run, 1)[0].row["response"]["text"] == "mended"


def test_a_worker_knows_better_than_the_files_which_of_its_parts_came_last(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ROWS)
    note(run, "a", (0, 0), (1, 0))
    os.utime(run.part_path(0), (2**31, 2**31))
    last = json.loads(run.part_path(1).read_bytes().splitlines()[-1])["id"]
    assert [ids(peek(run, limit))[0] for limit in (1, 2, 3)] == [last] * 3


def test_a_copy_without_empty_directories_is_looked_at(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ROWS)
    for name in ("wal", "leases", "metrics", "overlays"):
        shutil.rmtree(run.path / name)
    assert len(peek(run, 100)) == len(ROWS)


def test_a_broken_part_is_damage(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ROWS)
    for unit in run.published_units():
        run.part_path(unit).write_bytes(b"{\n")
    with pytest.raises(OutputError) as caught:
        peek(run, 1)
    assert caught.value.problems[0].code == "output.damaged"
