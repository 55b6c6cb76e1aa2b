from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NoReturn

import pytest

from launcher.engines.smollm2 import prepare
from launcher.errors import SpecError


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The converted SmolLM2-135M-Instruct, made once for all runs on this machine."""
    if importlib.util.find_spec("torch") is None:
        _unavailable("torch is not installed")
    cache = os.environ.get("HPC_LLM_MODEL_CACHE", "~/.cache/hpc-llm/models")
    try:
        return prepare(Path(cache).expanduser() / "smollm2-135m")
    except SpecError as exc:
        _unavailable(str(exc))


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
