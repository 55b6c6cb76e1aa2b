"""What a compute node's own Python is told when it is too old."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

OLD = sorted(Path.home().glob(".pyenv/versions/[23].[0-9].*/bin/python"))
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("pretended", [(2, 7), (3, 6), (3, 9)])
def test_an_older_python_is_told_what_to_set(pretended: tuple[int, int]) -> None:
    code = f"import sys; sys.version_info = {(*pretended, 0)}; import launcher"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{sys.executable} is {pretended[0]}.{pretended[1]}: set runtime.python" in done.stderr


@pytest.mark.parametrize("python", OLD, ids=lambda path: path.parents[1].name)
def test_a_real_one_understands_that_much(python: Path) -> None:
    words = [str(python), "-m", "launcher.runner.rank"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "hpc-llm needs Python 3.10 or newer" in done.stderr
