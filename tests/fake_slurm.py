"""The fake cluster of ``tests/fakes`` as tests hold it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FakeSlurm"]

BIN = Path(__file__).parent / "fakes" / "bin"


@dataclass(frozen=True)
class FakeSlurm:
    """A cluster that is the directory ``home``."""

    home: Path

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs to find the cluster."""
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "FAKE_SLURM": str(self.home)}

    @property
    def jobs(self) -> dict[str, str]:
        with self._alone() as known:
            return known

    def set(self, **states: str) -> None:
        """Give jobs their states; ``j7_1="RUNNING"`` is job ``7_1``."""
        with self._alone() as known:
            known.update((name.removeprefix("j"), state) for name, state in states.items())

    def replace(self, old: str, **new: str) -> None:
        """Put ``new`` jobs in place of ``old``: the tasks of an array that part."""
        with self._alone() as known:
            known.pop(old, None)
        self.set(**new)

    def forget(self) -> None:
        """Lose every job, as a controller does some minutes after their end."""
        with self._alone() as known:
            known.clear()

    @contextmanager
    def _alone(self) -> Iterator[dict[str, str]]:
        """The jobs, to be changed; no command has them meanwhile, each of which writes them."""
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.home / "jobs.json"
            known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
            yield known
            path.write_text(json.dumps(known))

    def fail(self, command: str, **fault: Any) -> None:
        """Make ``command`` fail as `fault` says, until it is mended."""
        (self.home / f"fail.{command}").write_text(json.dumps(fault))

    def mend(self, command: str) -> None:
        (self.home / f"fail.{command}").unlink()

    def calls(self, command: str) -> list[dict[str, Any]]:
        path = self.home / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["command"] == command]
