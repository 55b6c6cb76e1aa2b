"""Scenes and workers for the tests of this directory."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
from faults.fault_scene import QUICK, Scene, Zygote, kept, make_scene, needs_strace

PARALLEL = 2


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Three units of four rows, answered two at a time."""
    needs_strace()
    return make_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="session")
def zygotes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Zygote]]:
    found = [Zygote(tmp_path_factory.mktemp("zygote")) for _ in range(PARALLEL)]
    yield found
    for zygote in found:
        zygote.close()


@pytest.fixture(scope="session")
def zygote(zygotes: list[Zygote]) -> Zygote:
    return zygotes[0]


@pytest.fixture(scope="session")
def inherited(scene: Scene, zygote: Zygote) -> Scene:
    """The same run as a killed worker left it, with rows of every unit in its logs."""
    for _ in range(20):
        run = scene.fresh()
        worker = zygote.start(run, job="0", constants=QUICK)
        while len(kept(run)) < len(scene.rows) / 3:
            assert worker.reap(block=False) is None, "it was too fast"
        worker.send(signal.SIGKILL)
        worker.reap(block=True)
        if any(path.stat().st_size for path in (run.path / "wal").iterdir()):
            return replace(scene, template=run, kills=1)
    raise AssertionError("there never was a log")
