"""The distribution as users get it: the wheel that comes out of the sdist, alone in a venv."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "constraints" / f"dev-py{sys.version_info.major}{sys.version_info.minor}.txt"
DATA = {
    "templates": "templates",
    "site_configs": "site_configs",
    "docs/reference": "reference",
}
JOB = """\
schema: 1
name: packaged
engine: echo
model: echo
input: {path: rows.txt}
output: {path: run}
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What ``command`` prints; its failure is the test's."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HPC_LLM_"))}
    done = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a venv that holds the wheel and what it asks for, in the locked versions."""
    home = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", home, cwd=home)
    # As plain versions: pip wants hashes for all or none, and the wheel is not locked.
    pins = home / "pins.txt"
    pins.write_text("\n".join(re.findall(r"^\S+==\S+", LOCK.read_text(), re.MULTILINE)))
    pip = (home / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--constraint", pins, wheel, cwd=home)
    return home / "bin"


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {n for n in archive.namelist() if not re.match(r"[^/]*\.dist-info/", n)}


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    code = {p.relative_to(ROOT).as_posix() for p in (ROOT / "launcher").rglob("*.py")}
    data = {
        f"launcher/_data/{home}/{path.relative_to(ROOT / place).as_posix()}"
        for place, home in DATA.items()
        for path in (ROOT / place).rglob("*")
        if path.is_file()
    }

    assert names(wheel) == code | data
    assert "launcher/_data/reference/errors.md" in data


def test_the_sdist_holds_what_is_needed_to_test_it(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}

    assert {
        *("LICENSE", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"),
        *("jobs/quickstart.yaml", "jobs/prompts/questions.jsonl", "docs/reference/errors.md"),
        *(
            "tests/package/test_wheel.py",
            "benchmarks/cli_start.py",
            LOCK.relative_to(ROOT).as_posix(),
        ),
    } <= held
    assert [name for name in held if name.startswith(("jobs/runs", "runs", ".venv"))] == []


def test_what_runs_from_the_wheel_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(
        installed / "python", "-c", "import launcher; print(launcher.__file__)", cwd=tmp_path
    )

    assert Path(where.strip()).is_relative_to(installed.parent)


@pytest.mark.usefixtures("own_home")
def test_the_wheel_plans_a_job_far_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "rows.txt").write_text("one\ntwo\n")

    plan = run(installed / "hpc-llm", "plan", "job.yaml", "--site", "local", cwd=tmp_path)

    assert "packaged on site local" in plan


@pytest.mark.usefixtures("own_home")
def test_the_wheel_runs_a_job_far_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "rows.txt").write_text("one\ntwo\n")
    hpc_llm = installed / "hpc-llm"

    run(hpc_llm, "submit", "job.yaml", "--site", "local", "--wait", cwd=tmp_path)
    rows = run(hpc_llm, "results", "run", cwd=tmp_path)

    assert re.findall(r'"text":"(\w+)"', rows) == ["one", "two"]


@pytest.mark.usefixtures("own_home")
def test_the_wheel_brings_its_sites_and_error_pages(installed: Path, tmp_path: Path) -> None:
    hpc_llm = installed / "hpc-llm"
    sites = run(hpc_llm, "site", "list", cwd=tmp_path)

    shipped = {path.stem for path in (ROOT / "site_configs").glob("*.yaml")}
    assert {line.split()[0] for line in sites.splitlines()} == shipped
    assert str(ROOT) not in sites
    assert "nearest" in run(hpc_llm, "explain", "spec.unknown-key", cwd=tmp_path)


def test_the_wheel_says_its_version(wheel: Path, installed: Path, tmp_path: Path) -> None:
    version = wheel.name.split("-")[1]

    assert version in run(installed / "hpc-llm", "--version", cwd=tmp_path)
