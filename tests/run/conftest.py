from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_driving import Cli, session_processes


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """A user with an empty home; whatever still runs for them at the end is killed."""
    home = tmp_path / "home"
    home.mkdir()
    # A shell starts background jobs with Ctrl-C ignored, and the commands would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Cli(home)
    for entry in tmp_path.rglob("jobs/*.submitted"):
        for pid in session_processes(json.loads(entry.read_bytes())["process"]["pid"]):
            os.kill(pid, signal.SIGKILL)
