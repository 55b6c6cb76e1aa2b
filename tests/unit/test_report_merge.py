"""Merged files: whole or not there, cut between units, in the forms that others read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_runs import add_overlay, answer, edit, finished_run, lines
from pyarrow import parquet

from launcher.data.rows import Row
from launcher.errors import OutputError
from launcher.report.merge import merge
from launcher.report.reading import Reading
from launcher.rundir import RunDir

ROWS = [{"text": "bad" if n % 5 == 1 else f"row {n}", "id": f"id-{n}"} for n in range(60)]
CHILD = """
import sys
from pathlib import Path
from launcher.report.merge import merge
from launcher.rundir import RunDir
merge(RunDir(Path(sys.argv[1])), Path(sys.argv[2]), "openai", files=3)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return finished_run(tmp_path / "job", ROWS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def everything(run: RunDir) -> list[bytes]:
    return [found.line for found in Reading(run).rows()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def problem_of(run: RunDir, target: Path, form: Any = "jsonl", files: int = 1) -> str:
    with pytest.raises(OutputError) as caught:
        merge(run, target, form, files=files)
    return caught.value.problems[0].code


# --- files


@pytest.mark.parametrize("files", [1, 2, 4, 7])
def test_files_in_order_are_all_rows_cut_between_units(run: RunDir, out: Path, files: int) -> None:
    add_overlay(run, 1, {(0, 0): "new"})
    merged = merge(run, out / "all.jsonl", "jsonl", files=files)
    made = [Path(facts.path) for facts in merged.files]
    assert len(made) == files
    assert [line for path in made for line in lines(path)] == everything(run)
    starts = {lines(run.part_path(u))[0] for u in run.published_units() if lines(run.part_path(u))}
    firsts = {tuple(json.loads(line)["row"]) for line in starts}
    assert all(tuple(json.loads(lines(path)[0])["row"]) in firsts for path in made)
    if files > 1:
        assert names(out) == [f"all-{n:05}-of-{files:05}.jsonl" for n in range(files)]
        sizes = [path.stat().st_size for path in made]
        assert max(sizes) - min(sizes) <= 2 * max(
            run.part_path(unit).stat().st_size for unit in run.published_units()
        )


def test_more_files_than_units_are_all_there_and_some_empty(run: RunDir, out: Path) -> None:
    files = len(run.published_units()) + 10
    merged = merge(run, out / "x.jsonl", "jsonl", files=files)
    assert len(names(out)) == files
    assert sum(facts.rows for facts in merged.files) == len(ROWS)
    assert min(facts.bytes for facts in merged.files) == 0


@pytest.mark.parametrize("form", ["jsonl", "openai", "parquet"])
def test_what_is_said_of_a_file_is_so(run: RunDir, out: Path, form: Any) -> None:
    for facts in merge(run, out / "x", form, files=2).files:
        content = Path(facts.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (facts.bytes, facts.sha256)
        if form != "parquet":
            assert content.count(b"\n") == facts.rows


def test_a_run_with_a_missing_part_is_merged_and_said_to_be_partial(run: RunDir, out: Path) -> None:
    run.part_path(2).unlink()
    merged = merge(run, out / "x.jsonl", "jsonl", files=2)
    assert not merged.complete
    assert merged.counts.ok + merged.counts.error.total() < len(ROWS)


# --- whole or not at all


@pytest.mark.parametrize("form", ["jsonl", "openai", "parquet"])
def test_damage_in_the_last_part_leaves_old_files_as_they_are(
    run: RunDir, out: Path, form: Any
) -> None:
    (out / "x-00000-of-00003").write_text("old")
    last = max(u for u in run.published_units() if lines(run.part_path(u)))
    edit(run.part_path(last), lambda rows: [*rows, *rows])
    assert problem_of(run, out / "x", form, files=3) == "output.damaged"
    assert names(out) == ["x-00000-of-00003"]
    assert (out / "x-00000-of-00003").read_text() == "old"


def test_a_directory_in_the_place_of_a_file_is_said_and_stays(run: RunDir, out: Path) -> None:
    (out / "x").mkdir()
    assert problem_of(run, out / "x") == "output.unwritable"
    assert names(out) == ["x"]


def test_a_name_that_is_too_long_is_said(run: RunDir, out: Path) -> None:
    assert problem_of(run, out / ("x" * 250)) == "output.unwritable"
    assert names(out) == []


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few kilobytes."""
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("form", ["jsonl", "openai", "parquet"])
def test_a_full_disk_is_said_and_nothing_is_left_on_it(run: RunDir, full: Path, form: Any) -> None:
    (full / "old").write_bytes(b"x" * 4096)
    assert problem_of(run, full / "x", form) == "output.unwritable"
    assert names(full) == ["old"]


def kill_at(run: RunDir, target: Path, call: str, when: int) -> bool:
    """Whether the merge was killed at its ``when``-th ``call``; it may have fewer."""
    inject = f"inject={call}:signal=KILL:when={when}"
    trace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject]
    words = [*trace, sys.executable, "-c", CHILD, str(run.path), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9, 137), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_kill_at_any_point_leaves_whole_files_and_a_rerun_heals(
    run: RunDir, out: Path, tmp_path: Path, call: str
) -> None:
    """Each try leaves a killed one's scratch files to the next."""
    if subprocess.run(["which", "strace"], capture_output=True, check=False).returncode:
        pytest.skip("needs strace")
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    merge(run, wanted / "x.jsonl", "openai", files=3)
    contents = {path.name: path.read_bytes() for path in wanted.iterdir()}
    when = 1
    while kill_at(run, out / "x.jsonl", call, when):
        there = {p.name: p.read_bytes() for p in out.iterdir() if not p.name.endswith(".tmp")}
        assert there.items() <= contents.items()
        when += 1
    assert when > 3
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents


def test_a_directory_is_listed_once_for_all_files(run: RunDir, out: Path) -> None:
    listed: list[str] = []
    events = {"os.listdir", "os.scandir"}
    sys.addaudithook(lambda event, args: listed.append(str(args[0])) if event in events else None)
    merge(run, out / "x.jsonl", "jsonl", files=20)
    assert listed.count(str(out)) == 1


def test_a_file_system_that_syncs_no_directory_is_fine(
    run: RunDir, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    merge(run, out / "x.jsonl", "jsonl")
    assert len(lines(out / "x.jsonl")) == len(ROWS)


# --- forms


def openai(run: RunDir, out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    merge(run, out / "x.jsonl", "openai")
    good, bad = lines(out / "x.jsonl"), lines(out / "x.errors.jsonl")
    return [json.loads(line) for line in good], [json.loads(line) for line in bad]


def test_openai_lines_have_the_time_at_which_the_run_ended(run: RunDir, out: Path) -> None:
    os.utime(run.done_path, (1_700_000_000, 1_700_000_000))
    good, bad = openai(run, out)
    assert {line["response"]["body"]["created"] for line in good} == {1_700_000_000}
    assert {line["response"]["body"]["model"] for line in good} == {"echo"}
    assert [line["custom_id"] for line in bad] == [f"id-{n}" for n in range(1, 60, 5)]
    assert all(line["error"] is None for line in good + bad)
    assert {line["response"]["status_code"] for line in bad} == {500}


@pytest.mark.parametrize(("chat", "kind"), [(True, "chat.completion"), (False, "text_completion")])
def test_the_job_says_whether_answers_are_chats(
    tmp_path: Path,
    out: Path,
    chat: bool,  # noqa: FBT001 - a parameter of the case
    kind: str,
) -> None:
    run = finished_run(tmp_path / "job", ROWS[:1], chat=chat)
    ((line,), _) = openai(run, out)
    body = line["response"]["body"]
    assert body["object"] == kind
    (choice,) = body["choices"]
    assert (choice["message"]["content"] if chat else choice["text"]) == "row 0"


def batch_line(number: int, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": f"c{number}", "method": "POST", "url": url, "body": body}


BATCH = [
    batch_line(0, "/v1/chat/completions", messages=[{"role": "user", "content": "a"}]),
    batch_line(1, "/v1/completions", prompt="b"),
]


def test_openai_lines_are_answered_in_the_form_that_they_ask_for(tmp_path: Path, out: Path) -> None:
    def by(row: Row) -> dict[str, Any]:
        return answer(row, "yes")

    own = finished_run(tmp_path / "own", BATCH, by=by, prompt=None, chat=True)
    kinds = [line["response"]["body"]["object"] for line in openai(own, out)[0]]
    assert kinds == ["chat.completion", "text_completion"]
    asked = finished_run(tmp_path / "asked", BATCH, by=by, prompt="{{ custom_id }}", chat=True)
    kinds = [line["response"]["body"]["object"] for line in openai(asked, out)[0]]
    assert kinds == ["chat.completion", "chat.completion"]


def test_a_table_has_every_row_in_order_and_null_for_what_it_lacks(
    tmp_path: Path, out: Path
) -> None:
    def by(row: Row) -> dict[str, Any]:
        text = "c \ud800" if (row.fields or {})["text"] == "c" else None
        return answer(row, text, keep=("text", "n"))

    rows: list[dict[str, Any]] = [
        {"text": "a", "id": "7"},
        {"text": "bad", "n": None},
        {"text": "c"},
    ]
    run = finished_run(tmp_path / "job", rows, by=by)
    merge(run, out / "x.parquet", "parquet")
    table = parquet.read_table(out / "x.parquet").to_pylist()
    places = [found.place for found in Reading(run).rows()]
    assert [(row["row_file"], row["row_offset"]) for row in table] == places
    assert table[0] == {
        "id": "7",
        "row_file": 0,
        "row_offset": 0,
        "status": "ok",
        "text": "a",
        "finish_reason": "stop",
        "prompt_tokens": 2,
        "completion_tokens": 1,
        "error_code": None,
        "error_message": None,
        "input": '{"text": "a"}',
        "plan": "0001",
    }
    bad = table[1]
    assert (bad["status"], bad["text"], bad["prompt_tokens"]) == ("error", None, None)
    assert (bad["error_code"], bad["error_message"]) == ("engine_error", "no luck")
    assert json.loads(bad["input"]) == {"text": "bad", "n": None}
    assert table[2]["text"] == "c \\ud800"


def test_a_table_of_nothing_has_its_columns(tmp_path: Path, out: Path) -> None:
    run = finished_run(tmp_path / "job", ROWS[:2])
    merged = merge(run, out / "x.parquet", "parquet", files=9)
    tables = [parquet.read_table(facts.path) for facts in merged.files]
    assert sum(table.num_rows for table in tables) == 2
    assert len({tuple(table.schema.names) for table in tables}) == 1


def test_the_table_is_written_in_groups(
    run: RunDir, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.report.parquet._GROUP_ROWS", 7)
    merge(run, out / "x.parquet", "parquet")
    file = parquet.ParquetFile(out / "x.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [
        *[7] * 8,
        4,
    ]
    assert file.read().num_rows == len(ROWS)
