"""Steps in containers, under stand-ins for srun with pyxis and for Apptainer.

The stand-ins keep what decides: whose value of a variable wins, what is mounted, and that only
a rank is told of its PMIx server. What a real image does is seen on a real cluster alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from launcher.plan.types import Plan
from launcher.prepare import prepare
from launcher.render.job import render_job
from launcher.resources import templates

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("own_home")

# What an image sets, as NVIDIA's do: pyxis and Apptainer let it win over the host's.
IMAGE = {"PYTHONPATH": "/of/the/image", "NCCL_IB_HCA": "of-the-image", "OPAL_PREFIX": "/opt/hpcx"}

# srun: options end at the first word without dashes. Its ranks get PMIx' variables, and with an
# image (pyxis, args.c and pyxis_slurmstepd.c) the image's variables over all others.
SRUN = """
words = sys.argv[1:]
options = []
while words[0].startswith("--"):
    options.append(words.pop(0))
environ = dict(os.environ, SLURM_PROCID="0", PMIX_RANK="0", PMIX_SERVER_TMPDIR="/spool/pmix.7.0")
image = [o for o in options if o.startswith("--container-image=")]
note("srun", options=options, inside=bool(image))
os.execvpe(words[0], words, environ | (IMAGE if image else {}))
"""
# apptainer exec (user guide, "Environment from the host"): the same, and PATH is its own.
APPTAINER = """
words = sys.argv[2:]
binds = []
while words[0].startswith("--"):
    option = words.pop(0)
    if option in ("--bind", "--pwd"):
        value = words.pop(0)
        binds += [value] if option == "--bind" else []
note("apptainer", verb=sys.argv[1], binds=binds, image=words.pop(0))
os.execvpe(words[0], words, dict(os.environ, **IMAGE))
"""
PYTHON = """
note("python", words=sys.argv[1:], environ=dict(os.environ))
"""
HEAD = """#!{python}
import json, os, sys
IMAGE = {image!r}
def note(name, **what):
    with open(os.path.join({out!r}, name), "a") as file:
        file.write(json.dumps(what) + "\\n")
"""


class Ran:
    """What the stand-ins saw."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def saw(self, name: str) -> list[dict[str, Any]]:
        path = self.out / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def inside(self) -> dict[str, str]:
        """The environment of the first rank's Python."""
        found: dict[str, str] = self.saw("python")[0]["environ"]
        return found


def planned(job: str, site: str, *settings: str) -> Plan:
    return prepare(ROOT / "jobs" / job, site=site, settings=settings).resolution.plan


def run_script(plan: Plan, folder: Path) -> Ran:
    run, binaries, out = (folder / name for name in ("run", "bin", "out"))
    for directory in (run / "jobs", run / "logs", binaries, out):
        directory.mkdir(parents=True)
    head = HEAD.format(python=sys.executable, image=IMAGE, out=str(out))
    for name, body in (("srun", SRUN), ("apptainer", APPTAINER), ("python3", PYTHON)):
        (binaries / name).write_text(head + body)
        (binaries / name).chmod(0o755)
    files = render_job(
        plan, plan_number="0001", run_dir=PurePosixPath(run), lib="z.zip", templates=templates()
    )
    (run / "script.sh").write_text(files["script.sh"])
    environ = {
        "PATH": f"{binaries}:/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "PYTHONPATH": "/of/the/login/node",
        "HF_HOME": "/of/the/user",
    }
    subprocess.run(["bash", run / "script.sh"], env=environ, capture_output=True, check=False)
    return Ran(out)


@pytest.fixture
def apptainer_site() -> str:
    return str(ROOT / "tests/golden/sites/h100x4-ib.yaml")


@pytest.fixture
def pyxis(tmp_path: Path) -> Ran:
    hca = "env={NCCL_IB_HCA: 'mlx5_0,mlx5_1'}"
    return run_script(planned("llama-3.1-70b.yaml", "dgx-h100", hca), tmp_path)


@pytest.fixture
def apptainer(tmp_path: Path, apptainer_site: str) -> Ran:
    return run_script(planned("llama-3.1-70b.yaml", apptainer_site), tmp_path)


