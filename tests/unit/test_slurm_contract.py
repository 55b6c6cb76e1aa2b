"""The fake cluster keeps to what the real one does."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from slurm_contract import SlurmContract, World, held_script

from launcher.schedulers.base import JobRef


class FakeWorld(World):
    """Jobs whose states a test sets."""

    def __init__(self, slurm: FakeSlurm, folder: Path) -> None:
        self._slurm = slurm
        self._folder = folder

    def script(self, **shape: int) -> Path:
        return held_script(self._folder, **shape)

    def start(self, job: JobRef, *, task: int | None = None) -> None:
        if task is None:
            self._slurm.set(**{f"j{job.id}": "RUNNING"})
            return
        parted = {f"j{job.id}_{task}": "RUNNING", f"j{job.id}_[0,2]": "PENDING"}
        self._slurm.replace(f"{job.id}_[0-2]", **parted)

    def end(self, job: JobRef, *, code: int, task: int | None = None) -> None:
        name = f"j{job.id}" if task is None else f"j{job.id}_{task}"
        self._slurm.set(**{name: "FAILED" if code else "COMPLETED"})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    home = tmp_path / "slurm"
    home.mkdir()
    slurm = FakeSlurm(home)
    for name, value in slurm.environ.items():
        monkeypatch.setenv(name, value)
    return FakeWorld(slurm, tmp_path)


class TestFake(SlurmContract):
    pass
