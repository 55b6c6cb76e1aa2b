"""What tests of every kind share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# Shared machines stall: a slow example is no failure. Importing hypothesis here also keeps its
# pytest plugin from doing so in the summary, where Python 3.11's parser has failed on it.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the expected files of tests/golden anew, to be read in the diff",
    )


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without settings, runs or models, so that the machine's own decide nothing."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HPC_LLM_CONFIG_DIR", "HPC_LLM_MODEL_CACHE", "HPC_LLM_SITE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home
