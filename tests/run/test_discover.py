"""`site discover` as its users have it: on recorded outputs, and on a cluster of fake commands."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from cli_driving import LIMIT_S, Cli, poll
from fake_slurm import FakeSlurm

from launcher.describe.captures import LOGIN

SETS = Path(__file__).resolve().parents[1] / "fixtures/sites"


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    """Fake commands that also print what a login node of the set "roihu" does."""
    home = tmp_path / "slurm"
    (home / "bin").mkdir(parents=True)
    for name in ("scontrol", "sacctmgr", "srun", "sinfo"):
        answers = {file: words for file, words in LOGIN.items() if words[0] == name}
        cases = "".join(
            f'  "{" ".join(words[1:3])}"*) f={file} ;;\n' for file, words in answers.items()
        )
        script = f'#!/bin/sh\ncase "$*" in\n{cases}esac\ncat {SETS}/roihu/$f\n'
        (home / "bin" / name).write_text(script)
        (home / "bin" / name).chmod(0o755)
    return FakeSlurm(home)


@pytest.fixture
def cli(tmp_path: Path, slurm: FakeSlurm) -> Cli:
    (tmp_path / "home").mkdir()
    environ = slurm.environ
    path = f"{slurm.home / 'bin'}{os.pathsep}{environ['PATH']}"
    return Cli(tmp_path / "home", environ | {"PATH": path})


def test_a_login_node_is_asked_and_its_answers_are_recorded(cli: Cli) -> None:
    (cli.home / "rec").mkdir()
    (cli.home / "rec/srun-help.txt").write_text("--container-image: of another day\n")
    done = cli.ask("site", "discover", "--save", "rec", "--out", "found.yaml", "--name", "mine")
    assert done.code == 0, done.err
    assert (done.data["name"], done.data["path"]) == ("mine", "found.yaml")
    text = (cli.home / "found.yaml").read_text()
    assert done.data["site_file"] == text
    assert list(yaml.safe_load(text)["partitions"]) == ["gputest", "gpumedium", "gpularge"]
    assert (cli.home / "rec/srun-help.txt").read_text() == ""  # what there was is of another day
    assert "scheduler.restart" in [asked["keys"] for asked in done.data["unknown"]]
    recorded = cli.home / "rec/scontrol-node.txt"
    assert recorded.read_text() == (SETS / "roihu/scontrol-node.txt").read_text()
    again = cli("site", "discover", "--from", "rec", "--name", "mine")
    assert again.out == text
    assert cli("site", "check", "./found.yaml").code == 0


def test_a_file_that_is_there_is_not_written_over(cli: Cli) -> None:
    (cli.home / "found.yaml").write_text("mine")
    done = cli.ask("site", "discover", "--from", SETS / "tamia", "--out", "found.yaml")
    assert done.codes == ["site.exists"]
    done = cli.ask("site", "discover", "--probe", "gpularge", "--out", "found.yaml")
    assert done.codes == ["site.exists"]
    assert not (cli.home / "hpc-llm-discover").exists()
    assert (cli.home / "found.yaml").read_text() == "mine"


def test_the_terminal_has_what_is_not_known_and_what_would_tell_it(cli: Cli) -> None:
    done = cli("site", "discover", "--from", SETS / "delta", "--out", "found.yaml")
    lines = done.out.splitlines()
    assert lines[:2] == ["wrote found.yaml", "not known, and what would tell it:"]
    assert "- scheduler.restart: may users have jobs requeued (sbatch --requeue)?" in lines
    assert any(line.startswith("- partitions.gpuH200x8: fabric, gpus.cpus") for line in lines)


def test_without_slurm_and_without_captures_there_is_nothing_to_describe(
    cli: Cli, tmp_path: Path
) -> None:
    nowhere = Cli(cli.home, {"PATH": str(tmp_path / "empty")})
    assert nowhere.ask("site", "discover").codes == ["site.no-slurm"]
    (cli.home / "empty").mkdir()
    assert cli.ask("site", "discover", "--from", "empty").codes == ["site.no-captures"]
    assert cli.ask("site", "discover", "--from", "empty", "--probe", "gpu").code == 2
    (cli.home / "file").write_text("")
    assert cli.ask("site", "discover", "--save", "file/rec").codes == ["site.unwritable"]


@contextmanager
def probing(cli: Cli, slurm: FakeSlurm, *words: str) -> Iterator[subprocess.Popen[str]]:
    ask = ("site", "discover", "--probe", "gpularge", "--save", "rec")
    with cli.start(*ask, *words) as process:
        poll(lambda: slurm.jobs, "a job")
        yield process


def test_a_probe_asks_for_all_gpus_of_one_node_and_records_it(cli: Cli, slurm: FakeSlurm) -> None:
    with probing(cli, slurm, "--account", "p_1", "--qos", "q", "--out", "found.yaml") as process:
        script = cli.home / "rec/node-gpularge/script.sh"
        options = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
        wanted = ("--partition=gpularge", "--gpus-per-node=gh200:4", "--account=p_1", "--qos=q")
        assert {f"#SBATCH {option}" for option in (*wanted, "--nodes=1")} <= set(options)
        assert "#SBATCH --time=0-00:05:00" in options
        environ = os.environ | {"SLURMD_NODENAME": "gpu002"}  # what a node does
        subprocess.run(["bash", script], env=environ, timeout=LIMIT_S, check=True)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert "job 1000 asks a node of gpularge" in err
    assert "host=gpu002" in (cli.home / "rec/node-gpularge/node.txt").read_text()
    assert yaml.safe_load((cli.home / "found.yaml").read_text())["partitions"]["gpularge"]["gpus"]


def test_an_option_that_would_end_its_line_is_refused(cli: Cli, slurm: FakeSlurm) -> None:
    hostile = "us\ntouch pwned"
    done = cli.ask("site", "discover", "--probe", "gpularge", "--account", hostile)
    assert (done.code, done.codes) == (4, ["plan.sbatch-value"])
    assert slurm.jobs == {}


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(cli: Cli, slurm: FakeSlurm) -> None:
    with probing(cli, slurm) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "asks a node" in said
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "job 1000 stays queued (scancel 1000 ends it)" in err
    assert "hpc-llm site discover --from rec" in err
    assert slurm.jobs == {"1000": "PENDING"}


def test_a_probe_that_ends_without_its_outputs_is_told(cli: Cli, slurm: FakeSlurm) -> None:
    with probing(cli, slurm, "--output", "json") as process:
        slurm.set(j1000="FAILED")
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 7, err
    assert '"site.probe-failed"' in out
