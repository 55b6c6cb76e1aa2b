"""Output that is passed on and remembered, and what becomes of it once nobody listens."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAD = """
import os, subprocess, sys
from launcher.engines.overheard import Overheard

heard = Overheard()
print("before", flush=True)
"""
TAIL = """
print("last")
heard.stop()
assert "last" in heard.lines(), heard.lines()
print("after", flush=True)
"""
# What keeps a pipe open after `stop`: nothing, this process itself, a process that it has left.
HOLDERS = {
    "nobody": "",
    "itself": "held = os.dup(1)",
    "a child": "child = subprocess.Popen(['sleep', '30'])",
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_was_written_is_passed_on_whoever_holds_the_pipe_open(holder: str) -> None:
    end = "child.kill()" if holder == "a child" else ""
    code = "\n".join((HEAD, HOLDERS[holder], TAIL, end))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("before\nlast\nafter\n", "", 0)


def test_what_comes_from_a_child_is_heard_in_the_order_in_which_it_came() -> None:
    code = HEAD + "subprocess.run([sys.executable, '-c', 'print(1); print(2)'])\n" + TAIL
    code += "print(*heard.lines(), file=sys.stderr)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "before 1 2 last\n"
