"""How the processes of one replica find its first one: by a file in the run directory."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path

from launcher.errors import Problem, RunError
from launcher.rundir import publish

__all__ = ["MEET_S", "announce", "find"]

# Nodes that start a container or import from a cold file system come minutes apart.
MEET_S = 300.0


def announce(meeting: Path, *ports: int) -> None:
    """Say that this process listens on ``ports`` of this host; the file appears whole and once."""
    publish(meeting, json.dumps([socket.gethostname(), *ports]).encode())


def find(meeting: Path) -> tuple[str, list[int]]:
    """The host and the ports of the first process, as soon as it has announced them.

    Raises
    ------
    RunError
        ``run.rendezvous`` when it has not within `MEET_S`.
    SystemExit
        With 0: the first one has left and needs nobody.
    """
    deadline = time.monotonic() + MEET_S
    while time.monotonic() < deadline:
        # Found by opening it, since a listing may be a minute old.
        with contextlib.suppress(FileNotFoundError):
            address = json.loads(meeting.read_bytes())
            if address is None:
                raise SystemExit(0)
            host, *ports = address
            # The name of one's own machine may lead nowhere; from elsewhere it leads here.
            return "127.0.0.1" if host == socket.gethostname() else host, ports
        time.sleep(0.1)
    message = f"the first process published no address in {meeting} within {MEET_S:.0f} s"
    hint = "is the run directory on a file system that all nodes share?"
    raise RunError(Problem("run.rendezvous", message, hint=hint))
