"""The children of a rank's wrapper that measure its links: started, heard, ended in time."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from launcher.errors import Problem, Stopped
from launcher.plan.types import Placement, Plan
from launcher.preflight.links import MARK, MESSAGES
from launcher.preflight.speeds import Fault, Link, Measurement, Told, schedule
from launcher.rundir import publish

__all__ = ["probe"]

# Torch comes from a cold file system once for each node, and the engine needs it as well.
JOIN_S = 150.0
MEASURE_S = 20.0
_END_S = 5.0
_POLL_S = 0.1


def probe(
    plan: Plan, ranks: Sequence[Placement], environ: Mapping[str, str], meeting: Path, stop: Path
) -> Told:
    """Measure the links of ``ranks``, those of one task; in at most `JOIN_S` and `MEASURE_S`.

    Parameters
    ----------
    environ
        What the engine will be started with.
    meeting
        Where the first rank says how it is reached; beside it a rank that cannot go on leaves a
        file, so that nobody waits for it.
    stop
        Appears when the run is told to stop.

    Raises
    ------
    Stopped
        It did.
    """
    given_up, measurements = meeting.with_suffix(".links-off"), schedule(plan)
    children: list[_Child] = []
    try:
        children += (_Child(plan, rank, measurements, environ, meeting) for rank in ranks)
        off = _run(children, given_up, stop)
    finally:
        for child in children:
            child.stop()
    told = [child.end(alone=off) for child in children]
    if any(one.faults for one in told):
        publish(given_up, b"")
    return Told(
        links=tuple(link for one in told for link in one.links),
        faults=tuple(fault for one in told for fault in one.faults),
    )


def _run(children: Sequence[_Child], given_up: Path, stop: Path) -> bool:
    """Wait for their ends, or as long as they may take; whether somebody has given up."""
    deadline_s, joined, off = time.monotonic() + JOIN_S, False, False
    while any(child.runs for child in children) and time.monotonic() < deadline_s:
        if not joined and all(child.joined for child in children):
            deadline_s, joined = time.monotonic() + MEASURE_S, True
        if stop.exists():
            raise Stopped(Problem("run.stopped", "the run was told to stop"))
        if any(child.failed for child in children):
            publish(given_up, b"")
        if not off and given_up.exists():
            deadline_s, off = min(deadline_s, time.monotonic() + _END_S), True
        time.sleep(_POLL_S)
    return off


class _Child:
    def __init__(
        self,
        plan: Plan,
        rank: Placement,
        measurements: Sequence[Measurement],
        environ: Mapping[str, str],
        meeting: Path,
    ) -> None:
        self._rank, self._measurements = rank, measurements
        self._stopped_s: float | None = None
        order = {
            "rank": rank.rank,
            "world": plan.layout.cut.ranks,
            # By its place in the list of its replica's GPUs, which is all that it sees.
            "device": "cpu" if rank.gpu is None else f"cuda:{rank.local_rank}",
            "meeting": str(meeting),
            "measurements": [dataclasses.asdict(m) for m in measurements],
        }
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        words = (sys.executable, "-m", "launcher.preflight.links", json.dumps(order))
        self._process = subprocess.Popen(
            words, env=environ, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._out
        )

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def failed(self) -> bool:
        return bool(self._process.poll())

    @property
    def joined(self) -> bool:
        return any("joined" in said for said in self._said()[0])

    def stop(self) -> None:
        """Kill it, if it is still at it."""
        if self.runs:
            self._stopped_s = time.monotonic()
            self._process.kill()

    def end(self, *, alone: bool) -> Told:
        """What it measured before it ended or was stopped.

        ``alone`` tells that another one has left it.
        """
        late, host = self._stopped_s is not None, socket.gethostname()
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            error, on_gpu = "its process hangs in the kernel", self._rank.gpu is not None
            return Told(faults=(Fault(rank=self._rank.rank, host=host, error=error, gpu=on_gpu),))
        said, rest = self._said()
        links = [self._link(one) for one in said if "done" in one]
        done = {one["done"] for one in said if "done" in one}
        begun = [one for one in said if "begun" in one and one["begun"] not in done]
        links += [self._bound(one, self._stopped_s) for one in begun if self._stopped_s]
        fault = next((one for one in said if "error" in one), None)
        if fault is None and (error := self._failure(code, late=late, rest=rest)) and not alone:
            fault = {"error": error} if not begun else None
        self._out.close()
        return Told(
            links=tuple(links),
            faults=() if fault is None else (Fault(rank=self._rank.rank, host=host, **fault),),
        )

    def _failure(self, code: int, *, late: bool, rest: str) -> str:
        if late:
            return "it measured nothing in time" if self.joined else "it did not meet the others"
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return (rest or f"its process exited with {code}") if code else ""

    def _said(self) -> tuple[list[dict[str, Any]], str]:
        """Its words to this process, and its last other one."""
        # At a place of its own: the child writes where the file's offset is.
        text = os.pread(self._out.fileno(), os.fstat(self._out.fileno()).st_size, 0)
        lines = text.decode(errors="replace").splitlines(keepends=True)
        own = [line for line in lines if line.startswith(MARK) and line.endswith("\n")]
        others = [line.strip() for line in lines if line.strip() and not line.startswith(MARK)]
        return [json.loads(line.removeprefix(MARK)) for line in own], (others or [""])[-1]

    def _link(self, said: Mapping[str, Any]) -> Link:
        what = self._measurements[said["done"]]
        rate = _carried(what) / max(said["seconds"], 1e-9)
        return Link(kind=what.kind, ranks=what.ranks, bytes_per_s=rate, latency_s=said["latency_s"])

    def _bound(self, said: Mapping[str, Any], stopped_s: float) -> Link:
        what = self._measurements[said["begun"]]
        most = MESSAGES * _carried(what) / max(stopped_s - said["at_s"], 1e-9)
        return Link(kind=what.kind, ranks=what.ranks, bytes_per_s=most, finished=False)


def _carried(what: Measurement) -> float:
    """Bytes that one message puts on each rank's link, each way."""
    count = len(what.ranks)
    return what.size * (2 * (count - 1) / count if what.kind == "all-reduce" else 1)
