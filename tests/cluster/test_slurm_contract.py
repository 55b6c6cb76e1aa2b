"""Slurm's commands as this package calls and reads them, on a real cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.cluster import Cluster
from slurm_contract import SlurmContract, World, held_script

from launcher.schedulers.base import JobRef

pytestmark = pytest.mark.slurm


class RealWorld(World):
    """Jobs that are held, released, and end as a file tells them."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self.jobs: list[JobRef] = []
        self._folders: dict[str, Path] = {}

    def script(self, **shape: int) -> Path:
        folder = self._folder / str(len(self.jobs))
        folder.mkdir()
        return held_script(folder, **shape)

    def submit(self, **shape: int) -> tuple[JobRef, str]:
        folder = self._folder / str(len(self.jobs))
        job, name = super().submit(**shape)
        self.jobs.append(job)
        self._folders[job.id] = folder
        return job, name

    def start(self, job: JobRef, *, task: int | None = None) -> None:
        id_ = job.id if task is None else f"{job.id}_{task}"
        self._cluster.run("scontrol", "release", id_)

    def end(self, job: JobRef, *, code: int, task: int | None = None) -> None:
        (self._folders[job.id] / f"code{'' if task is None else task}").write_text(f"{code}\n")


@pytest.fixture
def world(cluster: Cluster, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealWorld]:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    found = RealWorld(cluster, shared)
    yield found
    with contextlib.suppress(RuntimeError):
        cluster.run("scancel", *(job.id for job in found.jobs))


class TestReal(SlurmContract):
    pass
