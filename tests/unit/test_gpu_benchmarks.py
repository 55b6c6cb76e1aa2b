"""What GPU benchmarks count, where no GPU is needed to know."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu_engine import Counted
from benchmarks.gpu_tail import write_rows
from benchmarks.gpu_watch import GpuWatch, parts_of
from benchmarks.makespan_rows import LENGTHS


def test_a_warm_up_s_rate_has_its_prompts_in_it_and_not_its_last_rows() -> None:
    counted = Counted(SimpleNamespace(stats=dict))
    made = [100.0, 100.0, 500.0, 1000.0, 1050.0, 1100.0]  # prompts alone in the first second
    counted.samples = [(10.0 + second, 0, 0, 0, tokens) for second, tokens in enumerate(made)]
    assert counted.rate() == pytest.approx(900 / 3)


def test_a_warm_up_that_made_nothing_has_no_rate() -> None:
    counted = Counted(SimpleNamespace(stats=dict))
    counted.samples = [(10.0, 0, 0, 0, 5.0), (11.0, 0, 0, 0, 5.0)]
    assert counted.rate() == 0.0


def test_of_a_worker_s_notes_only_parts_are_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    notes = [{"ok": 3, "completion_tokens": 7}, {"answer_p95_s": 1.5}]
    lines = "".join(json.dumps(note) + "\n" for note in notes)
    (tmp_path / "metrics" / "w.jsonl").write_text(lines)
    assert parts_of(tmp_path) == notes[:1]


def test_a_lull_is_what_follows_the_last_of_most_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    watch = GpuWatch()
    for second, power in enumerate([600.0, 600.0, 600.0, 590.0, 200.0, 150.0]):
        watch._seen.append((float(second), [1.0, 100.0, 10.0, 20.0, power]))
    assert watch.lull_s(0.0, 5.5) == {1: 2.5}
    (seen,) = watch.between(0.0, 5.5)
    assert (seen["gpu"], seen["samples"], seen["power_median_w"]) == (1, 6, 595.0)


def test_rows_of_the_tail_ask_for_what_chats_take(tmp_path: Path) -> None:
    asked = write_rows(tmp_path / "rows.jsonl", 50, LENGTHS["chat"])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    bodies = [json.loads(line)["body"] for line in lines]
    assert len(bodies) == 50
    assert sum(body["max_tokens"] for body in bodies) == asked
    assert max(len(body["messages"][0]["content"].split()) for body in bodies) <= 900
