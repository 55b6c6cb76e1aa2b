"""One disturbed system call of one worker: which there are, and how to try all of them."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from faults.fault_scene import QUICK, Scene, Worker, Zygote, traced

from launcher.rundir import RunDir

__all__ = ["CALLS", "CALM", "STEADY", "disturbed", "each", "points", "strace_options"]

T = TypeVar("T")

# One thread makes every call: no beat comes in between.
STEADY = QUICK | {
    "launcher.data.leases:BEAT_S": 1000.0,
    "launcher.runner.replica:BEAT_S": 1000.0,
    "launcher.runner.dispatch:SYNC_S": 0.0,
}
# Nothing depends on the clock: no log is written.
CALM = STEADY | {"launcher.runner.dispatch:FLUSH_S": 1000.0}
CALLS = {
    "write": "write",
    "fsync": "fsync",
    "fdatasync": "fdatasync",
    "link": "?link,linkat",
    "rename": "?rename,?renameat,renameat2",
    "unlink": "?unlink,unlinkat",
    "close": "close",
    "openat": "openat",
}


def points(
    scene: Scene,
    zygote: Zygote,
    call: str,
    log: Path,
    *,
    links: bool = True,
    below: str = "",
    constants: Mapping[str, float] = STEADY,
) -> list[int]:
    """Which calls of this kind of an undisturbed worker touch the run, counted from 1."""
    run = scene.fresh()
    worker = zygote.start(run, constants=constants, inline=True, hold=True)
    with traced(worker, "-y", *strace_options(call, links=links), log=log):
        assert worker.wait() == 0, worker.text()
    names = CALLS[call].replace("?", "").replace(",", "|")
    lines = [x for x in log.read_text().splitlines() if re.match(rf"\d+ +({names})\(", x)]
    assert len({line.split()[0] for line in lines}) == 1, "more than one thread"
    found = [n for n, line in enumerate(lines, 1) if str(run.path / below) in line]
    if call == "close":  # only what was written matters to anybody
        found = [n for n in found if re.search(r"\.(tmp|wal|jsonl)>", lines[n - 1])]
    if call == "openat":
        found = [n for n in found if "O_CREAT" in lines[n - 1]]
    assert found
    return found


def strace_options(call: str, *, links: bool) -> tuple[str, ...]:
    """strace's, to follow the calls of one kind; without ``links`` the file system has none."""
    if links:
        return ("-e", f"trace={CALLS[call]}")
    return (
        "-e",
        f"trace={CALLS[call]},{CALLS['link']}",
        "-e",
        f"inject={CALLS['link']}:error=EPERM",
    )


def disturbed(
    scene: Scene,
    zygote: Zygote,
    call: str,
    how: str,
    *,
    links: bool = True,
    constants: Mapping[str, float] = STEADY,
    log: Path | str = os.devnull,
) -> tuple[RunDir, Worker]:
    """A run after one worker, to whose calls strace did ``how``; ``log`` is what it tells."""
    run = scene.fresh()
    worker = zygote.start(run, constants=constants, inline=True, hold=True)
    inject = f"inject={CALLS[call]}:{how}"
    with traced(worker, "-y", *strace_options(call, links=links), "-e", inject, log=log):
        worker.wait()
    return run, worker


def each(zygotes: list[Zygote], values: Sequence[int], work: Callable[[Zygote, int], T]) -> list[T]:
    """``work`` for each of ``values``, as many at once as there are ``zygotes``."""
    free = list(zygotes)
    lock = threading.Lock()

    def one(value: int) -> T:
        with lock:
            zygote = free.pop()
        try:
            return work(zygote, value)
        finally:
            with lock:
                free.append(zygote)

    with ThreadPoolExecutor(len(zygotes)) as pool:
        return list(pool.map(one, values))
