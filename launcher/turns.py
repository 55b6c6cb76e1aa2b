"""One submission of a run at a time, from whatever login node."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from launcher.errors import PlanError, Problem
from launcher.process import ProcessIds
from launcher.rundir import RunDir, claim

__all__ = ["turn"]

PATIENCE_S = 60.0
_LOOK_S = 0.2


@contextmanager
def turn(run: RunDir) -> Iterator[None]:
    """Wait until no other submission of ``run`` is at work, and be the one that is.

    As with leases the next generation is taken where the process that had one is provably dead.

    Raises
    ------
    PlanError
        ``rundir.busy`` after a minute.
    """
    mine = _take(run)
    try:
        yield
    finally:
        mine.unlink()


def _take(run: RunDir) -> Path:
    deadline = time.monotonic() + PATIENCE_S
    ids = json.dumps(asdict(ProcessIds.of(os.getpid()))).encode()
    generation = 1
    while True:
        path = run.path / "control" / f"submitting.g{generation}"
        if claim(path, ids):
            return path
        if _dead(path):
            generation += 1
        elif time.monotonic() > deadline:
            raise PlanError(_busy(run, path))
        else:
            time.sleep(_LOOK_S)


def _dead(path: Path) -> bool:
    try:
        return ProcessIds(**json.loads(path.read_bytes())).gone()
    except (OSError, ValueError, TypeError):  # it is just leaving, or just coming
        return False


def _busy(run: RunDir, path: Path) -> Problem:
    message = f"another command has been submitting {run.path} for a minute"
    hint = f"wait for it; if it was killed on another machine, delete {path}"
    return Problem("rundir.busy", message, hint=hint)
