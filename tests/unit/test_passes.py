"""Passes over the input, what they repeat, and what all of their parts come to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from run_making import json_lines, make_identity, make_run

from launcher.data.passes import Pass, all_passes, error_codes, open_pass
from launcher.data.tally import Tally, finish, tally
from launcher.errors import OutputError
from launcher.plan.types import UnitGrid
from launcher.rundir import RunDir, publish

BAD, WORSE = "missing_field", "engine_error"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of two units of three rows each."""
    data = json_lines([{"text": str(n)} for n in range(6)])
    size = len(data) // 2
    grid = UnitGrid(total_bytes=len(data), unit_bytes=size, head_units=2, tail_bytes=size)
    return make_run(tmp_path / "run", make_identity(tmp_path, data, grid=grid))


def row(place: int, code: str | None = None, *, tokens: int = 3) -> dict[str, Any]:
    if code is not None:
        return {"id": None, "row": [0, place], "status": "error", "error": {"code": code}}
    usage = {"prompt_tokens": 2, "completion_tokens": tokens}
    return {"id": None, "row": [0, place], "status": "ok", "usage": usage}


def opened(run: RunDir) -> tuple[Pass, set[int]]:
    found = open_pass(run, run.identity())
    assert found is not None
    return found


def part(run: RunDir, unit: int, rows: Iterable[dict[str, Any]], overlay: int = 0) -> None:
    assert publish(run.part_path(unit, overlay), json_lines(list(rows)))


def test_the_first_pass_is_open_until_every_part_is_out(run: RunDir) -> None:
    identity = run.identity()
    first, left = opened(run)
    assert (first.overlay, left, first.wanted(0)) == (0, {0, 1}, None)
    part(run, 0, [row(0)])
    assert opened(run)[1] == {1}
    part(run, 1, [row(9)])
    assert open_pass(run, identity) is None


def test_an_overlay_repeats_the_rows_that_are_errors_still(run: RunDir) -> None:
    part(run, 0, [row(0, BAD), row(1), row(2, WORSE)])
    part(run, 1, [row(9, BAD)])
    identity = run.identity()
    assert run.create_overlay([0, 1], None) == 1
    first, _ = opened(run)
    assert (first.overlay, first.wanted(0), first.wanted(1)) == (1, {(0, 0), (0, 2)}, {(0, 9)})
    part(run, 0, [row(0), row(2, BAD)], overlay=1)
    part(run, 1, [row(9, WORSE)], overlay=1)
    assert open_pass(run, identity) is None
    assert dict(error_codes(run, 0, below=2)) == {(0, 2): BAD}
    assert dict(error_codes(run, 0, below=1)) == {(0, 0): BAD, (0, 2): WORSE}
    assert run.create_overlay([1], [WORSE]) == 2
    second, left = opened(run)
    assert (left, second.wanted(1)) == ({1}, {(0, 9)})
    assert [found.overlay for found in all_passes(run, identity)] == [0, 1, 2]


def test_a_tally_counts_each_row_once_and_every_token(run: RunDir) -> None:
    part(run, 0, [row(0, BAD), row(1), row(2, BAD)])
    part(run, 1, [row(9)])
    run.create_overlay([0], None)
    part(run, 0, [row(0), row(2, WORSE)], overlay=1)
    expected = Tally(ok=3, error=1, prompt_tokens=6, completion_tokens=9)
    assert tally(run, []) == expected
    counts = {"ok": 1, "error": 0, "prompt_tokens": 100, "completion_tokens": 0}
    noted = tally(run, [{"overlay": 0, "unit": 1, **counts}])
    assert noted.prompt_tokens == 104


def test_a_finished_run_says_what_it_holds_and_clears_what_others_left(run: RunDir) -> None:
    part(run, 0, [row(0)])
    part(run, 1, [row(9, BAD)])
    left = (run.wal_path(0, 1), run.path / "parts" / ".u000000.jsonl.aa.tmp")
    for path in left:
        path.write_bytes(b"x")
    finish(run, [])
    assert json.loads(run.done_path.read_bytes()) == {
        "ok": 1,
        "error": 1,
        "prompt_tokens": 2,
        "completion_tokens": 3,
    }
    assert not any(path.exists() for path in left)
    assert run.published_units() == {0, 1}


def test_answers_without_a_single_token_are_no_finished_run(run: RunDir) -> None:
    part(run, 0, [row(0, tokens=0)])
    part(run, 1, [row(9, BAD)])
    with pytest.raises(OutputError) as caught:
        finish(run, [])
    assert [p.code for p in caught.value.problems] == ["output.no-tokens"]
    assert not run.done_path.exists()


def test_a_run_of_errors_alone_is_finished(run: RunDir) -> None:
    part(run, 0, [row(0, BAD)])
    part(run, 1, [])
    finish(run, [])
    assert run.done_path.exists()
