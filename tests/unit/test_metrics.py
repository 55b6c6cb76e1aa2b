"""What workers note about themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.telemetry.metrics import (
    Beat,
    WorkerLog,
    read_answer_p95_s,
    read_beats,
    read_parts,
    words,
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


class Told:
    """A worker whose beats come at the times that a test tells."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._now_s = 0.0
        self._log = WorkerLog(directory, "a", clock=lambda: self._now_s)

    def beat(self, at_s: float, phase: str = "running", **told: Any) -> dict[str, Any]:
        self._now_s = at_s
        self._log.beat(Beat(replica=0, phase=phase, **told))
        (found,) = read_beats(self._directory)
        return found

    def close(self) -> None:
        self._log.close()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    worker = Told(tmp_path)
    yield worker
    worker.close()


def test_speed_is_told_over_one_and_over_ten_minutes(told: Told) -> None:
    found: dict[str, Any] = {}
    for at_s in range(0, 1000, 2):  # 10 tokens/s, and from 900 s on 100
        found = told.beat(at_s, completion_tokens=10 * at_s + 90 * max(0, at_s - 900))
    assert found["tokens_per_s"] == pytest.approx(100, abs=0.1)
    assert found["tokens_per_s_10m"] == pytest.approx((10 * 600 + 90 * 98) / 600, abs=0.1)
    assert found["rate_covers_s"] == 600


def test_the_start_of_an_engine_is_no_part_of_its_speed(told: Told) -> None:
    for at_s in range(0, 302, 2):
        assert told.beat(at_s, "starting")["tokens_per_s_10m"] == 0
    found = told.beat(310, completion_tokens=500)
    assert (found["tokens_per_s"], found["tokens_per_s_10m"]) == (50, 50)
    assert found["rate_covers_s"] == 10


def test_tokens_count_once_they_are_made_also_by_an_engine_after_another(told: Told) -> None:
    told.beat(0, "starting")
    assert told.beat(10, generated_tokens=100)["tokens_per_s"] == 10
    told.beat(20, generated_tokens=None, completion_tokens=60)  # it is dead
    found = told.beat(30, generated_tokens=20, completion_tokens=60, engine_restarts=1)
    assert found["tokens_per_s"] == 4
    assert found["engine_restarts"] == 1


def test_beats_with_no_time_between_them_have_no_speed(told: Told) -> None:
    told.beat(5)
    assert told.beat(5, completion_tokens=9)["tokens_per_s"] == 0


def test_the_word_of_an_older_worker_is_read(tmp_path: Path) -> None:
    old = {"replica": 2, "phase": "running", "rows": 7, "in_flight": 3, "prompt_tokens": 1}
    old |= {"completion_tokens": 9, "time": 1.0, "running_since": 0.5, "tokens_per_s": 4.4}
    (tmp_path / "a.now").write_text(json.dumps(old))
    (found,) = read_beats(tmp_path)
    assert found == found | old
    assert (found["queued"], found["kv_cache_usage"], found["engine_restarts"]) == (None, None, 0)
    assert words(found) == "7 rows, 3 in flight, 4 tokens/s"


def test_words_say_all_that_is_known(told: Told) -> None:
    known: dict[str, Any] = {
        "rows": 4,
        "in_flight": 6,
        "queued": 2,
        "running": 4,
        "kv_cache_usage": 0.256,
    }
    told.beat(0, **known)
    found = told.beat(100, **known, completion_tokens=1000, engine_restarts=1)
    assert words(found) == (
        "4 rows, 6 in flight, 2 queued, KV cache 26%, 0 tokens/s (10 over 10 minutes), "
        "engine restarts 1"
    )


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
