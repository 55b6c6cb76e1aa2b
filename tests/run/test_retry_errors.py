"""Error rows answered again, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli, write_job

ROWS = [{"text": str(n)} for n in range(40)]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "home").mkdir()
    return Cli(tmp_path / "home", {"HPC_LLM_SITE": "local"})


def rows(cli: Cli, run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli("results", run).out.splitlines()]


def errors(found: list[dict[str, Any]]) -> list[int]:
    return [n for n, row in enumerate(found) if row["status"] == "error"]


def retried(cli: Cli, run: Path, *words: str) -> None:
    """Retry errors, and wait for the end, whatever the rows are then."""
    again = cli.ask("retry-errors", run, *words)
    assert (again.code, again.data["how"]) == (0, "submitted")
    assert cli("resume", run, "--wait").code in (0, 8)


def test_errors_alone_are_answered_again_and_what_is_there_is_kept(cli: Cli) -> None:
    job = write_job(cli.home, rows=ROWS, engine_options={"fail_rate": 0.3})
    run = cli.home / "run"
    assert cli("submit", job, "--wait").code == 8
    before = rows(cli, run)
    assert 0 < len(errors(before)) < 40
    parts = {path: path.read_bytes() for path in (run / "parts").iterdir()}
    retried(cli, run)
    assert rows(cli, run) == before  # a row that fails by its seed fails again
    retried(cli, run, "--code", "engine_error", "--set", "engine_options.fail_rate=0")
    after = rows(cli, run)
    assert errors(after) == []
    assert [row for row in after if row in before] == [r for r in before if r["status"] == "ok"]
    assert [row["response"]["text"] for row in after] == [row["text"] for row in ROWS]
    assert {path: path.read_bytes() for path in parts} == parts
    assert cli.ask("status", run).data["rows"] == {"ok": 40, "error": 0, "open": 0}
    assert cli("results", run, "--verify").code == 0


def test_what_would_make_another_run_is_refused(cli: Cli) -> None:
    job = write_job(cli.home, rows=ROWS, engine_options={"fail_rate": 0.3})
    assert cli("submit", job, "--wait").code == 8
    asked = cli.ask("retry-errors", cli.home / "run", "--set", "sampling.temperature=0.5")
    assert (asked.code, asked.codes) == (4, ["rundir.other-run"])
    assert cli.ask("status", cli.home / "run").data["state"] == "done"


def test_changed_input_is_another_run(cli: Cli) -> None:
    job = write_job(cli.home, rows=ROWS, engine_options={"fail_rate": 0.3})
    assert cli("submit", job, "--wait").code == 8
    write_job(cli.home, rows=[*ROWS, {"text": "new"}], engine_options={"fail_rate": 0.3})
    asked = cli.ask("retry-errors", cli.home / "run", "--set", "engine_options.fail_rate=0")
    assert (asked.code, asked.codes) == (4, ["rundir.other-run"])
    assert "in.jsonl" in asked.json["problems"][0]["message"]


def test_errors_of_the_first_rows_are_answered_again_otherwise(cli: Cli) -> None:
    job = write_job(cli.home, rows=ROWS, engine_options={"fail_rate": 0.3})
    assert cli("submit", job, "--limit", "30", "--wait").code == 8
    run = cli.home / "run.first-30"
    retried(cli, run, "--set", "engine_options.fail_rate=0")
    assert (len(rows(cli, run)), errors(rows(cli, run))) == (30, [])


def test_a_code_that_no_row_has_starts_nothing(cli: Cli) -> None:
    job = write_job(cli.home, rows=ROWS, engine_options={"fail_rate": 0.3})
    assert cli("submit", job, "--wait").code == 8
    asked = cli.ask("retry-errors", cli.home / "run", "--code", "prompt_too_long")
    assert (asked.code, asked.codes) == (4, ["retry.nothing"])
    assert "there are engine_error" in asked.json["problems"][0]["message"]
    assert "--set" in asked.json["problems"][0]["hint"]
    assert not list((cli.home / "run" / "overlays").iterdir())


def test_a_run_that_is_not_finished_is_resumed_first(cli: Cli) -> None:
    job = write_job(
        cli.home, rows=ROWS, engine_options={"die_after": 3}, limits={"engine_restarts": 0}
    )
    assert cli("submit", job, "--wait").code == 7
    asked = cli.ask("retry-errors", cli.home / "run")
    assert (asked.code, asked.codes) == (4, ["retry.unfinished"])


def test_rows_that_are_wrong_in_themselves_are_not_tried_again_for_nothing(cli: Cli) -> None:
    job = write_job(cli.home, rows=[*ROWS, {"other": 1}])
    assert cli("submit", job, "--wait").code == 8
    asked = cli.ask("retry-errors", cli.home / "run")
    assert (asked.code, asked.codes) == (4, ["retry.nothing"])
    assert "there are missing_field" in asked.json["problems"][0]["message"]
    retried(cli, cli.home / "run", "--code", "missing_field")
    assert errors(rows(cli, cli.home / "run")) == [40]


def test_a_part_that_was_spoilt_is_named_and_no_bug(cli: Cli) -> None:
    job = write_job(cli.home, rows=ROWS, engine_options={"fail_rate": 0.3})
    assert cli("submit", job, "--wait").code == 8
    parts = sorted((cli.home / "run" / "parts").iterdir())
    bad = next(path for path in parts if b"engine_error" in path.read_bytes())
    bad.write_bytes(b"[1]\n")
    asked = cli.ask("retry-errors", cli.home / "run")
    assert (asked.code, asked.codes) == (8, ["output.damaged"])
