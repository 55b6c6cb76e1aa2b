"""The manifest as evidence: what changed since is named, and what did not passes."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from finished_runs import add_overlay, edit, finished_run, lines

from launcher.data.records import encode
from launcher.errors import OutputError
from launcher.report.manifest import manifest_path, verify, write_manifest
from launcher.report.merge import merge
from launcher.report.reading import Reading
from launcher.rundir import RunDir

ROWS = [{"text": "bad" if n % 5 == 1 else f"row {n}", "id": f"id-{n}"} for n in range(60)]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = finished_run(tmp_path / "job", ROWS)
    add_overlay(found, 1, {(0, 0): "new"})
    return found


def note(run: RunDir, **merged: Any) -> dict[str, Any]:
    reading = Reading(run)
    assert sum(1 for _ in reading.rows()) == len(ROWS)
    assert write_manifest(run, reading.counts, **merged) is None
    found: dict[str, Any] = json.loads(manifest_path(run).read_bytes())
    return found


def problem_of(run: RunDir) -> tuple[str, str]:
    with pytest.raises(OutputError) as caught:
        verify(run)
    (problem,) = caught.value.problems
    return problem.code, problem.message


def full_part(run: RunDir) -> Path:
    units = sorted(run.published_units())[1:-1]
    return next(p for p in map(run.part_path, units) if len(lines(p)) > 2)


def test_the_manifest_says_what_there_is(run: RunDir) -> None:
    found = note(run)
    assert found["schema"] == 1
    assert (found["name"], found["model"]) == ("test", {"name": "echo", "digest": None})
    assert found["plans"] == ["0001"]
    assert found["counts"] == {"ok": 48, "error": {"engine_error": 12}}
    assert found["units"] == len(run.published_units())
    assert found["tokens"] == {"prompt": 96, "completion": 95}
    assert found["parts"][0]["path"] == "overlays/1/parts/u000000.jsonl"
    for part in found["parts"]:
        content = (run.path / part["path"]).read_bytes()
        assert (part["bytes"], part["rows"]) == (len(content), content.count(b"\n"))


def test_what_was_not_touched_passes(run: RunDir) -> None:
    before = verify(run)
    assert not before.compared
    note(run)
    found = verify(run)
    assert (found.compared, found.warnings) == (True, ())
    assert found.counts.ok == 48


def test_a_part_with_another_answer_is_named(run: RunDir) -> None:
    note(run)
    path = full_part(run)
    edit(path, lambda rows: [rows[0].replace(b'"row ', b'"Row '), *rows[1:]])
    code, message = problem_of(run)
    assert (code, str(path) in message) == ("output.damaged", True)
    assert "sha256" in message


def test_an_overlay_that_is_gone_is_named(run: RunDir) -> None:
    note(run)
    run.part_path(0, 1).unlink()
    code, message = problem_of(run)
    assert (code, str(run.part_path(0, 1)) in message) == ("output.damaged", True)


def test_an_overlay_that_came_later_is_a_warning(run: RunDir) -> None:
    note(run)
    add_overlay(run, 2, {(0, 0): "newer"})
    (warning,) = verify(run).warnings
    assert (warning.code, warning.severity) == ("output.damaged", "warning")
    assert str(run.part_path(0, 2)) in warning.message


Change = Callable[[list[bytes]], list[bytes]]
ROW_FAULTS: dict[str, tuple[Change, str]] = {
    "the first row is missing": (lambda rows: rows[1:], "missing"),
    "the last row is missing": (lambda rows: rows[:-1], "missing"),
    "a row is invented": (
        lambda rows: [
            rows[0],
            encode({**json.loads(rows[0]), "row": [0, json.loads(rows[0])["row"][1] + 1]}),
            *rows[1:],
        ],
        "has none there",
    ),
}


@pytest.mark.parametrize(("change", "words"), ROW_FAULTS.values(), ids=ROW_FAULTS)
def test_rows_are_those_of_the_input(run: RunDir, change: Change, words: str) -> None:
    path = full_part(run)
    before = [json.loads(line)["row"] for line in lines(path)]
    edit(path, change)
    code, message = problem_of(run)
    after = [json.loads(line)["row"] for line in lines(path)]
    ((_, offset),) = [row for row in before + after if (row in before) != (row in after)]
    assert code == "output.damaged"
    assert f"{offset} of {run.identity().inputs[0].path}" in message
    assert words in message


def test_an_input_that_changed_cannot_tell(run: RunDir) -> None:
    os.utime(run.identity().inputs[0].path, (0, 0))
    assert problem_of(run)[0] == "input.changed"


def test_a_missing_unit_is_incomplete(run: RunDir) -> None:
    note(run)
    full_part(run).unlink()
    assert problem_of(run)[0] == "output.incomplete"


def test_counts_that_were_edited_are_found(run: RunDir) -> None:
    found = note(run)
    found["counts"]["ok"] += 1
    manifest_path(run).write_text(json.dumps(found))
    code, message = problem_of(run)
    assert (code, str(manifest_path(run)) in message) == ("output.damaged", True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"parts": [1], "merged": []}', "\x00"])
def test_a_manifest_that_is_none_is_said(run: RunDir, content: str) -> None:
    manifest_path(run).write_text(content)
    assert problem_of(run)[0] == "output.damaged"


def test_merged_files_are_listed_once_and_compared(run: RunDir, tmp_path: Path) -> None:
    for _ in range(2):
        merged = merge(run, tmp_path / "a.jsonl", "jsonl", files=2)
        found = note(run, merged=merged.files)
    merged = merge(run, tmp_path / "b.jsonl", "openai")
    found = note(run, merged=merged.files)
    wanted = ["a-00000-of-00002.jsonl", "a-00001-of-00002.jsonl", "b.jsonl", "b.errors.jsonl"]
    assert [entry["path"] for entry in found["merged"]] == [str(tmp_path / n) for n in wanted]
    assert verify(run).warnings == ()
    (tmp_path / "a-00001-of-00002.jsonl").unlink()
    (warning,) = verify(run).warnings
    assert "a-00001-of-00002.jsonl" in warning.message
    (tmp_path / "b.jsonl").write_text("")
    code, message = problem_of(run)
    assert (code, str(tmp_path / "b.jsonl") in message) == ("output.damaged", True)


def test_files_merged_before_an_overlay_are_not_those_of_the_run_any_more(
    run: RunDir, tmp_path: Path
) -> None:
    note(run, merged=merge(run, tmp_path / "a.jsonl", "jsonl").files)
    add_overlay(run, 2, {(0, 0): "newer"})
    assert note(run)["merged"] == []


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can hold more than a few bytes (EFBIG, as from a full quota).

    No fixture: pytest would write how a test went before it undid one.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_manifest_that_cannot_be_written_is_a_warning(run: RunDir) -> None:
    reading = Reading(run)
    assert sum(1 for _ in reading.rows()) == len(ROWS)
    with no_room():
        warning = write_manifest(run, reading.counts)
    assert warning is not None
    assert (warning.code, warning.severity) == ("output.unwritable", "warning")
    assert not manifest_path(run).exists()
