"""What workers note about themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.telemetry.metrics import (
    Beat,
    WorkerLog,
    read_answer_p95_s,
    read_beats,
    read_parts,
)

COUNTS = {"ok": 2, "error": 1, "prompt_tokens": 10, "completion_tokens": 20}
PART = {"overlay": 0, "unit": 3, **COUNTS}


def test_parts_come_back_with_their_worker(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path, "7.0.s1.aa")
    log.part(PART)
    log.close()
    assert list(read_parts(tmp_path)) == [{"worker": "7.0.s1.aa", **PART}]


def test_only_the_last_beat_counts_and_none_of_a_worker_that_has_ended(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path, "7.0.s1.aa")
    log.beat(Beat(replica=1, phase="starting"))
    assert [beat["running_since"] for beat in read_beats(tmp_path)] == [None]
    log.beat(Beat(replica=1, phase="running", rows=5, completion_tokens=100))
    (beat,) = read_beats(tmp_path)
    assert (beat["worker"], beat["phase"], beat["rows"]) == ("7.0.s1.aa", "running", 5)
    assert beat["tokens_per_s"] > 0
    assert beat["running_since"] <= beat["time"] + 0.001
    log.close()
    assert list(read_beats(tmp_path)) == []


def test_a_long_run_leaves_no_trace_of_its_beats(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path, "a")
    for rows in range(1000):
        log.beat(Beat(replica=0, phase="running", rows=rows))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000
    log.close()


def test_a_torn_last_line_is_not_yet_a_line(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path, "a")
    log.part(PART)
    log.close()
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"unit": 4, "o')
    assert [part["unit"] for part in read_parts(tmp_path)] == [3]


@pytest.mark.parametrize("torn", [b'{"unit": 5, "o', b"\0\0\0\0", b"\xff\xfe", b"7", b"{}"])
def test_a_line_torn_by_a_full_disk_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    """A write that was cut short is followed by the next line; the file goes on."""
    path = tmp_path / "a.jsonl"
    log = WorkerLog(tmp_path, "a")
    log.part(PART)
    with path.open("ab") as file:
        file.write(torn + b"\n")
    log.part(PART)
    log.close()
    assert [part["unit"] for part in read_parts(tmp_path)] == [3, 3]


def test_no_workers_and_no_directory_are_no_lines(tmp_path: Path) -> None:
    assert list(read_parts(tmp_path)) == []
    assert list(read_beats(tmp_path / "missing")) == []


def test_how_long_answers_took_is_that_of_the_slowest_worker_and_no_part(tmp_path: Path) -> None:
    assert read_answer_p95_s(tmp_path) is None
    for worker, p95_s in {"a": 3.04, "b": 12.25, "c": None}.items():
        log = WorkerLog(tmp_path, worker)
        log.part(PART)
        assert read_answer_p95_s(tmp_path) == {"a": None, "b": 3.0, "c": 12.2}[worker]
        log.close(answer_p95_s=p95_s)
    assert read_answer_p95_s(tmp_path) == 12.2
    assert [part["worker"] for part in read_parts(tmp_path)] == ["a", "b", "c"]
