"""`hpc-llm doctor` as it is typed, without Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_driving import Cli, write_job
from fake_slurm import FakeSlurm


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    home = tmp_path / "home"
    home.mkdir()
    return Cli(home)


def test_this_machine_is_told_as_a_table_and_as_json(cli: Cli) -> None:
    done = cli("doctor", "--here")
    assert done.code == 0, done.err
    assert done.out.split()[:5] == ["node", "part", "verdict", "what", "is"]
    answer = cli.ask("doctor", "--here", "--directory", cli.home)
    assert (answer.code, answer.data["judged"], answer.data["run"]) == (0, True, None)
    [disk] = [row for row in answer.data["rows"] if row["part"] == "file system"]
    assert disk["verdict"] == "ok"
    assert disk["seen"].startswith(str(cli.home))


def test_a_site_without_a_scheduler_is_this_machine(cli: Cli) -> None:
    assert "python" in {row["part"] for row in cli.ask("doctor").data["rows"]}


def test_a_run_of_one_rank_on_cpus_shows_what_its_preflight_told(cli: Cli) -> None:
    job = write_job(cli.home / "work", rows=[{"text": "a"}])
    assert cli("submit", job, "--wait").code == 0
    done = cli.ask("doctor", cli.home / "work/run")
    assert (done.code, done.data["judged"]) == (0, True), done
    assert done.data["run"] == str(cli.home / "work/run")


def test_a_run_that_is_not_there_is_told(cli: Cli) -> None:
    done = cli.ask("doctor", cli.home / "nowhere")
    assert (done.code, done.codes) == (3, ["rundir.missing"])


def test_options_that_do_not_go_together_or_are_no_numbers_are_refused(cli: Cli) -> None:
    for words in (("nowhere", "--here"), ("--nodes", "0"), ("--nodes", "many")):
        done = cli.ask("doctor", *words)
        assert (done.code, done.codes) == (2, ["cli.usage"]), words


def test_a_site_that_is_not_there_is_told(cli: Cli) -> None:
    done = cli.ask("doctor", "--site", "atlantis")
    assert (done.code, done.codes) == (3, ["site.unknown"])


def test_a_visit_without_waiting_says_how_it_is_read(cli: Cli, tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path / "slurm")
    slurm.home.mkdir()
    user = Cli(cli.home, slurm.environ | {"HPC_LLM_SITE": "generic"})
    done = user.ask("doctor", "--directory", cli.home / "doctor")
    assert done.code == 0, done.out
    run = Path(done.data["run"])
    assert json.loads((run / "plans/0001.json").read_bytes())["links"] is True
    later = user.ask("doctor", run)
    assert (later.code, later.data["judged"], later.data["rows"]) == (4, False, [])


def test_a_partition_that_has_to_be_named_leaves_nothing_behind(cli: Cli) -> None:
    done = cli.ask("doctor", "--site", "clariden", "--directory", cli.home / "doctor")
    assert (done.code, done.codes) == (4, ["plan.partition-missing"])
    assert not list((cli.home / "doctor").glob("*"))
