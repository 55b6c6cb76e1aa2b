"""How the processes of a replica over several nodes find, keep and let go of each other."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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


def setup(meeting: Path, rank: int, tasks: int = 3) -> EngineSetup:
    cut = Cut(tp=2, pp=tasks)
    return EngineSetup(model_path=None, cut=cut, rank=rank, tasks=tasks, meeting=meeting)


def gathered(meeting: Path, tasks: int = 3) -> tuple[Lead, dict[str, Any], list[socket.socket]]:
    lead = Lead(setup(meeting, 0, tasks))
    with ThreadPoolExecutor() as pool:
        given = pool.submit(lead.gather)
        joined = [pool.submit(vllm_nodes._joined, setup(meeting, r, tasks)) for r in range(1, tasks)]
        found = [future.result(20) for future in joined]
        arguments = given.result(20)
    assert {port for _, port in found} == {arguments["master_port"]}
    return lead, arguments, [tether for tether, _ in found]


def test_who_has_come_is_held_until_the_first_one_lets_go(meeting: Path) -> None:
    lead, arguments, tethers = gathered(meeting)
    assert arguments | {"master_port": 0} == {
        "nnodes": 3,
        "node_rank": 0,
        "master_addr": "127.0.0.1",
        "master_port": 0,
    }
    assert os.environ["VLLM_HOST_IP"] == "127.0.0.1"  # by which they came
    assert not any(vllm_nodes._has_ended(tether, 0.05) for tether in tethers)
    lead.release()
    assert [tether.recv(100) for tether in tethers] == [b"end\n"] * 2


def test_an_address_that_the_user_chose_stays(
    meeting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "10.1.2.3")
    gathered(meeting)[0].release()
    assert os.environ["VLLM_HOST_IP"] == "10.1.2.3"


@pytest.mark.parametrize("libuv", [True, False])
def test_torchs_store_listens_at_the_port_that_is_kept_for_it(
    meeting: Path, *, libuv: bool
) -> None:
    dist = pytest.importorskip("torch.distributed")
    lead, arguments, _ = gathered(meeting)
    port, wait = arguments["master_port"], timedelta(seconds=20)
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("", port))
    store = dist.TCPStore("127.0.0.1", port, 2, True, wait, False, use_libuv=libuv)
    for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
        dist.TCPStore(host, port, 2, False, wait, False, use_libuv=libuv).set("from", host)
        assert store.get("from") == host.encode()
    lead.release()


def test_strangers_at_the_door_are_no_ranks(meeting: Path) -> None:
    lead = Lead(setup(meeting, 0, 2))
    with ThreadPoolExecutor() as pool:
        given = pool.submit(lead.gather)
        host, (port, _) = find(meeting)
        for said in (b"GET / HTTP/1.0\r\n\r\n", b"8.0.s0.meeting 1\n", b""):
            with socket.create_connection((host, port)) as stranger:
                stranger.sendall(said)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(10) == b""
        vllm_nodes._joined(setup(meeting, 1, 2))
        assert given.result(20)["nnodes"] == 2
    lead.release()


@pytest.mark.usefixtures("hurried")
def test_who_does_not_come_is_named(meeting: Path) -> None:
    with pytest.raises(RunError) as err:
        Lead(setup(meeting, 0)).gather()
    (problem,) = err.value.problems
    assert (problem.code, problem.message) == (
        "run.rendezvous",
        "process 1, 2 did not come within 1 s",
    )


def test_waiting_for_the_others_can_be_left(meeting: Path) -> None:
    lead = Lead(setup(meeting, 0))
    with ThreadPoolExecutor() as pool:
        given = pool.submit(lead.gather)
        find(meeting)
        before = time.monotonic()
        lead.release()
        with pytest.raises(RunError):
            given.result(20)
    assert time.monotonic() - before < 5


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
    meeting: Path, code: str, *, raised: bool
) -> None:
    lead, _, (tether,) = gathered(meeting, 2)
    threading.Timer(0.2, lead.release).start()
    failed: Any = Failed(code)
    if raised:
        with pytest.raises(RunError):
            vllm_nodes._hold(tether, failed)
    else:
        vllm_nodes._hold(tether, failed)
    lead.release()


@pytest.mark.parametrize(
    ("address", "plain"),
    [("::ffff:10.0.0.7", "10.0.0.7"), ("10.0.0.7", "10.0.0.7"), ("fe80::1%eth0", "fe80::1")],
)
def test_addresses_are_in_the_form_that_both_ends_take(address: str, plain: str) -> None:
    assert vllm_nodes._plain(address) == plain
