"""How the processes of a replica over several nodes find, keep and let go of each other."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from launcher.engines import meeting as meeting_module
from launcher.engines import vllm_nodes
from launcher.engines.base import EngineSetup
from launcher.engines.meeting import announce, find
from launcher.engines.vllm_nodes import Lead
from launcher.errors import Problem, RunError
from launcher.plan.types import Cut


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "")
    monkeypatch.delenv("VLLM_HOST_IP")


@pytest.fixture
def meeting(tmp_path: Path) -> Path:
    return tmp_path / "7.0.s0.meeting"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody will come, a second is enough to find out."""
    monkeypatch.setattr(meeting_module, "MEET_S", 1.0)
    monkeypatch.setattr(vllm_nodes, "FIRST_WORD_S", 0.1)


def setup(meeting: Path, rank: int, tasks: int = 2) -> EngineSetup:
    cut = Cut(tp=2, pp=tasks)
    return EngineSetup(model_path=None, cut=cut, rank=rank, tasks=tasks, meeting=meeting)


@dataclass
class Replica:
    """The tethers of one replica, all of which are closed in the end."""

    meeting: Path
    lead: Lead = field(init=False)
    tethers: list[socket.socket] = field(default_factory=list)

    def begin(self, tasks: int) -> Future[dict[str, Any]]:
        """Let the first process wait for the others."""
        self.lead = Lead(setup(self.meeting, 0, tasks))
        given: Future[dict[str, Any]] = Future()

        def gather() -> None:
            try:
                given.set_result(self.lead.gather())
            except RunError as exc:
                given.set_exception(exc)

        threading.Thread(target=gather).start()
        return given

    def join(self, rank: int, tasks: int) -> int:
        tether, port = vllm_nodes._joined(setup(self.meeting, rank, tasks))
        self.tethers.append(tether)
        return port

    def gather(self, tasks: int) -> dict[str, Any]:
        """What the first process tells vLLM once the others have come."""
        given = self.begin(tasks)
        ports = {self.join(rank, tasks) for rank in range(1, tasks)}
        arguments = given.result(20)
        assert ports == {arguments["master_port"]}
        return arguments


@pytest.fixture
def replica(meeting: Path) -> Iterator[Replica]:
    found = Replica(meeting)
    yield found
    found.lead.release()
    for tether in found.tethers:
        tether.close()


def test_who_has_come_is_held_until_the_first_one_lets_go(replica: Replica) -> None:
    arguments = replica.gather(3)
    assert arguments | {"master_port": 0} == {
        "nnodes": 3,
        "node_rank": 0,
        "master_addr": "127.0.0.1",
        "master_port": 0,
    }
    assert os.environ["VLLM_HOST_IP"] == "127.0.0.1"  # by which they came
    assert not any(vllm_nodes._has_ended(tether, 0.05) for tether in replica.tethers)
    replica.lead.announce_end()
    assert [tether.recv(100) for tether in replica.tethers] == [b"end\n"] * 2
    assert not any(vllm_nodes._has_ended(tether, 0.05) for tether in replica.tethers)
    replica.lead.release()
    assert [tether.recv(100) for tether in replica.tethers] == [b""] * 2


def test_an_address_that_the_user_chose_stays(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "10.1.2.3")
    replica.gather(2)
    assert os.environ["VLLM_HOST_IP"] == "10.1.2.3"


@pytest.mark.parametrize("libuv", [True, False])
def test_torchs_store_listens_at_the_port_that_is_kept_for_it(
    replica: Replica, *, libuv: bool
) -> None:
    dist = pytest.importorskip("torch.distributed")
    port, wait = replica.gather(2)["master_port"], timedelta(seconds=20)
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("", port))
    store = dist.TCPStore("127.0.0.1", port, 2, True, wait, False, use_libuv=libuv)
    for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
        dist.TCPStore(host, port, 2, False, wait, False, use_libuv=libuv).set("from", host)
        assert store.get("from") == host.encode()


def test_strangers_at_the_door_are_no_ranks(replica: Replica) -> None:
    given = replica.begin(2)
    host, (port, _) = find(replica.meeting)
    for said in (b"GET / HTTP/1.0\r\n\r\n", b"8.0.s0.meeting 1\n", b""):
        with socket.create_connection((host, port)) as stranger:
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(10) == b""
    replica.join(1, 2)
    assert given.result(20)["nnodes"] == 2


@pytest.mark.usefixtures("hurried")
def test_who_does_not_come_is_named(replica: Replica) -> None:
    with pytest.raises(RunError) as err:
        replica.begin(3).result(20)
    (problem,) = err.value.problems
    assert (problem.code, problem.message) == (
        "run.rendezvous",
        "process 1, 2 did not come within 1 s",
    )


def test_waiting_for_the_others_can_be_left(replica: Replica) -> None:
    given = replica.begin(2)
    find(replica.meeting)
    replica.lead.release()
    with pytest.raises(RunError):
        given.result(5)


@pytest.mark.usefixtures("hurried")
def test_a_first_process_that_is_not_there_is_named(meeting: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))  # and nobody listens on it
        announce(meeting, taken.getsockname()[1], 1)
        with pytest.raises(RunError) as err:
            vllm_nodes._joined(setup(meeting, 1))
    (problem,) = err.value.problems
    assert problem.code == "run.rendezvous"
    assert f"{socket.gethostname()} does not reach the first process at " in problem.message


@pytest.mark.usefixtures("hurried")
def test_a_first_process_that_never_says_where_it_is_ends_the_wait(meeting: Path) -> None:
    with pytest.raises(RunError) as err:
        find(meeting)
    assert "within 1 s" in err.value.problems[0].message


def test_a_first_process_that_needs_nobody_lets_the_others_go(meeting: Path) -> None:
    meeting.write_text(json.dumps(None))
    with pytest.raises(SystemExit) as exited:
        find(meeting)
    assert exited.value.code == 0


class Failed(threading.Thread):
    """Workers that have failed."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.failure = RunError(Problem(code, "x"))


@pytest.mark.parametrize(
    ("code", "raised"), [("gpu.failed", False), ("engine.died", False), ("engine.no-memory", True)]
)
def test_what_may_follow_from_the_first_processs_end_is_not_said_after_it(
    replica: Replica, code: str, *, raised: bool
) -> None:
    replica.gather(2)
    (tether,) = replica.tethers
    threading.Timer(0.2, replica.lead.release).start()
    failed: Any = Failed(code)
    if raised:
        with pytest.raises(RunError):
            vllm_nodes._hold(tether, failed)
    else:
        vllm_nodes._hold(tether, failed)


@pytest.mark.parametrize(
    ("address", "plain"),
    [("::ffff:10.0.0.7", "10.0.0.7"), ("10.0.0.7", "10.0.0.7"), ("fe80::1%eth0", "fe80::1")],
)
def test_addresses_are_in_the_form_that_both_ends_take(address: str, plain: str) -> None:
    assert vllm_nodes._plain(address) == plain
