"""Rows of a run: what is laid over what, and what is no part of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_runs import add_overlay, answered, edit, finished_run, lines
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.records import encode
from launcher.data.tally import no_tokens
from launcher.errors import OutputError
from launcher.report.reading import Reading, check_complete
from launcher.rundir import RunDir

ROWS = [{"text": "bad" if n % 4 == 1 else f"row {n} of many", "id": f"id-{n}"} for n in range(40)]
TEXTS = [row["text"] for row in ROWS]

Lines = list[bytes]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = finished_run(tmp_path, ROWS)
    assert len(found.published_units()) > 5
    return found


def texts(run: RunDir) -> list[str]:
    found = (found.row for found in Reading(run).rows())
    return [r["response"]["text"] if r["status"] == "ok" else "bad" for r in found]


def damage(run: RunDir) -> str:
    with pytest.raises(OutputError) as caught:
        list(Reading(run).rows())
    (problem,) = caught.value.problems
    assert problem.code == "output.damaged"
    return problem.message


def full_part(run: RunDir) -> Path:
    """A part with several rows, neither the first nor the last."""
    units = sorted(run.published_units())[1:-1]
    return next(p for p in map(run.part_path, units) if len(lines(p)) > 2)


def with_place(line: bytes, *place: int) -> bytes:
    return encode({**json.loads(line), "row": list(place)})


ADVERSARIES: dict[str, Callable[[Lines], Lines]] = {
    "a row twice": lambda rows: [rows[0], *rows],
    "two rows swapped": lambda rows: [rows[1], rows[0], *rows[2:]],
    "another file": lambda rows: [*rows[:-1], with_place(rows[-1], 1, 0)],
    "a negative file": lambda rows: [*rows[:-1], with_place(rows[-1], -1, 0)],
    "a place in a later unit": lambda rows: [*rows[:-1], with_place(rows[-1], 0, 10**6)],
    "a place in an earlier unit": lambda rows: [with_place(rows[0], 0, 0), *rows[1:]],
    "the last line torn": lambda rows: [*rows[:-1], rows[-1][:-9]],
    "the last line without its end": lambda rows: [*rows[:-1], rows[-1][:-1]],
    "an empty line": lambda rows: [*rows, b"\n"],
    "nested too deep": lambda rows: [*rows, b"[" * 100_000 + b"\n"],
    "usage of another kind": lambda rows: [rows[0].replace(b'"usage":{', b'"usage":[],"x":{')],
    "tokens of another kind": lambda rows: [
        rows[0].replace(b'"completion_tokens":', b'"completion_tokens":true,"x":')
    ],
}


@pytest.mark.parametrize("change", ADVERSARIES.values(), ids=ADVERSARIES)
def test_a_part_that_no_runner_publishes_is_damage(
    run: RunDir, change: Callable[[Lines], Lines]
) -> None:
    path = full_part(run)
    edit(path, change)
    assert str(path) in damage(run)


def test_a_part_under_the_name_of_another_unit_is_damage(run: RunDir) -> None:
    first, second, *_ = sorted(run.published_units())
    run.part_path(second).write_bytes(run.part_path(first).read_bytes())
    assert str(run.part_path(second)) in damage(run)


def test_a_part_of_a_unit_that_there_is_not_is_damage(run: RunDir) -> None:
    (run.path / "parts" / "u999999.jsonl").write_bytes(run.part_path(0).read_bytes())
    assert "u999999" in damage(run)


def test_a_part_that_cannot_be_read_is_damage(run: RunDir) -> None:
    path = full_part(run)
    path.unlink()
    path.mkdir()
    assert str(path) in damage(run)


def test_a_missing_unit_is_counted(run: RunDir) -> None:
    check_complete(run)
    full_part(run).unlink()
    assert not Reading(run).complete
    with pytest.raises(OutputError) as caught:
        check_complete(run)
    assert caught.value.problems[0].code == "output.incomplete"


def test_a_retry_that_has_not_ended_is_a_warning(run: RunDir) -> None:
    assert check_complete(run) == []
    add_overlay(run, 1, {(0, 0): "better"})
    assert check_complete(run) == []
    run.part_path(0, 1).unlink()
    (problem,) = check_complete(run)
    assert (problem.code, problem.severity) == ("output.retrying", "warning")
    assert problem.message.startswith("1 of 1 units")


def test_the_newest_overlay_wins_row_by_row(run: RunDir) -> None:
    bad = [row for _, row in answered(run) if (row.fields or {})["text"] == "bad"]
    places = [(row.file, row.offset) for row in bad]
    add_overlay(run, 1, dict.fromkeys(places[:5], "mended once"))
    add_overlay(run, 2, dict.fromkeys(places[3:7], "mended twice"))
    expected = TEXTS.copy()
    wrong = [n for n, text in enumerate(TEXTS) if text == "bad"]
    for n in wrong[:3]:
        expected[n] = "mended once"
    for n in wrong[3:7]:
        expected[n] = "mended twice"
    assert texts(run) == expected


def test_overlays_count_by_number_not_by_name(run: RunDir) -> None:
    for number in (2, 10):
        add_overlay(run, number, {(0, 0): f"from {number}"})
    assert texts(run)[0] == "from 10"


@pytest.mark.parametrize("offset", [1, 10**6])
def test_an_overlay_for_a_row_that_there_is_not_is_damage(run: RunDir, offset: int) -> None:
    """In the middle of a unit as well as behind its last row."""
    add_overlay(run, 1, {(0, 0): "new"})
    path = run.part_path(0, 1)
    path.write_bytes(with_place(path.read_bytes(), 0, offset))
    assert str(path) in damage(run)


def test_a_row_behind_the_last_one_of_its_base_part_is_damage(run: RunDir) -> None:
    unit, last = next(
        (a[0], a[1]) for a, b in zip(answered(run), answered(run)[1:], strict=False) if a[0] != b[0]
    )
    add_overlay(run, 1, {(last.file, last.offset): "new"})
    edit(run.part_path(unit), lambda rows: rows[:-1])
    assert str(run.part_path(unit, 1)) in damage(run)


def test_an_overlay_is_checked_like_a_part(run: RunDir) -> None:
    add_overlay(run, 1, {(0, 0): "new"})
    edit(run.part_path(0, 1), lambda rows: [*rows, *rows])
    assert str(run.part_path(0, 1)) in damage(run)


def test_what_is_counted_is_what_is_given(run: RunDir) -> None:
    add_overlay(run, 1, {(0, 0): "only this"})
    reading = Reading(run)
    rows: list[dict[str, Any]] = [found.row for found in reading.rows()]
    ok = [row for row in rows if row["status"] == "ok"]
    counts = reading.counts
    assert (counts.ok, dict(counts.error)) == (len(ok), {"engine_error": 10})
    assert counts.prompt_tokens == sum(row["usage"]["prompt_tokens"] for row in ok)
    assert counts.completion_tokens == sum(row["usage"]["completion_tokens"] for row in ok)
    assert counts.plans == {"0001"}
    assert len(counts.parts) == len(run.published_units()) + 1
    assert sum(part.rows for part in counts.parts) == len(ROWS) + 1


@given(said=st.lists(st.sampled_from(["", "a", "a b"]), max_size=4))
def test_answers_without_any_token_are_a_problem_only_where_there_are_answers(
    said: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [*({"text": text} for text in said), {"text": "bad"}]
    reading = Reading(finished_run(tmp_path_factory.mktemp("run"), rows))
    assert sum(1 for _ in reading.rows()) == len(rows)
    problem = no_tokens(reading.counts.ok, reading.counts.completion_tokens)
    assert (problem is not None) == (said != [] and set(said) == {""})
    assert problem is None or problem.code == "output.no-tokens"
