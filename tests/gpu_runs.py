"""Rendered runs on a machine with GPUs: started by bash, watched from outside, and killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cli_driving import Cli, session_processes
from run_making import json_lines

__all__ = ["GpuRun", "Started", "gpu_numbers", "render", "wait_until"]

# A start imports for half a minute on a cold machine, and compiles kernels once.
LIMIT_S = 240.0
LOG_TAIL = 6000


def gpu_numbers() -> list[str]:
    """The GPUs of this machine that this process may use, by the driver's numbers.

    nvidia-smi knows nothing of CUDA_VISIBLE_DEVICES, with which two of these share a machine.
    """
    try:
        done = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return []
    there = re.findall(r"^GPU (\d+):", done.stdout, re.MULTILINE)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(there)).split(",")
    return [number for number in there if number in visible]


def wait_until(true: Callable[[], Any], what: str, run: GpuRun, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"never: {what}\n{run.log_tail()}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Started:
    """One start of a run's script, which leads a session of its own."""

    run: GpuRun
    process: subprocess.Popen[bytes]

    def __enter__(self) -> Started:  # noqa: PYI034 - Self is not in 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def until(self, true: Callable[[], Any], what: str) -> None:
        """Wait for ``true``, for no longer than the script runs."""
        over = self.process.poll
        wait_until(lambda: true() or over() is not None, what, self.run)
        assert true(), f"it ended without {what}\n{self.run.log_tail()}"

    def ended(self, limit_s: float = LIMIT_S) -> int:
        """The exit code of the script, and nothing of it is left a little later."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end in {limit_s} s\n{self.run.log_tail()}") from None
        gone = lambda: not session_processes(self.process.pid)  # noqa: E731 - said once
        try:
            wait_until(gone, f"the end of {session_processes(self.process.pid)}", self.run, 30)
        finally:
            self.kill()
        return code

    def all(self, wanted: Callable[[Sequence[str]], bool]) -> list[int]:
        """The processes of this start whose words are as ``wanted``."""
        words = session_processes(self.process.pid)
        return [pid for pid, its in words.items() if wanted(its)]

    def find(self, wanted: Callable[[Sequence[str]], bool]) -> int:
        """The one process of this start whose words are as ``wanted``."""
        found = self.all(wanted)
        assert len(found) == 1, session_processes(self.process.pid)
        return found[0]

    def kill(self) -> None:
        for pid in session_processes(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class GpuRun:
    """A run directory and the command line that made it."""

    cli: Cli
    path: Path

    def start(self) -> Started:
        """Start the script as a person would, with the environment that this machine has."""
        with (self.path / "logs" / "script.log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", str(self.path / "script.sh")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Started(self, process)

    def complete(self) -> list[dict[str, Any]]:
        """Run to the end, which has to be a good one; the rows."""
        code = self.start().ended()
        assert code == 0, f"exit code {code}\n{self.log_tail()}"
        return self.rows()

    def rows(self) -> list[dict[str, Any]]:
        """The output in input order, once `results --verify` has found each row in it once."""
        verified = self.cli.ask("results", self.path, "--verify")
        assert verified.code == 0, verified.out
        done = self.cli("results", self.path)
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.splitlines()]

    def parts(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.path / "parts").glob("u*.jsonl")}

    def beats(self) -> list[dict[str, Any]]:
        """What the workers that are at work say of themselves."""
        found = []
        for path in self.path.glob("metrics/*.now"):
            with contextlib.suppress(FileNotFoundError):  # its worker has just ended
                found.append(json.loads(path.read_bytes()))
        return found

    def problems(self) -> list[dict[str, Any]]:
        """Why the newest start ended as it did, by the files that its ranks left."""
        newest = max((self.path / "jobs").glob("*.json"), key=lambda path: path.stat().st_mtime)
        ends = (self.path / "jobs").glob(f"{newest.name.removesuffix('.json')}.s*")
        found = [p for end in sorted(ends) for p in json.loads(end.read_bytes())["problems"]]
        assert found, self.log_tail()
        return found

    def gpus(self) -> list[str]:
        """What each rank said of the GPUs it sees, in order."""
        logs = "".join(path.read_text() for path in sorted(self.path.glob("logs/*.s*.log")))
        marked = [line.partition("hpc-llm rank ")[2] for line in logs.splitlines()]
        return sorted(json.loads(text)["gpus"] for text in marked if text)

    def log_tail(self) -> str:
        logs = sorted(self.path.glob("logs/*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-LOG_TAIL:]}" for path in logs)


def render(
    cli: Cli,
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    launch: Mapping[str, str] | None = None,
    mpirun_of_nodes: Path | None = None,
    **job: Any,
) -> GpuRun:
    """Write input, job and site to ``folder`` and render them, as a user would.

    With ``mpirun_of_nodes``, the directory of a `fake_mpirun`, the site is two nodes of one GPU.
    """
    folder.mkdir()
    (folder / "in.jsonl").write_bytes(json_lines(rows))
    spec: dict[str, Any] = {
        "schema": 1,
        "name": "gpu",
        "output": {"path": "run"},
        "parallelism": {"tp": 1},
        "replicas": 1,
    }
    site: dict[str, Any] = {
        "schema": 1,
        "name": "this-machine",
        "scheduler": {"type": "local"},
        "launch": launch or {"with": "none"},
        # Without compiled kernels of FlashInfer, vLLM would build them at each first start.
        "env": {
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        },
        "partitions": {
            "gpu": {
                "nodes": 1,
                "gpus": {"model": "this", "per_node": len(gpu_numbers()), "topology": "all-to-all"},
            }
        },
    }
    if mpirun_of_nodes is not None:
        site["scheduler"] = {"type": "slurm", "restart": "none"}
        site["launch"] = {"with": "mpirun", "mpi": "openmpi4"}
        site["env"]["PATH"] = f"{mpirun_of_nodes}:{os.environ['PATH']}"
        site["partitions"]["gpu"] = {"nodes": 2, "gpus": {"model": "this", "per_node": 1}}
        spec["resources"] = {"time": "1h"}
    (folder / "job.yaml").write_text(yaml.safe_dump(spec | job))
    (folder / "site.yaml").write_text(yaml.safe_dump(site))
    done = cli(
        "render", folder / "job.yaml", "--site", folder / "site.yaml", "--out", folder / "run"
    )
    assert done.code == 0, done.err
    return GpuRun(cli, folder / "run")