def test_in_a_pyxis_image_what_job_and_run_set_wins_over_the_image(
    pyxis: Ran, tmp_path: Path
) -> None:
    assert pyxis.inside["NCCL_IB_HCA"] == "mlx5_0,mlx5_1"
    assert pyxis.inside["PYTHONPATH"] == f"{tmp_path}/run/lib/z.zip"
    assert pyxis.inside["PYTHONNOUSERSITE"] == "1"
    assert pyxis.inside["OPAL_PREFIX"] == IMAGE["OPAL_PREFIX"]


def test_in_an_apptainer_image_what_site_and_run_set_wins_over_the_image(
    apptainer: Ran, tmp_path: Path
) -> None:
    assert apptainer.inside["NCCL_IB_HCA"] == "mlx5_0,mlx5_1,mlx5_4,mlx5_5"
    assert apptainer.inside["HF_HUB_OFFLINE"] == "1"
    assert apptainer.inside["PYTHONPATH"] == f"{tmp_path}/run/lib/z.zip"
    assert apptainer.inside["OPAL_PREFIX"] == IMAGE["OPAL_PREFIX"]


@pytest.mark.parametrize("kind", ["pyxis", "apptainer"])
def test_what_is_inherited_and_what_pmix_sets_reach_the_ranks(
    kind: str, request: pytest.FixtureRequest
) -> None:
    ran: Ran = request.getfixturevalue(kind)
    assert ran.inside["HF_HOME"] == "/of/the/user"
    assert ran.inside["PMIX_RANK"] == "0"
    assert ran.inside["PMIX_SERVER_TMPDIR"] == "/spool/pmix.7.0"
    assert ran.saw("python")[0]["words"][:2] == ["-m", "launcher.runner.rank"]


def test_an_apptainer_image_is_shown_the_run_the_input_and_the_directory_of_the_pmix_server(
    apptainer: Ran, tmp_path: Path
) -> None:
    first = apptainer.saw("apptainer")[0]
    expected = [f"{tmp_path}/run", f"{ROOT}/jobs/prompts", "/spool/pmix.7.0"]
    assert sorted(first["binds"]) == sorted(expected)
    assert (first["verb"], first["image"]) == ("exec", "/apps/images/tensorrt-llm-1.2.0.sif")


def test_without_pmix_an_apptainer_image_is_started_by_srun_itself(
    tmp_path: Path, apptainer_site: str
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(Path(apptainer_site).read_text().replace("mpi: pmix", "mpi: pmi2"))
    ran = run_script(planned("llama-3.1-70b.yaml", str(site)), tmp_path / "scene")
    assert "/spool/pmix.7.0" not in ran.saw("apptainer")[0]["binds"]


def test_pyxis_is_told_of_the_image_and_its_mounts_and_of_no_home(
    pyxis: Ran, tmp_path: Path
) -> None:
    options = pyxis.saw("srun")[0]["options"]
    places = (f"{tmp_path}/run", f"{ROOT}/jobs/prompts")
    mounts = ",".join(f"{place}:{place}" for place in places)
    assert "--container-image=nvcr.io#nvidia/tensorrt-llm/release:1.2.0" in options
    assert f"--container-mounts={mounts}" in options
    assert "--no-container-mount-home" in options


def test_without_an_image_nothing_of_the_environment_is_changed(tmp_path: Path) -> None:
    settings = ("runtime={venv: /v}",)
    ran = run_script(planned("llama-3.1-70b.yaml", "dgx-h100", *settings), tmp_path)
    assert ran.saw("srun")[0]["inside"] is False
    assert ran.inside["PYTHONPATH"] == f"{tmp_path}/run/lib/z.zip:/of/the/login/node"
    assert "PYTHONNOUSERSITE" not in ran.inside


def test_a_shipped_job_is_rendered_where_it_says_and_needs_nothing_but_a_clone(
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("runs"))
    words = ("render", "jobs/llama-3.1-405b-fp8.yaml", "--site", "dgx-h100")
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "jobs/runs/llama-3.1-405b-fp8"
    assert str(run / "script.sh") in done.stdout.splitlines()
    assert (run / "script.sh").is_file()
