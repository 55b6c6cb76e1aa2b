"""What workers note about themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.telemetry.metrics import Beat, MetricsLog, PartCounts, read_metrics

PART = PartCounts(unit=3, ok=2, error=1, prompt_tokens=10, completion_tokens=20)


def test_lines_come_back_with_their_worker_and_kind(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "7.0.s1.aa.jsonl")
    log.write(Beat(replica=1, phase="running", rows=5))
    log.write(PART)
    log.close()
    beat, part = read_metrics(tmp_path)
    assert (beat["worker"], beat["kind"], beat["rows"]) == ("7.0.s1.aa", "beat", 5)
    assert (part["kind"], part["unit"], part["ok"], part["error"]) == ("part", 3, 2, 1)


def test_a_torn_last_line_is_not_yet_a_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "a.jsonl")
    log.write(PART)
    log.close()
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"kind": "beat", "ti')
    assert [line["kind"] for line in read_metrics(tmp_path)] == ["part"]


@pytest.mark.parametrize("torn", [b'{"kind": "be', b"\0\0\0\0", b"\xff\xfe", b"7", b"{}"])
def test_a_line_torn_by_a_full_disk_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    """A write that was cut short is followed by the next line; the file goes on."""
    path = tmp_path / "a.jsonl"
    log = MetricsLog(path)
    log.write(PART)
    with path.open("ab") as file:
        file.write(torn + b"\n")
    log.write(PART)
    log.close()
    assert [line["unit"] for line in read_metrics(tmp_path)] == [3, 3]


def test_no_workers_and_no_directory_are_no_lines(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path)) == []
    assert list(read_metrics(tmp_path / "missing")) == []
