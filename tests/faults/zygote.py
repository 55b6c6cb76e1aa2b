"""Starts workers quickly: a process that has imported everything and forks for each.

Reads one JSON object a line from stdin and answers each with one line: ``{"start": …}`` with a
pid, ``{"reap": pid, "block": bool}`` with its wait status and its most memory in bytes, or null
while it lives; ``{}`` says that it is up.

A worker is `launcher.runner.__main__.main` as it is; only constants are replaced, and the rows
that it finishes are noted in shared memory, which takes no system call.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import importlib
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from launcher.data.open_unit import OpenUnit
from launcher.data.wal import Record
from launcher.runner.__main__ import main

__all__ = ["JOURNAL_BYTES", "JOURNAL_COUNT", "JOURNAL_ENTRY"]

T = TypeVar("T")

# How many entries; then each: monotonic seconds, unit, file, offset.
JOURNAL_COUNT = struct.Struct("<Q")
JOURNAL_ENTRY = struct.Struct("<dQQQ")
JOURNAL_BYTES = 1024**2
_MOST = (JOURNAL_BYTES - JOURNAL_COUNT.size) // JOURNAL_ENTRY.size


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any = None
        if "start" in order:
            answer = start(order["start"])
        elif "reap" in order:
            pid, status, usage = os.wait4(order["reap"], 0 if order["block"] else os.WNOHANG)
            answer = [status, usage.ru_maxrss * 1024] if pid else None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def start(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work(order)
        finally:
            os._exit(code)
    return pid


def work(order: dict[str, Any]) -> int:
    os.chdir(order["run"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name, value in order["constants"].items():
        module, _, constant = name.partition(":")
        found = importlib.import_module(module)
        assert hasattr(found, constant), name
        setattr(found, constant, value)
    if order["inline"]:
        asyncio.to_thread = _inline
    if not order["links"]:
        os.link = _no_link
    if order["stale_listings"]:
        _hide_parts(order["stale_listings"])
    _note_finished(Path(order["journal"]))
    if order["hold"]:
        _let_anybody_trace()
        os.kill(os.getpid(), signal.SIGSTOP)
    return main(order["args"])


def _let_anybody_trace() -> None:
    """Without this some kernels let only a parent (Yama, PR_SET_PTRACER in prctl(2)) or root."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)


async def _inline(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """What a thread would do, in this one: system calls come in the same order each time."""
    await asyncio.sleep(0)
    return function(*args, **kwargs)


def _no_link(*names: Any, **options: Any) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), *names[:1])


def _hide_parts(calls: int) -> None:
    """Show in the first listings of ``parts`` what another client's cache might: nothing."""
    scandir = os.scandir
    left = calls

    def stale(path: Any = ".") -> Any:
        nonlocal left
        if left > 0 and Path(path).name == "parts":
            left -= 1
            return scandir(Path(path).parent / "control")
        return scandir(path)

    os.scandir = stale


def _note_finished(journal: Path) -> None:
    with journal.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), JOURNAL_BYTES)
    finish = OpenUnit.finish

    def noted(self: OpenUnit, index: int, record: Record) -> None:
        finish(self, index, record)
        (count,) = JOURNAL_COUNT.unpack_from(shared)
        if count == _MOST:
            return
        place = JOURNAL_COUNT.size + count * JOURNAL_ENTRY.size
        JOURNAL_ENTRY.pack_into(shared, place, time.monotonic(), self.unit, *record.key)
        JOURNAL_COUNT.pack_into(shared, 0, count + 1)

    setattr(OpenUnit, "finish", noted)  # noqa: B010 - mypy lets no method be assigned to


if __name__ == "__main__":
    importlib.import_module("launcher.engines.echo")  # as else each worker would
    serve()
