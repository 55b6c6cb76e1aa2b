"""Whether a process lives, by what it once wrote down."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from cli_driving import started

from launcher.process import ProcessIds


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_this_process_lives_here() -> None:
    ids = ProcessIds.of(os.getpid())
    assert not ids.gone()
    assert not ids.elsewhere()


def test_ids_survive_being_written_down(child: subprocess.Popen[bytes]) -> None:
    ids = ProcessIds(**dataclasses.asdict(ProcessIds.of(child.pid)))
    assert ids == ProcessIds.of(child.pid)
    assert not ids.gone()


def test_a_killed_process_is_gone_before_and_after_it_is_reaped(
    child: subprocess.Popen[bytes],
) -> None:
    ids = ProcessIds.of(child.pid)
    child.kill()
    # WNOWAIT leaves the zombie where it is.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert ids.gone()
    child.wait()
    assert ids.gone()


def test_another_process_with_the_same_pid_is_not_it() -> None:
    ids = ProcessIds.of(os.getpid())
    assert dataclasses.replace(ids, start_ticks=ids.start_ticks - 1).gone()


def test_a_process_of_an_earlier_boot_is_gone() -> None:
    ids = ProcessIds.of(os.getpid())
    earlier = dataclasses.replace(ids, boot_id="00000000-0000-0000-0000-000000000000")
    assert earlier.gone()
    assert not earlier.elsewhere()


def test_nothing_is_said_of_another_host() -> None:
    other = dataclasses.replace(ProcessIds.of(os.getpid()), host="n17", pid=2**22 + 1)
    assert other.elsewhere()
    assert not other.gone()


def test_nothing_is_said_of_another_pid_namespace() -> None:
    other = dataclasses.replace(ProcessIds.of(os.getpid()), pid_namespace="pid:[1]", pid=2**22 + 1)
    assert other.elsewhere()
    assert not other.gone()


def test_a_command_name_with_brackets_and_spaces_does_not_hide_the_fields() -> None:
    code = "open('/proc/self/comm', 'w').write('a) S 1 (b'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ids = ProcessIds.of(process.pid)
        assert ids.start_ticks >= ProcessIds.of(os.getpid()).start_ticks
        assert not ids.gone()
        process.kill()
    assert ids.gone()


def test_a_session_outlives_its_leader_until_the_last_child_ends() -> None:
    words = ("sh", "-c", "sleep 60 & echo $!; read line")
    with started(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        child_pid = int(leader.stdout.readline())
        ids = ProcessIds.of(leader.pid)
        leader.kill()
        leader.wait()
        assert ids.gone()
        assert not ids.session_gone()
        child = ProcessIds.of(child_pid)
        os.killpg(leader.pid, signal.SIGKILL)
        while not child.gone():
            time.sleep(0.01)
        assert ids.session_gone()
