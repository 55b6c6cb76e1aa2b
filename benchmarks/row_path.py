"""What a row costs on its way from the input to its part, with an engine that costs nothing.

The whole way: read, prompt template, chat template, one awaitable a row, log with fdatasync, part.
Its limit is to read and write the same rows with json alone, in the same run on the same disk.

    python benchmarks/row_path.py [--rows N]... [--long-rows N] [--dir D] [--peer-python PYTHON]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORDS = "the quick brown fox jumps over the lazy dog and asks what all of this is for"
LONG_WORDS = 24_000  # about 30,000 tokens of English text
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
STALL_EVERY_S = 0.005
RSS_EVERY_S = 1.0


def write_input(path: Path, rows: int, words: int) -> None:
    text = " ".join(islice(cycle(WORDS.split()), words))
    with path.open("w") as file:
        for i in range(rows):
            file.write(json.dumps({"id": f"row-{i}", "text": f"{text} {i}"}) + "\n")


def render(folder: Path) -> Path:
    """A run directory, as `hpc-llm render` writes it."""
    job = {
        "schema": 1,
        "name": "row-path",
        "engine": "echo",
        "model": "echo",
        "input": {
            "path": "in.jsonl",
            "messages": [{"role": "user", "content": "Summarise:\n{{ text }}"}],
        },
        "sampling": {"max_tokens": 64},
        "output": {"path": "run"},
    }
    (folder / "job.json").write_text(json.dumps(job))  # JSON is YAML
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "launcher", "render", "job.json", "--site", "local"]
    subprocess.run(
        [*command, "--out", "run"], cwd=folder, env=environ, check=True, stdout=subprocess.DEVNULL
    )
    return folder / "run"


def whole_way(run: Path) -> dict[str, Any]:
    """Answer every row of ``run`` in this process, and what that took."""
    sys.path.insert(0, str(ROOT))
    import jinja2.sandbox

    from launcher.engines import echo
    from launcher.rundir import RunDir
    from launcher.runner.replica import ReplicaTask, run_replica

    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(CHATML)
    calls = 0
    stalls: list[float] = []
    memory: list[int] = []

    class Engine(echo.EchoEngine):
        """Echo, after the chat template that a model's own engine applies."""

        async def start(self) -> Any:
            self.watches = [asyncio.ensure_future(w) for w in (watch(stalls), weigh(memory))]
            return await super().start()

        async def generate(self, request: Any) -> Any:
            nonlocal calls
            calls += 1
            template.render(messages=request.messages)
            return await super().generate(request)

    echo.EchoEngine = Engine  # type: ignore[misc] # the one that the registry finds
    task = ReplicaTask(
        run=RunDir(run), plan_number="0001", replica=0, job="b", restart=0, worker="b.0"
    )
    with measured() as took:
        done = run_replica(task)
    assert done
    return {
        **took,
        "calls": calls,
        "stall_p99_ms": statistics.quantiles(stalls, n=100)[98] * 1000 if len(stalls) > 1 else 0,
        "stall_max_ms": max(stalls, default=0) * 1000,
        "rss_mb": [min(memory) / 1e6, statistics.median(memory) / 1e6, max(memory) / 1e6],
    }


async def watch(stalls: list[float]) -> None:
    """How much later than asked the loop comes back."""
    while True:
        asked = time.perf_counter() + STALL_EVERY_S
        await asyncio.sleep(STALL_EVERY_S)
        stalls.append(time.perf_counter() - asked)


async def weigh(memory: list[int]) -> None:
    """Resident memory, again and again."""
    while True:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory.append(pages * resource.getpagesize())
        await asyncio.sleep(RSS_EVERY_S)


def json_alone(folder: Path) -> dict[str, Any]:
    """Read the rows and write as many answers, and nothing else."""
    source, target = (folder / "in.jsonl").open(), (folder / "out.jsonl").open("w")
    with measured() as took, source, target:
        for line in source:
            row = json.loads(line)
            answer = {"text": row["text"][-300:]}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            record = {"id": row["id"], "status": "ok", "response": answer, "usage": usage}
            target.write(json.dumps(record) + "\n")
        target.flush()
        os.fsync(target.fileno())
    return {**took}


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    took: dict[str, float] = {}
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield took
    after = resource.getrusage(resource.RUSAGE_SELF)
    took["wall_s"] = time.perf_counter() - start
    took["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_child(what: str, folder: Path) -> Mapping[str, Any]:
    command = [sys.executable, __file__, "--child", what, "--dir", str(folder)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: Mapping[str, Any] = json.loads(out.splitlines()[-1])
    return found


def peers(python: Path | None, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same rows through the other runners that ``python`` has; their first start is theirs."""
    for name in ("ray", "datatrove") if python is not None else ():
        command = [str(python), str(ROOT / "benchmarks" / "row_path_peers.py"), name, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  {name}: {done.stderr.strip().splitlines()[-1]}")
        else:
            yield name, json.loads(done.stdout.splitlines()[-1])


def compare(rows: int, words: int, directory: Path | None, python: Path | None = None) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as name:
        folder = Path(name)
        write_input(folder / "in.jsonl", rows, words)
        run = render(folder)
        limit = in_child("json", folder)
        ours = in_child("way", run)
        others = dict(peers(python, folder))
        published = sum(path.read_bytes().count(b"\n") for path in (run / "parts").iterdir())
    assert ours["calls"] == published == rows
    low, middle, high = ours["rss_mb"]
    print(f"{rows} rows of {words} words: {ours['calls']} calls of generate()")
    for name, took in (("whole way", ours), ("json alone", limit)):
        speeds = f"{rows / took['wall_s']:8.0f} rows/s, {rows / took['cpu_s']:8.0f} a CPU second"
        print(f"  {name:10} {speeds}")
    for name, took in others.items():
        ratio = took["wall_s"] / ours["wall_s"]
        print(f"  {name:10} {rows / took['wall_s']:8.0f} rows/s: the whole way is {ratio:.1f} x")
    print(f"  CPU time of the whole way: {ours['cpu_s'] / limit['cpu_s']:.1f} x json alone")
    print(f"  memory: {low:.0f} MB at first, median {middle:.0f}, at most {high:.0f}")
    late = f"{ours['stall_p99_ms']:.1f} ms (p99), {ours['stall_max_ms']:.1f} ms at most"
    print(f"  the loop came back late by {late}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--long-rows", type=int, default=2000)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--peer-python", type=Path, help="a Python with ray and datatrove")
    parser.add_argument("--child", choices=["way", "json"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        os.chdir(args.dir)
        print(json.dumps((whole_way if args.child == "way" else json_alone)(args.dir)))
        return
    for rows in args.rows or [100_000]:
        compare(rows, 16, args.dir, args.peer_python)
    if args.long_rows:
        compare(args.long_rows, LONG_WORDS, args.dir)


if __name__ == "__main__":
    main()
