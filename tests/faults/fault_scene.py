"""A small run, workers that are disturbed while they do it, and what has to be true then."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults.zygote import JOURNAL_BYTES, JOURNAL_COUNT, JOURNAL_ENTRY
from run_making import make_identity, make_plan, make_run

import launcher
from launcher.data.wal import scan
from launcher.plan.types import UnitGrid
from launcher.rundir import RunDir

__all__ = [
    "LIMIT_S",
    "QUICK",
    "Scene",
    "Worker",
    "Zygote",
    "kept",
    "make_scene",
    "needs_strace",
    "number",
    "traced",
    "worker_environ",
]

LIMIT_S = 30.0

# Flushes and beats often enough that a run of a tenth of a second has some.
QUICK: dict[str, float] = {
    "launcher.runner.dispatch:FLUSH_S": 0.002,
    "launcher.runner.dispatch:SYNC_S": 0.01,
    "launcher.runner.dispatch:POLL_S": 0.01,
    "launcher.runner.replica:POLL_S": 0.01,
    "launcher.runner.replica:TAKE_OVER_S": 5.0,
    "launcher.data.leases:TTL_S": 0.5,
}

Rows = set[tuple[int, int, int]]


def number(name: str, default: float) -> float:
    """A number that the Makefile may give."""
    return float(os.environ.get(name, default))


def needs_strace() -> None:
    """Skip where there is none; CI installs it."""
    if shutil.which("strace") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("strace is not installed")


def worker_environ() -> dict[str, str]:
    paths = (Path(launcher.__file__).parents[1], Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


@dataclass
class Worker:
    """A worker that a zygote has started."""

    zygote: Zygote
    pid: int
    log: Path
    journal: Path
    status: int | None = None
    peak_bytes: int = 0

    def send(self, number: signal.Signals) -> None:
        """Signal it, dead or not: its pid is its own until it is reaped."""
        if self.status is None:
            os.kill(self.pid, number)

    def reap(self, *, block: bool) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        if self.status is None:
            ended = self.zygote.ask({"reap": self.pid, "block": block})
            self.status, self.peak_bytes = ended or (None, 0)
        return None if self.status is None else os.waitstatus_to_exitcode(self.status)

    def wait(self) -> int:
        deadline = time.monotonic() + LIMIT_S
        while (code := self.reap(block=False)) is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                self.reap(block=True)
                raise AssertionError(f"it never ended: {self.text()}")
            time.sleep(0.002)
        return code

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def finished(self) -> list[tuple[float, tuple[int, int, int]]]:
        """When it finished which ``(unit, file, offset)``, in that order."""
        data = self.journal.read_bytes()
        (count,) = JOURNAL_COUNT.unpack_from(data)
        entries = data[JOURNAL_COUNT.size :][: count * JOURNAL_ENTRY.size]
        return [(when, (u, f, o)) for when, u, f, o in JOURNAL_ENTRY.iter_unpack(entries)]


class Zygote:
    """Starts workers without the time that Python takes to start."""

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._started = 0
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=worker_environ(),
        )

    def ask(self, order: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        run: RunDir,
        *,
        job: str = "1",
        restart: int = 0,
        constants: Mapping[str, float] = QUICK,
        inline: bool = False,
        hold: bool = False,
        links: bool = True,
        stale_listings: int = 0,
    ) -> Worker:
        self._started += 1
        log = self._folder / f"{self._started}.log"
        journal = self._folder / f"{self._started}.journal"
        with journal.open("wb") as file:
            file.truncate(JOURNAL_BYTES)
        args = ["--plan", "0001", "--replica", "0", "--job", job, "--restart", str(restart)]
        order = {
            "run": str(run.path),
            "args": args,
            "log": str(log),
            "journal": str(journal),
            "constants": dict(constants),
            "inline": inline,
            "hold": hold,
            "links": links,
            "stale_listings": stale_listings,
        }
        return Worker(self, self.ask({"start": order}), log, journal)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(LIMIT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def traced(worker: Worker, *options: str, log: Path | str = os.devnull) -> Iterator[None]:
    """Attach strace to a worker that was started with ``hold``, and let it go."""
    _until_stopped(worker.pid)
    command = ["strace", "-f", "-q", "-p", str(worker.pid), "-o", str(log), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        deadline = time.monotonic() + LIMIT_S
        while not _traced(worker.pid):
            if strace.poll() is not None or time.monotonic() > deadline:
                worker.send(signal.SIGKILL)
                raise AssertionError(f"strace: {strace.stderr.read()}")
            time.sleep(0.001)
        worker.send(signal.SIGCONT)
        yield
        strace.wait(LIMIT_S)


def _until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)


def _traced(pid: int) -> bool:
    return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


@dataclass
class Scene:
    """A run as a submission leaves it, and what an undisturbed worker makes of it."""

    folder: Path
    template: RunDir
    parts: dict[str, bytes] = field(default_factory=dict)
    done: bytes = b""
    rows: Rows = field(default_factory=set)
    kills: int = 0
    _copies: int = 0

    def fresh(self, folder: Path | None = None) -> RunDir:
        self._copies += 1
        path = folder or self.folder / f"run-{self._copies}-{os.urandom(3).hex()}"
        shutil.copytree(self.template.path, path, dirs_exist_ok=True)
        return RunDir(path)

    def learn(self, run: RunDir) -> None:
        """Take a finished run for the truth."""
        self.done = run.done_path.read_bytes()
        self.parts = {path.name: path.read_bytes() for path in (run.path / "parts").iterdir()}
        self.rows = kept(run)

    def check_parts(self, run: RunDir) -> None:
        """No part is torn or wrong."""
        for path in (run.path / "parts").glob("[!.]*"):
            assert path.read_bytes() == self.parts[path.name], path

    def check_done(self, run: RunDir, *, kills: int = 0) -> None:
        """The run is what an undisturbed one is, and nothing else is left.

        A process that is killed between making a file and naming it leaves it under a hidden
        name; where others may be doing the same, nobody takes it for dead.
        """
        self.check_parts(run)
        names = {path.name for path in (run.path / "parts").iterdir()}
        assert names == self.parts.keys()
        assert run.done_path.read_bytes() == self.done
        assert list((run.path / "wal").iterdir()) == []
        scratch = [p for p in run.path.rglob("*") if p.name.endswith(".tmp")]
        places = {p.parent.relative_to(run.path).as_posix() for p in scratch}
        assert places <= {".", "jobs", "leases", "metrics", "workers"}
        assert len(scratch) <= kills, scratch

    def check_strangers(self, run: RunDir) -> None:
        """Each file has a name that the run directory knows."""
        for path in run.path.rglob("*"):
            name = path.relative_to(run.path).as_posix()
            if path.is_file() and not path.name.endswith(".tmp"):
                assert _KNOWN.fullmatch(name), name


_KNOWN = re.compile(
    r"run\.json|DONE|plans/\d+\.json|jobs/[\w-]+\.\d+\.s0\.(done|resumable|failed|died)"
    r"|leases/u\d{6}\.g\d+|wal/u\d{6}\.g\d+\.wal|parts/u\d{6}\.jsonl"
    r"|(workers/[\w.-]+\.hb|metrics/[\w.-]+\.(jsonl|now))"
)


def kept(run: RunDir, overlay: int = 0) -> Rows:
    """The ``(unit, file, offset)`` that a kill did not lose: those in parts and in logs."""
    found: Rows = set()
    root = run.pass_path(overlay)
    for path in (root / "wal").glob("u*.wal"):  # first: what is gone then is in a part
        found |= {(int(path.name[1:7]), *record.key) for record in scan(path)}
    for path in (root / "parts").glob("u*.jsonl"):
        rows = map(json.loads, path.read_bytes().splitlines())
        found |= {(int(path.name[1:7]), *row["row"]) for row in rows}
    return found


def make_scene(
    folder: Path, *, units: int = 3, rows_per_unit: int = 4, **engine_options: Any
) -> Scene:
    """Rows of all kinds, equal prompts and ids among them; some fail."""
    lines = [_line(n) for n in range(units * rows_per_unit)]
    data = b"".join(lines)
    size = -(-len(data) // units)
    grid = UnitGrid(total_bytes=len(data), unit_bytes=size, head_units=units - 1, tail_bytes=size)
    identity = make_identity(folder, data, grid=grid)
    options = {"latency_ms": 4, "max_in_flight": 2, "fail_rate": 0.2} | engine_options
    plan = make_plan(engine_options=options, max_bad_fraction=1.0)
    scene = Scene(folder, make_run(folder / "template", identity, plans={"0001": plan}))
    zygote = Zygote(folder / "reference")
    try:
        run = scene.fresh()
        worker = zygote.start(run)
        assert worker.wait() == 0, worker.text()
    finally:
        zygote.close()
    scene.learn(run)
    assert len(scene.parts) == units
    assert len(scene.rows) == len(lines)
    return scene


def _line(number: int) -> bytes:
    if number % 11 == 5:
        return b'{"text": "cut off\n'
    text = "the same again" if number % 3 else f"gr\u00fc\u00dfe {number}"
    return json.dumps({"id": f"id-{number % 2}", "text": text}).encode() + b"\n"
