"""hpc-llm as its users have it: a command with an environment, files and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from run_making import json_lines

__all__ = [
    "LIMIT_S",
    "Cli",
    "Done",
    "envelope",
    "poll",
    "session_processes",
    "started",
    "write_job",
]

LIMIT_S = 90.0


def poll(true: Callable[[], Any], what: str) -> Any:
    """What ``true`` gives as soon as it is true."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := true()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


@contextmanager
def started(words: Sequence[str | Path], **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that speaks text; what it and its group still do at the end is ended."""
    with subprocess.Popen(words, text=True, start_new_session=True, **how) as process:
        try:
            yield process
        finally:
            if process.poll() is None:  # the test has failed
                os.killpg(process.pid, signal.SIGKILL)


def envelope(out: str) -> dict[str, Any]:
    """The one JSON object that is all of ``out``, with the keys that are promised."""
    found: dict[str, Any] = json.loads(out)
    keys = ["hpc_llm", "command", "status", "exit_code", "data", "problems"]
    assert list(found) == keys
    assert found["hpc_llm"] == 1
    assert found["status"] == ("error" if found["exit_code"] else "ok")
    for problem in found["problems"]:
        assert {"code", "message", "where", "hint"} <= problem.keys()
    return found


def write_job(folder: Path, *, rows: Sequence[Mapping[str, Any]], **changes: Any) -> Path:
    """A job file of one rank of the echo engine in ``folder``, and its input."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.jsonl").write_bytes(json_lines(rows))
    spec = {
        "schema": 1,
        "name": "t",
        "engine": "echo",
        "model": "echo",
        "input": {"path": "in.jsonl", "prompt": "{{ text }}", "chat": False},
        "parallelism": {"tp": 1},
        "replicas": 1,
        "output": {"path": "run"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec | changes, allow_unicode=True))
    return path


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found = envelope(self.out)
        assert found["exit_code"] == self.code
        return found

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = self.json["data"]
        return data

    @property
    def codes(self) -> list[str]:
        return [problem["code"] for problem in self.json["problems"]]


@dataclass(frozen=True)
class Cli:
    """The command line of one user, whose home is ``home``."""

    home: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        foreign = ("HPC_LLM_", "SLURM_", "XDG_")
        own = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        return own | {"HOME": str(self.home), "HPC_LLM_SITE": "local"} | self.extra

    def start(
        self, *words: str | Path, cwd: Path | None = None
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        return started(
            [sys.executable, "-m", "launcher", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=self.environ,
            cwd=cwd or self.home,
        )

    def __call__(self, *words: str | Path, cwd: Path | None = None) -> Done:
        with self.start(*words, cwd=cwd) as process:
            out, err = process.communicate(timeout=LIMIT_S)
        return Done(process.returncode, out, err)

    def ask(self, *words: str | Path) -> Done:
        """The same with ``--output json``, whose envelope has to be whole."""
        done = self(*words, "--output", "json")
        envelope(done.out)
        return done

    def state(self, run: Path) -> str:
        state: str = self.ask("status", run).data["state"]
        return state

    def texts(self, run: Path, *options: str) -> list[str]:
        """The answers, or for errors their codes, in the order of `results`."""
        done = self("results", run, *options)
        assert done.code == 0, done.err
        rows = map(json.loads, done.out.splitlines())
        return [r["response"]["text"] if r["status"] == "ok" else r["error"]["code"] for r in rows]


def session_processes(session: int) -> dict[int, list[str]]:
    """The words of every process of ``session``, by pid."""
    found: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if int(its_session) == session and state not in "ZX":
            found[int(entry.name)] = words
    return found
