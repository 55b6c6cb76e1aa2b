"""Whether a process still lives, told from what it wrote about itself, and ends of families."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessIds", "adopt_orphans", "descendants", "kill"]

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_KILLED_S = 5.0


@dataclass(frozen=True, slots=True)
class ProcessIds:
    """Enough to tell whether a process still lives, from its own host."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIds:
        """The process ``pid`` of this machine."""
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), pid, _stat(pid)[1])

    def elsewhere(self) -> bool:
        """Whether it lives where this process cannot see: another host or pid namespace."""
        if socket.gethostname() != self.host:
            return True
        return _boot_id() == self.boot_id and _pid_namespace() != self.pid_namespace

    def gone(self) -> bool:
        """Whether the process is provably dead: it lived on this host, and lives no more."""
        if self.elsewhere():
            return False
        if _boot_id() != self.boot_id:
            return True
        try:
            state, ticks = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return True
        return ticks != self.start_ticks or state in "ZX"  # a zombie works no more

    def session_gone(self) -> bool:
        """Whether, of a process that led a session, its children too are provably dead.

        A number that still names a session is not given to a new process, so what is found
        under it once its leader is dead is what the leader left behind.
        """
        if not self.gone():
            return False
        if _boot_id() != self.boot_id:
            return True
        return not any(_session(entry.name) == self.pid for entry in Path("/proc").iterdir())


def adopt_orphans(*, adopt: bool = True) -> None:
    """Become the parent of what this process's descendants leave behind when they die."""
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def descendants() -> frozenset[tuple[int, int]]:
    """The live processes that this one has started, and those that they have: pid and start.

    Python's resource trackers are left out: they end by themselves once nobody needs them, and
    then remove the shared memory that others have left.
    """
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # no process, or gone meanwhile
            pid, fields = int(entry.name), _fields(entry.name)
            if fields[0] not in "ZX":
                parents.setdefault(int(fields[1]), []).append(pid)
    found, left = set(), parents.get(os.getpid(), [])
    while left:
        pid = left.pop()
        left += parents.get(pid, [])
        with contextlib.suppress(OSError):
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add((pid, _stat(pid)[1]))
    return frozenset(found)


def kill(processes: Collection[tuple[int, int]]) -> None:
    """End those of ``processes`` (pid and start) that still live, and see them gone."""
    for pid, _ in (alive := [process for process in processes if _is_alive(*process)]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    given_up_s = time.monotonic() + _KILLED_S
    while any(_is_alive(*process) for process in alive) and time.monotonic() < given_up_s:
        time.sleep(0.05)


def _is_alive(pid: int, start_ticks: int) -> bool:
    try:
        state, ticks = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return ticks == start_ticks and state not in "ZX"


def _stat(pid: int) -> tuple[str, int]:
    """State, and start in clock ticks since boot (proc_pid_stat(5), fields 3 and 22)."""
    fields = _fields(str(pid))
    return fields[0], int(fields[19])


def _session(pid: str) -> int | None:
    """The session of a live process (field 6); None when it is dead or no process."""
    if not pid.isdigit():
        return None
    try:
        fields = _fields(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last with hidepid=1
        return None
    return None if fields[0] in "ZX" else int(fields[3])


def _fields(pid: str) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())
