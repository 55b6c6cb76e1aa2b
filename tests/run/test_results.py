"""What users do with a run that is over, or nearly: results, their proof, and a peek."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli, poll, write_job
from finished_runs import add_overlay, edit, lines
from pyarrow import parquet

from launcher.rundir import RunDir

ROWS = [{"text": f"row {n}", "id": f"id-{n}"} for n in range(60)]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """One user for all of this module, whose run is done."""
    cli = Cli(tmp_path_factory.mktemp("home"))
    assert cli("submit", write_job(cli.home / "work", rows=ROWS), "--wait").code == 0
    return cli


@pytest.fixture
def run(user: Cli) -> Path:
    return user.home / "work" / "run"


@pytest.fixture
def own(cli: Cli) -> Path:
    """A run of the test's own, that it may damage."""
    job = write_job(cli.home / "work", rows=ROWS, output={"path": "run", "keep": "all"})
    assert cli("submit", job, "--wait").code == 0
    return cli.home / "work" / "run"


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_bytes())
    return found


def test_results_of_a_complete_run_leave_a_manifest(cli: Cli, own: Path) -> None:
    assert not (own / "manifest.json").exists()
    assert cli("results", own).code == 0
    found = manifest(own)
    assert found["counts"] == {"ok": 60, "error": {}}
    assert found["merged"] == []


def test_results_of_a_part_of_a_run_leave_none(cli: Cli, own: Path) -> None:
    min((own / "parts").iterdir()).unlink()
    assert cli("results", own, "--partial").code == 0
    assert not (own / "manifest.json").exists()


def test_merged_files_are_in_the_manifest_by_their_whole_path(cli: Cli, own: Path) -> None:
    done = cli("results", own, "--merge", "all.jsonl", "--files", "4", cwd=cli.home)
    assert (done.code, done.err) == (0, "")
    assert "60 answered rows and 0 errors" in done.out
    paths = [entry["path"] for entry in manifest(own)["merged"]]
    assert paths == [str(cli.home / f"all-{n:05}-of-00004.jsonl") for n in range(4)]
    merged = b"".join(Path(path).read_bytes() for path in paths)
    assert merged.decode() == cli("results", own).out
    assert [entry["path"] for entry in manifest(own)["merged"]] == paths


