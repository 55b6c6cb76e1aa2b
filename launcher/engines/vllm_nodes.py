"""vLLM over several nodes, without Ray: how their processes meet, and how they end together.

vLLM is told where its workers meet, and offers those of later nodes no way to end: there
``vllm serve --headless`` waits until its own workers die (vllm/entrypoints/cli/serve.py,
``run_headless``). So each later process holds a connection to the first one, the tether. A word
on it announces an orderly end, which its own end is; that without a word means that the first
process is gone.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from launcher.engines import meeting
from launcher.engines.base import EngineSetup
from launcher.engines.overheard import Overheard
from launcher.engines.vllm_causes import death_of
from launcher.engines.vllm_start import check_owned, start_workers
from launcher.errors import Problem, RunError
from launcher.process import adopt_orphans, descendants, kill

__all__ = ["FIRST_WORD_S", "Lead", "follow", "may_follow"]

# A node whose neighbour died sees broken connections. The launcher ends it before that has
# passed, and the word of the one that died, which tells more, stands.
FIRST_WORD_S = 3.0
_POLL_S = 0.2
_HELLO_S = 5.0
_ENDING_S = 1.0
# The first process has killed by then what it could not end.
_PARTING_S = 30.0
_MOST_HELLO_BYTES = 512
_END = b"end\n"
_MAY_FOLLOW = {"engine.died", "engine.model", "gpu.failed"}
_HINT = "may nodes open connections to each other on any port of the interface of their host name?"


def may_follow(exc: BaseException) -> bool:
    """Whether what has failed here may have failed because another node did."""
    return isinstance(exc, RunError) and all(p.code in _MAY_FOLLOW for p in exc.problems)


class Lead:
    """What the first process of a replica holds while the others follow."""

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._changing = threading.Lock()
        self._released = False
        self._sockets: list[socket.socket] = []
        self._followers: dict[int, socket.socket] = {}

    def gather(self) -> dict[str, Any]:
        """Wait for the others: vLLM's arguments for the first node.

        Raises
        ------
        RunError
            ``run.rendezvous`` when one does not come in time.

        Notes
        -----
        vLLM's workers meet at a port that has to be known before the first of them binds it.
        Until then, and after, it is bound here without listening, so that nobody else is given
        it: of two sockets with SO_REUSEADDR one may listen beside the other (Linux,
        ``net/ipv4/inet_connection_sock.c``), and torch sets it on its store's.
        """
        master, listener = _bound(), _bound()
        with self._changing:
            self._sockets = [master, listener]
        listener.listen()
        listener.settimeout(_POLL_S)
        place = self._setup.meeting
        if place is None:
            raise RunError(Problem("run.rendezvous", "several nodes, and no place to meet"))
        port: int = master.getsockname()[1]
        meeting.announce(place, listener.getsockname()[1], port)
        deadline = time.monotonic() + meeting.MEET_S
        while missing := set(range(1, self._setup.tasks)) - self._followers.keys():
            if self._released or time.monotonic() > deadline:
                raise RunError(_missing(missing))
            self._accept(listener, place.name)
        own = _plain(self._followers[1].getsockname()[0])
        os.environ.setdefault("VLLM_HOST_IP", own)
        # All of them are on this machine: which of its addresses they take is the same to them.
        return _node(self._setup, "127.0.0.1", port)

    def announce_end(self) -> None:
        """Tell the others that whatever ends from now on does so in order.

        They wait for `release`: vLLM's first process would call it a failure if they went before.
        """
        with self._changing:
            self._released = True
            for follower in self._followers.values():
                with suppress(OSError):  # it has ended before
                    follower.sendall(_END)

    def release(self) -> None:
        """Let the others go."""
        with self._changing:
            self._released = True
            for held in (*self._followers.values(), *self._sockets):
                held.close()

    def _accept(self, listener: socket.socket, name: str) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # its timeout, or `release` has closed it
            return
        task = _hello(connection, name)
        with self._changing:
            if task is None or self._released:
                connection.close()
            else:
                self._followers[task] = connection


def follow(setup: EngineSetup) -> None:
    """Start the workers of a later node and keep them until the first process ends or is gone.

    Raises
    ------
    RunError
        As `launcher.engines.vllm_start.start_workers`; ``engine.died`` when a worker has;
        ``run.rendezvous`` when the first process is not found.
    """
    if setup.tasks == 1 or setup.meeting is None:
        message = f"process {setup.rank} of a vllm replica was started, and it has one"
        raise RunError(Problem("engine.unavailable", message, hint="start script.sh as rendered"))
    check_owned(setup.options)
    # What asks the step to leave asks its first process too, and that one ends the others in
    # order. Not ignored, which processes that are started would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    tether, port = _joined(setup)
    with tether:
        os.environ.setdefault("VLLM_HOST_IP", _plain(tether.getsockname()[0]))
        node = _node(setup, _plain(tether.getpeername()[0]), port)
        others = descendants()
        adopt_orphans()
        overheard = Overheard()
        workers = _Workers(setup, overheard, node)
        workers.start()
        try:
            _hold(tether, workers)
            workers.forgive()
            _has_ended(tether, _PARTING_S)  # at once where no word has announced it
        finally:
            workers.end(others)
            overheard.stop()


class _Workers(threading.Thread):
    """vLLM's workers of this node; ``failure`` is why they are no more."""

    def __init__(self, setup: EngineSetup, overheard: Overheard, node: Mapping[str, Any]) -> None:
        super().__init__(name="vllm-workers", daemon=True)
        self.failure: RunError | None = None
        self._setup, self._overheard, self._node = setup, overheard, node
        self._executor: Any = None

    def run(self) -> None:
        try:
            self._executor = start_workers(self._setup, self._overheard, self._node)
            self._executor.start_worker_monitor(inline=True)  # returns when one has died
            died = death_of(self._overheard.settled(), ChildProcessError("a worker has ended"))
            self.failure = RunError(_here(self._setup, died))
        except RunError as exc:
            self.failure = RunError(_here(self._setup, problem) for problem in exc.problems)
        except Exception as exc:  # noqa: BLE001 - handed to `_hold`, which raises it
            died = death_of(self._overheard.settled(), exc)
            self.failure = RunError(_here(self._setup, died))

    def forgive(self) -> None:
        """They may end now."""
        if self._executor is not None:
            # Its monitor is not to call that a failure (start_worker_monitor looks at this).
            self._executor.shutting_down = True

    def end(self, others: frozenset[tuple[int, int]]) -> None:
        """Kill them; again, as there may be new ones meanwhile, while they are being started."""
        self.forgive()
        given_up_s = time.monotonic() + _ENDING_S
        kill(descendants() - others)
        while self.is_alive() and time.monotonic() < given_up_s:
            self.join(_POLL_S)
            kill(descendants() - others)


