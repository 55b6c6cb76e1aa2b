"""The zip that a run carries: the same bytes from the same sources, and enough to run alone."""

from __future__ import annotations

import ast
import functools
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.jobzip import build_zip
from launcher.prepare import prepare
from launcher.rundir import RunDir
from launcher.submit import render_to

# What an engine may import when it starts, because its jobs bring it.
OF_ENGINES = frozenset({"torch", "transformers", "gguf", "vllm", "tensorrt_llm", "mpi4py"})
LIBRARIES = frozenset({"jinja2", "markupsafe"})
# What some formats need, and the modules that are imported only where there are such files.
OF_FORMATS = frozenset({"pyarrow", "zstandard"})
FORMATS = frozenset({"launcher/data/readers/arrow.py", "launcher/data/readers/parquet.py"})
JOB = """\
name: j
engine: echo
model: none
input: {path: rows.jsonl, prompt: "Say {{ text | upper }}"}
output: {path: run}
"""


def pythons() -> list[str]:
    pyenv = Path("~/.pyenv/versions").expanduser()
    versions = [sorted(pyenv.glob(f"3.{minor}.*/bin/python")) for minor in (10, 11, 12, 13)]
    return [sys.executable, *(str(found[-1]) for found in versions if found)]


@functools.cache
def texts() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(build_zip()[1])) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


OURS = sorted(name for name in texts() if name.startswith("launcher/"))


def imported(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Absolute module names, and whether the import runs as soon as the module is imported."""
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _for_types_only(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", id(node) not in late


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def test_equal_sources_give_equal_bytes_under_a_name_of_their_own() -> None:
    name, data = build_zip()
    assert build_zip() == (name, data)
    assert re.fullmatch(r"[0-9a-f]{16}\.zip", name)
    again = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, launcher.jobzip as j; sys.stdout.buffer.write(j.build_zip()[1])",
        ],
        env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        capture_output=True,
        check=True,
    )
    assert again.stdout == data


def test_the_zip_holds_sources_alone_each_once() -> None:
    with zipfile.ZipFile(io.BytesIO(build_zip()[1])) as archive:
        names = archive.namelist()
    assert len(set(names)) == len(names)
    assert all(name.endswith(".py") for name in names)
    assert {"launcher/__init__.py", "launcher/runner/rank.py", "jinja2/__init__.py"} <= set(names)
    # What only a login node needs stays there.
    for absent in ("cli", "spec", "schedulers", "render", "prepare.py", "submit.py", "jobzip.py"):
        assert not [name for name in names if name.startswith(f"launcher/{absent}")]


def test_every_package_of_the_zip_can_be_imported_as_one() -> None:
    names = texts().keys()
    for package in {name.rsplit("/", 1)[0] for name in names}:
        assert f"{package}/__init__.py" in names


@pytest.mark.parametrize("name", OURS)
def test_a_module_of_the_zip_needs_nothing_that_is_not_in_it(name: str) -> None:
    available = {path.removesuffix(".py").removesuffix("/__init__") for path in texts()}
    for module, at_once in imported(ast.parse(texts()[name], name)):
        top = module.split(".")[0]
        if top == "launcher":
            path = module.replace(".", "/")
            assert path in available
            assert f"{path}.py" not in FORMATS or name in FORMATS or not at_once
        elif top in OF_FORMATS:
            assert name.startswith("launcher/data/readers/")
            assert name in FORMATS or not at_once, f"{name} imports {module} for every format"
        elif top in OF_ENGINES:
            measures = name == "launcher/preflight/links.py"  # with the engine's own libraries
            assert name.startswith("launcher/engines/") or measures
            assert not at_once, f"{name} imports {module} before its engine starts"
        else:
            assert top in sys.stdlib_module_names | LIBRARIES, f"{name} imports {module}"


@pytest.mark.parametrize("name", OURS)
def test_a_module_of_the_zip_is_written_for_the_oldest_python(name: str) -> None:
    ast.parse(texts()[name], name, feature_version=(3, 10))


def written_run(directory: Path) -> tuple[RunDir, str]:
    (directory / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"other": 1}\n')
    (directory / "job.yaml").write_text(JOB)
    prepared = prepare(directory / "job.yaml", site="local")
    (lib,) = (name for name in render_to(prepared) if name.startswith("lib/"))
    return prepared.run, lib


@pytest.mark.parametrize("module", ["launcher.runner.rank", "launcher.runner"])
@pytest.mark.parametrize("python", pythons())
@pytest.mark.usefixtures("own_home")
def test_a_whole_run_needs_nothing_but_the_zip(python: str, module: str, tmp_path: Path) -> None:
    run, lib = written_run(tmp_path)

    def bare(*words: str) -> subprocess.CompletedProcess[str]:
        # Without site-packages of any kind: -S for this process, -s for the user's own.
        return subprocess.run(
            [python, "-S", "-s", "-W", "error", *words],
            env={"PYTHONPATH": str(run.path / lib), "PYTHONNOUSERSITE": "1"},
            cwd=run.path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    where = bare("-c", "import launcher, jinja2; print(launcher.__file__, jinja2.__file__)")
    assert where.stdout.split() == [
        f"{run.path / lib}/{package}/__init__.py" for package in ("launcher", "jinja2")
    ], where.stderr
    words = ("--plan", "0001", "--replica", "0", "--job", "j", "--restart", "0")
    done = bare("-m", module, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert run.done_path.exists()
    assert (run.path / "jobs" / "j.0.s0.done").is_file()
    rows = [
        json.loads(line)
        for part in sorted((run.path / "parts").iterdir())
        for line in part.read_text().splitlines()
    ]
    assert [row["status"] for row in rows] == ["ok", "ok", "error"]
    assert "ONE" in json.dumps(rows[0])
