"""How near the cost model comes to runs that were measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks.planner_accuracy import Case, choices, read_cases, table

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "cost-model.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(read_cases())


def test_the_page_s_table_is_what_the_benchmark_prints(cases: list[Case]) -> None:
    assert "\n".join(table(cases)) in PAGE
    assert choices(cases) in " ".join(PAGE.split("\n"))


def test_own_runs_with_the_gpu_as_the_limit_are_met_within_a_third(cases: list[Case]) -> None:
    own = [case for case in cases if "GPU the limit" in case.group]
    assert len(own) > 10
    assert all(1 / 1.3 < case.ratio < 1.3 for case in own)


def test_no_group_is_off_by_more_than_a_quarter_in_the_middle(cases: list[Case]) -> None:
    groups = {case.group for case in cases} - {"vLLM, own runs, CPUs shared"}
    for group in groups:
        assert 0.8 < statistics.median(c.ratio for c in cases if c.group == group) < 1.25, group


def test_nine_of_ten_runs_are_within_the_range_that_is_told(cases: list[Case]) -> None:
    assert statistics.mean(case.in_range for case in cases) > 0.9


def test_each_run_says_where_it_is_from() -> None:
    data = json.loads((ROOT / "benchmarks" / "planner_runs.json").read_text(encoding="utf-8"))
    for entry in (*data["runs"], *data["tables"]):
        assert len(entry["source"]) > 20
