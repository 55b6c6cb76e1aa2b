"""Whether ranks reach each other as the plan has it, told from NCCL's own log.

NCCL falls back without a word: to TCP where InfiniBand is missing, to host memory where ranks do
not see each other's GPUs. It says so at INFO alone, in hundreds of lines. So they go into a pipe
of this wrapper (``NCCL_DEBUG_FILE``); what is worth it goes on to the step's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.errors import Problem
from launcher.parsers.nccl import Expected, Finding, NcclReader
from launcher.plan.types import Network, Plan
from launcher.rundir import replace

__all__ = ["Judge", "NcclLog"]

_CHUNK_BYTES = 65536
_SETTLED = b"hpc-llm: all is heard"
_KEPT = 5
# More than it takes to kill what does not want to die.
_PATIENCE_S = 10.0
_SUBSYSTEMS = "INIT,BOOTSTRAP,NET,ENV"
_NO_SOCKETS = (
    "look for /dev/infiniband and libibverbs in the image, and at the ports with ibstat; or set "
    "allow: [tcp-fallback]"
)


class Judge:
    """Hears NCCL's log of one rank's processes, and compares it with the plan.

    Attributes
    ----------
    network
        What NCCL uses between nodes, in words; None until it has said so, and on one node.
    warnings
        The first few, each once.
    fatal
        Why the step must not go on.
    """

    def __init__(self, plan: Plan) -> None:
        self.network: str | None = None
        self.warnings: list[Problem] = []
        self.fatal: Problem | None = None
        self._plan = plan.network
        self._reader = NcclReader(_expected(plan))
        self._host = socket.gethostname()

    def hear(self, line: str) -> bool:
        """Whether ``line`` changes the verdict."""
        found = self._reader.feed(line)
        if found is None or _is_moot(found, self._plan):
            return False
        before = (self.network, len(self.warnings), self.fatal)
        if self._plan is not None:
            self._note(found, self._plan)
        if not found.good:
            self._blame(found)
        return before != (self.network, len(self.warnings), self.fatal)

    def _note(self, found: Finding, network: Network) -> None:
        """Keep in words which network it is."""
        if found.kind == "infiniband":
            link = "RoCE" if network.type == "ethernet" else "InfiniBand"
            count = len(found.values)
            self.network = f"{link}, {count} rail{'s' * (count != 1)}"
            if network.ports is not None and count < network.ports:
                self._warn(f"NCCL uses {count} of {network.ports} rails", "see ibstat on that node")
        elif found.kind == "sockets" and (found.values or self.network is None):
            self.network = "TCP" + (f" on {', '.join(found.values)}" if found.values else "")
        elif found.kind == "plugin":
            self.network = found.values[0]

    def _blame(self, found: Finding) -> None:
        network = self._plan
        if found.kind == "sockets" and network is not None and network.type == "infiniband":
            message = f"NCCL uses sockets (node {self._host}), and the site has InfiniBand"
            if not network.sockets:
                self.fatal = Problem("run.fabric", message, hint=_NO_SOCKETS)
                return
        self._warn(found.message, found.hint or "see what NCCL_DEBUG=INFO says")

    def _warn(self, message: str, hint: str) -> None:
        words = f"{message} (node {self._host})"
        problem = Problem("run.fabric", words, hint=hint, severity="warning")
        if problem not in self.warnings and len(self.warnings) < _KEPT:
            self.warnings.append(problem)

    def to_json(self) -> dict[str, object]:
        """For the file that `hpc-llm status` reads."""
        problems = [*self.warnings, *([self.fatal] if self.fatal else [])]
        return {
            "host": self._host,
            "network": self.network,
            "problems": [problem.to_json() for problem in problems],
        }


def _expected(plan: Plan) -> Expected:
    network, gpus = plan.network, plan.gpus
    # NCCL names ports by their number.
    rails = tuple(rail.hca for rail in network.rails) if network else ()
    named = all(":" in hca for hca in rails)
    return Expected(
        fabric=network.type if network else None,
        rails=rails if named else (),
        # Of pairs it does not tell which of its ranks are one.
        nvlink=gpus is not None and (gpus.domain or 1) == gpus.count > 1,
        interface=plan.env.get("NCCL_SOCKET_IFNAME"),
        over_nodes=network is not None,
    )


def _is_moot(found: Finding, network: Network | None) -> bool:
    if found.kind in ("no-port", "no-verbs"):
        return network is None or network.type != "infiniband"
    # Of an adapter too far from one GPU this is said where another is used.
    return found.kind == "no-gdr" and "distance" in found.message


class NcclLog:
    """A pipe with a name for NCCL to write to, and the thread that reads it.

    Where the user has set ``NCCL_DEBUG``, all goes on to the step's log, and to `also`. Nothing is
    done where they chose a file for it, where one rank has nobody to talk to, or without a place
    for the pipe.

    Attributes
    ----------
    also
        Hears what goes on to the log, in a thread of its own.
    """

    def __init__(self, plan: Plan, environ: dict[str, str], note: Path, *, first: bool) -> None:
        self.also: Callable[[str], None] = lambda _: None
        self._stop: Callable[[], None] = lambda: None
        self._judge = Judge(plan)
        self._note, self._first = note, first
        self._echo = "NCCL_DEBUG" in environ
        self._over = False
        self._settled = threading.Event()
        self._thread: threading.Thread | None = None
        talks = plan.gpus is not None and plan.layout.cut.ranks > 1
        if talks and "NCCL_DEBUG_FILE" not in environ:
            with contextlib.suppress(OSError):
                self._open(environ)

    @property
    def fatal(self) -> Problem | None:
        """Why the step must not go on."""
        return self._judge.fatal

    def on_fatal(self, stop: Callable[[], None]) -> None:
        """Have ``stop`` called, in a thread of its own, once the step must not go on."""
        self._stop = stop
        if self.fatal is not None:
            stop()

    def _open(self, environ: dict[str, str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="hpc-llm-")
        place = os.path.join(self._folder, "nccl")  # noqa: PTH118 - for an environment
        os.mkfifo(place)
        # To read and to write: then nobody who opens it waits, and it has no end.
        self._pipe = os.open(place, os.O_RDWR)
        environ.update(_variables(environ, place))
        self._thread = threading.Thread(target=self._read, name="nccl", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Hear all that was written until now."""
        if self._thread is not None:
            self._settled.clear()
            os.write(self._pipe, b"\n" + _SETTLED + b"\n")
            self._settled.wait(_PATIENCE_S)

    def close(self) -> None:
        """Hear what is left, and nothing more."""
        if self._thread is None:
            return
        self._settled.clear()  # else it might end before the last word is written
        self._over = True
        self.settle()
        self._thread.join(_PATIENCE_S)
        os.close(self._pipe)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> None:
        rest = b""
        while not (self._over and self._settled.is_set()):
            *lines, rest = (rest + os.read(self._pipe, _CHUNK_BYTES)).split(b"\n")
            rest = rest[-_CHUNK_BYTES:]
            for line in lines:
                if line == _SETTLED:
                    self._settled.set()
                elif line:
                    # Whatever it is: were nobody to read any more, NCCL would wait in a full pipe.
                    with contextlib.suppress(Exception):
                        self._hear(line.decode(errors="replace"))

    def _hear(self, line: str) -> None:
        if self._echo or "NCCL WARN" in line:
            _say(line)
            if self._echo:
                self.also(line)
        known = len(self._judge.warnings)
        had, news = self._judge.fatal, self._judge.hear(line)
        if not news:
            return
        for problem in self._judge.warnings[known:]:
            _say(f"hpc-llm: {problem}")
        if self._first or self._judge.warnings or self._judge.fatal:
            with contextlib.suppress(OSError):  # a full disk
                replace(self._note, json.dumps(self._judge.to_json()).encode(), sync=False)
        if had is None and self._judge.fatal is not None:
            self._stop()


def _variables(environ: Mapping[str, str], place: str) -> dict[str, str]:
    """``NCCL_DEBUG_FILE`` takes ``%h`` and ``%p`` for host and process (NCCL user guide)."""
    if "%" in place:
        raise OSError("the name of this machine's temporary directory holds a percent sign")
    own = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": _SUBSYSTEMS}
    return {**({} if "NCCL_DEBUG" in environ else own), "NCCL_DEBUG_FILE": place}


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk takes no log
        os.write(1, f"{text}\n".encode())