def test_a_table_is_made_of_all_rows(user: Cli, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.parquet"
    assert user("results", run, "--merge", target, "--format", "parquet").code == 0
    table = parquet.read_table(target)
    assert table.column("id").to_pylist() == [row["id"] for row in ROWS]
    assert table.column("text").to_pylist() == [row["text"] for row in ROWS]


def test_without_pyarrow_a_table_is_refused_with_a_remedy(
    user: Cli, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ImportError('no such library')")
    cli = Cli(user.home, {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH')}"})
    out = tmp_path / "out"
    out.mkdir()
    done = cli.ask("results", run, "--merge", out / "x.parquet", "--format", "parquet")
    assert (done.code, done.codes) == (8, ["output.needs-pyarrow"])
    assert "hpc-llm[parquet]" in done.json["problems"][0]["hint"]
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--files", "2"),
        ("--files", "0", "--merge", "x"),
        ("--format", "parquet"),
        ("--verify", "--merge", "x"),
        ("--verify", "--partial"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(
    user: Cli, run: Path, words: tuple[str, ...]
) -> None:
    done = user.ask("results", run, *words)
    assert (done.code, done.codes) == (2, ["cli.usage"])


def test_overlays_are_in_the_results_and_their_proof(cli: Cli, own: Path) -> None:
    run = RunDir(own)
    add_overlay(run, 1, {(0, 0): "a better answer"})
    assert cli.texts(own) == ["a better answer", *(row["text"] for row in ROWS[1:])]
    assert cli.ask("results", own, "--verify").data["rows"] == 60
    path = run.part_path(0, 1)
    edit(path, lambda rows: [rows[0].replace(b"better", b"worse!")])
    done = cli.ask("results", own, "--verify")
    assert (done.code, done.codes) == (8, ["output.damaged"])
    assert str(path) in done.json["problems"][0]["message"]


def test_results_before_a_retry_has_ended_say_so(cli: Cli, own: Path) -> None:
    run = RunDir(own)
    add_overlay(run, 1, {(0, 0): "a better answer"})
    run.part_path(0, 1).unlink()
    for words in ((), ("--merge", cli.home / "x.jsonl"), ("--verify",)):
        done = cli("results", own, *words)
        assert done.code == 0
        assert done.err.count("warning[output.retrying]") == 1
    assert cli("results", own, "--partial").err == ""


def test_verifying_names_what_changed_and_nothing_else(cli: Cli, own: Path) -> None:
    first = cli("results", own, "--verify")
    assert (first.code, first.err) == (0, "")
    assert "there is no manifest.json yet" in first.out
    second = cli("results", own, "--verify")
    assert "60 rows are those of the input" in second.out
    assert "as manifest.json says" in second.out
    part = next(p for p in sorted((own / "parts").iterdir()) if lines(p))
    edit(part, lambda rows: rows[1:])
    done = cli.ask("results", own, "--verify")
    assert (done.code, done.codes) == (8, ["output.damaged"])
    assert str(part) in done.json["problems"][0]["message"]


def test_a_run_without_one_token_is_said_and_its_rows_are_given(cli: Cli, own: Path) -> None:
    for part in (own / "parts").iterdir():
        edit(part, lambda rows: [without_tokens(row) for row in rows])
    done = cli("results", own)
    assert done.code == 8
    assert len(done.out.splitlines()) == 60
    assert "error[output.no-tokens]" in done.err
    assert cli.ask("results", own, "--merge", cli.home / "x").codes == ["output.no-tokens"]
    assert len(lines(cli.home / "x")) == 60


def without_tokens(line: bytes) -> bytes:
    row = json.loads(line)
    row["usage"]["completion_tokens"] = 0
    return json.dumps(row).encode() + b"\n"


def test_a_peek_shows_questions_answers_and_tokens(cli: Cli, own: Path) -> None:
    done = cli("peek", own, "-n", "2")
    assert (done.code, done.err) == (0, "")
    heads = [line for line in done.out.splitlines() if line.startswith("---")]
    assert len(heads) == 2
    assert all("tokens, ended by stop" in head for head in heads)
    (row,) = cli.ask("peek", own, "-n", "1").data["rows"]
    assert f"({row['id']})" in heads[0]
    assert row["published"] is True
    assert row["response"]["text"] in done.out
    assert json.dumps(row["input"]) in done.out


def test_a_peek_into_a_running_job_shows_rows_before_their_part_is_out(cli: Cli) -> None:
    """Twenty rows, two at a time, four seconds for all of them, and two for the first unit."""
    rows = [{"text": f"row {n}"} for n in range(20)]
    slow = {"latency_ms": 400, "max_in_flight": 2}
    job = write_job(cli.home / "work", rows=rows, engine_options=slow)
    assert cli("submit", job).code == 0
    run = cli.home / "work" / "run"

    def unpublished() -> list[dict[str, Any]]:
        found = cli.ask("peek", run, "-n", "3").data["rows"]
        return [row for row in found if not row["published"]]

    found = poll(unpublished, "a finished row is seen before its part is out")
    assert all(row["response"]["text"].startswith("row ") for row in found)
    assert cli("submit", job, "--wait").code == 0
    assert cli.texts(run) == [row["text"] for row in rows]


def test_a_peek_at_a_run_that_has_not_begun_says_so(cli: Cli) -> None:
    job = write_job(cli.home / "work", rows=ROWS)
    assert cli("render", job, "--out", cli.home / "work" / "run").code == 0
    done = cli("peek", cli.home / "work" / "run")
    assert (done.code, done.out) == (0, "no row is finished yet\n")


BAD: list[dict[str, Any]] = [*ROWS, *({"txt": n} for n in range(500)), {"text": "\x1b[31m"}]


def test_submit_warns_of_rows_that_would_be_errors_and_goes_on(cli: Cli) -> None:
    limits = {"max_bad_fraction": 1.0}
    job = write_job(cli.home / "work", rows=BAD, limits=limits)
    planned, tried = cli("plan", job), cli("submit", job, "--dry-run")
    assert planned.err == tried.err
    done = cli("submit", job)
    for warned in (planned, tried, done):
        assert warned.code == 0
        assert warned.err.count("[input.bad-rows]") == 1
        assert "input.missing-field" not in warned.err
    assert "would be errors" in done.out
    assert cli("submit", job, "--wait").code == 0


def test_submit_says_in_one_line_that_the_sample_is_fine(cli: Cli) -> None:
    done = cli("submit", write_job(cli.home / "work", rows=ROWS))
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-2] == "60 rows looked at, 0 would be errors"


def test_plan_tells_all_about_the_input_when_asked(cli: Cli) -> None:
    job = write_job(cli.home / "work", rows=BAD)
    plain = cli.ask("plan", job)
    assert "input" not in plain.data
    asked = cli.ask("plan", job, "--check-input")
    assert asked.code == 0
    found = asked.data["input"]
    assert (found["whole"], found["tokens"]) == (False, None)
    (bad,) = found["bad"]
    assert (bad["code"], bad["where"]) == ("missing_field", f"{job.parent}/in.jsonl:61")
    assert {"median", "p95", "max"} == found["characters"].keys()
    text = cli("plan", job, "--check-input").out
    assert "missing_field" in text
    assert "no tokenizer at hand" in text
    assert "\x1b" not in text
