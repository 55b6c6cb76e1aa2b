from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from cli_driving import Cli
from gpu_runs import gpu_numbers
from wide_smollm2 import widen

from launcher.resources import model_cache

# Where GPUs are expected, what is missing is a failure.
EXPECTED = "HPC_LLM_GPU_TESTS"


def lacking(reason: str) -> NoReturn:
    if os.environ.get(EXPECTED) == "1":
        pytest.fail(f"{EXPECTED}=1, and {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def enough_gpus(request: pytest.FixtureRequest) -> None:
    wanted = 2 if request.node.get_closest_marker("multigpu") else 1
    there = len(gpu_numbers())
    if there < wanted:
        lacking(f"{there} GPUs may be used, not {wanted}")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """A user with an empty home; jobs get the machine's own, which holds compiled kernels."""
    home = tmp_path / "home"
    home.mkdir()
    return Cli(home)


def importable(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        lacking(f"{name} is not installed")


@pytest.fixture
def vllm() -> str:
    """The engine's name, where it is installed."""
    importable("vllm")
    return "vllm"


@pytest.fixture
def transformers() -> str:
    """The engine's name, where it is installed."""
    importable("transformers")
    return "transformers"


@pytest.fixture
def mpirun() -> dict[str, str]:
    """How a site says that Open MPI starts its steps."""
    if shutil.which("mpirun") is None:
        lacking("mpirun is not on PATH")
    return {"with": "mpirun", "mpi": "openmpi4"}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The converted SmolLM2-135M-Instruct."""
    path = model_cache() / "smollm2-135m"
    if not (path / "config.json").is_file():
        lacking(f"{path} is not there: run `hpc-llm models prepare smollm2-135m`")
    return path


@pytest.fixture(scope="session")
def wide(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with heads that two GPUs can share."""
    return widen(smollm2, tmp_path_factory.mktemp("models") / "wide")
