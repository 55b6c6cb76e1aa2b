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
from launcher.plan.types import Network, Plan
from launcher.rundir import replace
from launcher.runner.nccl import Finding, classify

__all__ = ["Judge", "NcclLog"]

_CHUNK_BYTES = 65536
_SETTLED = b"hpc-llm: all is heard"
_KEPT = 5
# More than it takes to kill what does not want to die.
_PATIENCE_S = 10.0
_SUBSYSTEMS = "INIT,BOOTSTRAP,NET,ENV"
_FABRICS = {
    "infiniband": "InfiniBand",
    "slingshot": "Slingshot",
    "ethernet": "Ethernet",
    "omnipath": "Omni-Path",
}
_LINKS = {"IB": "InfiniBand", "RoCE": "RoCE"}
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
        self._expected = plan.network
        # Pairs are not told apart here.
        gpus = plan.gpus
        self._linked = gpus is not None and (gpus.domain or 1) == gpus.count > 1
        self._host = socket.gethostname()

    def hear(self, line: str) -> bool:
        """Whether ``line`` changes the verdict."""
        found = classify(line)
        if found is None:
            return False
        before = (self.network, len(self.warnings), self.fatal)
        if found.kind == "shared-memory":
            if self._linked:
                self._warn(
                    "passes data between GPUs through host memory, and NVLink joins them",
                    "give each rank all GPUs of its node, without --gpu-bind",
                )
        elif self._expected is not None:
            self._compare(found, self._expected)
        return before != (self.network, len(self.warnings), self.fatal)

    def _compare(self, found: Finding, expected: Network) -> None:
        if found.kind == "sockets":
            self._fell_back(found, expected)
        elif found.kind == "verbs":
            self._ports(found.names, expected)
        elif found.kind == "no-gdr":
            self._warn(
                "reaches the network through host memory, without GPUDirect RDMA",
                "ask for nvidia_peermem or dmabuf on the nodes",
            )
        elif found.names[0] != "IB":  # of that the line about ports tells more
            self.network = found.names[0]

    def _fell_back(self, found: Finding, expected: Network) -> None:
        if found.names or self.network is None:  # "Using network Socket" tells less
            self.network = " on ".join(["TCP", *([", ".join(found.names)] if found.names else [])])
        declared = _FABRICS[expected.type]
        if expected.type == "ethernet" and not expected.rails:
            return
        if expected.type == "infiniband" and not expected.sockets:
            message = f"NCCL uses sockets (node {self._host}), and the site has {declared}"
            self.fatal = Problem("run.fabric", message, hint=_NO_SOCKETS)
            return
        self._warn(f"uses sockets, and the site has {declared}", "see what NCCL_DEBUG=INFO says")

    def _ports(self, names: tuple[str, ...], expected: Network) -> None:
        if not names:
            return
        links = sorted({_LINKS[name.rpartition("/")[2]] for name in names})
        count = len(names)
        self.network = f"{' and '.join(links)}, {count} rail{'s' * (count != 1)}"
        rails = {rail.hca for rail in expected.rails}
        strange = [name for name in names if _is_strange(name, rails, expected)]
        if strange:
            self._warn(
                f"uses {', '.join(strange)}, which is no rail of the site",
                "name the ports that carry GPU traffic as fabric.rails of the site",
            )
        used = {known for name in names for known in _hca(name)}
        missing = [rail.hca for rail in expected.rails if rail.hca not in used]
        if missing:
            self._warn(f"does not use {', '.join(missing)}", "see whether ibstat has them Active")
        elif expected.ports is not None and count < expected.ports:
            self._warn(f"uses {count} of {expected.ports} rails", "compare with ibstat on the node")

    def _warn(self, what: str, hint: str) -> None:
        problem = Problem(
            "run.fabric", f"NCCL {what} (node {self._host})", hint=hint, severity="warning"
        )
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


def _hca(name: str) -> set[str]:
    """``mlx5_0:1/IB`` as a site may name it: with its port, or without."""
    return {name.rpartition("/")[0], name.partition(":")[0]}


def _is_strange(name: str, rails: set[str], expected: Network) -> bool:
    if rails:
        return rails.isdisjoint(_hca(name))
    return expected.type == "infiniband" and name.endswith("/RoCE")


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
