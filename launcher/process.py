"""Whether a process still lives, told from what it once wrote about itself."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessIds"]


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