def _hold(tether: socket.socket, workers: _Workers) -> None:
    """Return when the first process has ended or is gone; raise why the workers have failed."""
    while workers.failure is None:
        if _has_ended(tether, _POLL_S):
            return
    if may_follow(workers.failure) and _has_ended(tether, FIRST_WORD_S):
        return
    raise workers.failure


def _has_ended(tether: socket.socket, patience_s: float) -> bool:
    """Whether the first process says within ``patience_s`` that it ends, or is gone."""
    tether.settimeout(patience_s)
    try:
        tether.recv(len(_END))
    except TimeoutError:
        return False
    except OSError:  # reset
        return True
    return True


def _joined(setup: EngineSetup) -> tuple[socket.socket, int]:
    """The tether, and the port at which vLLM's workers meet."""
    assert setup.meeting is not None  # noqa: S101 - `follow` has looked
    host, (listens, port) = meeting.find(setup.meeting)
    try:
        tether = socket.create_connection((host, listens), meeting.MEET_S)
        tether.sendall(f"{setup.meeting.name} {setup.rank}\n".encode())
    except OSError as exc:
        time.sleep(FIRST_WORD_S)  # the first process may have left meanwhile, and said why
        message = f"{socket.gethostname()} does not reach the first process at {host}:{listens}"
        raise RunError(Problem("run.rendezvous", f"{message}: {exc}", hint=_HINT)) from exc
    return tether, port


def _hello(connection: socket.socket, name: str) -> int | None:
    """Which process of the meeting ``name`` has come; None for anybody else."""
    connection.settimeout(_HELLO_S)
    said = b""
    with suppress(OSError):
        while not said.endswith(b"\n") and len(said) < _MOST_HELLO_BYTES:
            if not (more := connection.recv(_MOST_HELLO_BYTES)):
                break
            said += more
    its, _, task = said.decode(errors="replace").rstrip("\n").rpartition(" ")
    return int(task) if its == name and task.isdigit() else None


def _missing(tasks: set[int]) -> Problem:
    which = ", ".join(map(str, sorted(tasks)))
    message = f"process {which} did not come within {meeting.MEET_S:.0f} s"
    return Problem("run.rendezvous", message, hint=_HINT)


def _node(setup: EngineSetup, address: str, port: int) -> dict[str, Any]:
    """What vLLM is told; its nodes have equal numbers of ranks, as those of the plan."""
    return {
        "nnodes": setup.tasks,
        "node_rank": setup.rank,
        "master_addr": address,
        "master_port": port,
    }


def _bound() -> socket.socket:
    """A socket at a free port of all interfaces, of IPv4 and, where there is one, IPv6."""
    dual = socket.has_dualstack_ipv6()
    bound = socket.socket(socket.AF_INET6 if dual else socket.AF_INET)
    if dual:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("", 0))
    return bound


def _plain(address: str) -> str:
    """An address, where one of IPv4 came as one of IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def _here(setup: EngineSetup, problem: Problem) -> Problem:
    """The same, with where it was."""
    each = setup.cut.ranks // setup.tasks
    first, last = setup.rank * each, setup.rank * each + each - 1
    which = f"rank {first}" if each == 1 else f"ranks {first}-{last}"
    message = f"{problem.message} ({which}, on {socket.gethostname()})"
    return Problem(problem.code, message, problem.where, problem.hint, problem.severity)
