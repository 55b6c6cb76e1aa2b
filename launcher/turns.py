"""One process at a time, from whatever login node: submissions of a run, pulls of an image."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from launcher.errors import PlanError, Problem
from launcher.process import ProcessIds
from launcher.rundir import RunDir, claim

__all__ = ["held", "turn"]

PATIENCE_S = 60.0
_LOOK_S = 0.2


@contextmanager
def turn(run: RunDir) -> Iterator[None]:
    """Wait until no other submission of ``run`` is at work, and be the one that is.

    Raises
    ------
    PlanError
        ``rundir.busy`` after a minute.
    """
    deadline = time.monotonic() + PATIENCE_S

    def wait(path: Path, _: ProcessIds | None) -> None:
        if time.monotonic() > deadline:
            raise PlanError(_busy(run, path))

    with held(run.path / "control" / "submitting", wait):
        yield


@contextmanager
def held(name: Path, wait: Callable[[Path, ProcessIds | None], None]) -> Iterator[None]:
    """Have ``name`` alone. As with leases the next generation is taken where the last one is dead.

    Parameters
    ----------
    wait
        Called again and again while another process has it, with its file and, unless that is
        just coming or leaving, its owner; to raise once that is too long.
    """
    mine = _take(name, wait)
    try:
        yield
    finally:
        mine.unlink()


def _take(name: Path, wait: Callable[[Path, ProcessIds | None], None]) -> Path:
    ids = json.dumps(asdict(ProcessIds.of(os.getpid()))).encode()
    generation = 1
    while True:
        path = name.with_name(f"{name.name}.g{generation}")
        if claim(path, ids):
            return path
        owner = _owner(path)
        if owner is not None and owner.gone():
            generation += 1
            continue
        wait(path, owner)
        time.sleep(_LOOK_S)


def _owner(path: Path) -> ProcessIds | None:
    try:
        return ProcessIds(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):  # it is just leaving, or just coming
        return None


def _busy(run: RunDir, path: Path) -> Problem:
    message = f"another command has been submitting {run.path} for a minute"
    hint = f"wait for it; if it was killed on another machine, delete {path}"
    return Problem("rundir.busy", message, hint=hint)
