"""A site file that no run has ended under is told of, until one has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from launcher.prepare import prepare
from launcher.resources import state_home
from launcher.rundir import RunDir
from launcher.runs import ran_sites, site_digest
from launcher.submit import Submission, submit

SITE = """
name: mine
scheduler: {type: slurm}
launch: {with: srun}
partitions: {cpu: {time_limit: 1h}}
"""
JOB = """
name: try
engine: echo
model: none
input: {path: rows.jsonl, prompt: "{{ text }}"}
output: {path: out}
"""


@pytest.fixture(autouse=True)
def cluster(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    home = tmp_path / "slurm"
    home.mkdir()
    found = FakeSlurm(home)
    for name, value in found.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(own_home))
    (tmp_path / "mine.yaml").write_text(SITE)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    return found


def submitted(where: Path, output: str) -> Submission:
    settings = (f"output.path={output}",)
    done = submit(prepare(where / "job.yaml", site=str(where / "mine.yaml"), settings=settings))
    assert done.how == "submitted"
    return done


def warned(submission: Submission) -> bool:
    return [p.code for p in submission.warnings] == ["site.never-run"]


def end(run: RunDir) -> None:
    run.done_path.touch()


def test_the_first_submission_under_a_site_file_is_warned_of(tmp_path: Path) -> None:
    (warning,) = submitted(tmp_path, "one").warnings

    assert (warning.code, warning.severity) == ("site.never-run", "warning")
    assert str(tmp_path / "mine.yaml") in warning.message


def test_a_run_that_has_not_ended_proves_nothing(tmp_path: Path) -> None:
    submitted(tmp_path, "one")

    assert warned(submitted(tmp_path, "two"))


def test_once_a_run_has_ended_nothing_is_told_even_when_its_directory_is_gone(
    tmp_path: Path,
) -> None:
    first = submitted(tmp_path, "one")
    end(first.run)

    assert not warned(submitted(tmp_path, "two"))
    shutil.rmtree(first.run.path)
    assert not warned(submitted(tmp_path, "three"))


def test_a_changed_site_file_was_never_run(tmp_path: Path) -> None:
    end(submitted(tmp_path, "one").run)
    (tmp_path / "mine.yaml").write_text(SITE + "env: {A: b}\n")

    assert warned(submitted(tmp_path, "two"))


def test_runs_without_a_readable_site_file_tell_nothing(tmp_path: Path) -> None:
    first, second = submitted(tmp_path, "one"), submitted(tmp_path, "two")
    (first.run.path / "site.yaml").unlink()
    (second.run.path / "site.yaml").write_bytes(b"\xff")
    end(first.run)
    end(second.run)

    assert ran_sites() == set()


def test_where_nothing_can_be_noted_an_ended_run_still_counts(tmp_path: Path) -> None:
    end(submitted(tmp_path, "one").run)
    shutil.rmtree(state_home() / "sites", ignore_errors=True)
    (state_home() / "sites").write_text("a file, where a directory should be")

    assert ran_sites() == {site_digest(SITE)}
