"""What it costs a new start to find its work in a run of which much is done.

A run is made in which every unit but one is published, and the last one is half answered in the
log of a worker that died. A replica is started on it under strace, and what it asked of the file
system is counted, below the run directory alone. It must not grow with the rows that are done.

    python benchmarks/resume.py [--rows N]...
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launcher.data.wal import Record, UnitLog  # noqa: E402
from launcher.plan.grid import count, span  # noqa: E402
from launcher.rundir import RunDir, claim, replace  # noqa: E402

LINE_BYTES = 100
_CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\((.*)\) += (-?\d+)")


def line(number: int) -> bytes:
    body = json.dumps({"text": f"row {number} "}).encode()
    return body[:-2] + b"." * (LINE_BYTES - len(body) - 1) + body[-2:] + b"\n"


def make_run(folder: Path, rows: int) -> RunDir:
    """A run of ``rows`` rows; what no worker will read of its input is a hole."""
    source = folder / "in.jsonl"
    with source.open("wb") as file:
        file.write(line(0))
        file.truncate(rows * LINE_BYTES)
    job = {"name": "resume", "engine": "echo", "model": "echo", "output": {"path": "run"}}
    job |= {"input": {"path": "in.jsonl", "prompt": "{{ text }}", "chat": False}}
    (folder / "job.json").write_text(json.dumps(job))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "launcher", "render", "job.json", "--site", "local"]
    subprocess.run(
        [*command, "--out", "run"], cwd=folder, env=environ, check=True, capture_output=True
    )
    run = RunDir(folder / "run")
    publish_all_but_the_last(run, source, rows)
    return run


def publish_all_but_the_last(run: RunDir, source: Path, rows: int) -> None:
    grid = run.identity().grid
    last = count(grid) - 1
    start = -(-span(grid, last)[0] // LINE_BYTES)
    mtime_ns = source.stat().st_mtime_ns
    with source.open("r+b") as file:
        file.seek(start * LINE_BYTES - 1)
        file.write(b"\n" + b"".join(map(line, range(start, rows))))
    os.utime(source, ns=(mtime_ns, mtime_ns))
    none = {"overlay": 0, "ok": 1, "error": 0, "prompt_tokens": 1, "completion_tokens": 1}
    with (run.path / "metrics" / "dead.jsonl").open("w") as notes:
        for unit in range(last):
            run.part_path(unit).touch()
            notes.write(json.dumps({"unit": unit, **none}) + "\n")
    claim(run.lease_path(last, 1), b"dead")
    state = {"counter": 1, "released": True, "process": {}}
    replace(run.path / "workers" / "dead.hb", json.dumps(state).encode())
    log = UnitLog(run.wal_path(last, 1), run.path / "leases")
    places = [number * LINE_BYTES for number in range(start, (start + rows) // 2)]
    answer = b'{"row":[0,%d],"status":"ok","usage":{"prompt_tokens":1,"completion_tokens":1}}\n'
    log.write([Record((0, place), True, 1, 1, answer % place) for place in places])
    log.close()


def traced(run: RunDir) -> tuple[Counter[str], float]:
    """What one replica asked below ``run``, and how long it took."""
    words = ["--plan", "0001", "--replica", "0", "--job", "1", "--restart", "0"]
    log = run.path.parent / "trace"
    calls = "trace=%file,getdents64,read,pread64"
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", calls]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    runner = [sys.executable, "-m", "launcher.runner", *words]
    subprocess.run([*command, *runner], cwd=run.path, env=environ, check=True, capture_output=True)
    took_s = time.perf_counter() - start
    return counted(log.read_text().splitlines(), run.path), took_s


def counted(lines: Iterable[str], run: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    when = "before it has work"
    for text in lines:
        call = _CALL.match(text)
        if call is None or str(run) not in call[2]:
            continue
        name, words, result = call[1], call[2], int(call[3])
        if name == "getdents64" and result == 0:
            found[f"listings {when}"] += 1
        elif name == "link" and "/leases/" in words:
            when = "afterwards"
        elif "stat" in name and ("/parts/u" in words):
            found["stats of parts"] += 1
        elif name in {"read", "pread64"} and "/wal/" in words:
            found["WAL bytes read"] += result
        elif name in {"read", "pread64"} and "/parts/" in words:
            found["part bytes read"] += result
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append")
    args = parser.parse_args()
    for rows in args.rows or [10_000, 1_000_000, 100_000_000]:
        with tempfile.TemporaryDirectory() as name:
            run = make_run(Path(name), rows)
            left = rows * LINE_BYTES - span(run.identity().grid, count(run.identity().grid) - 1)[0]
            found, took_s = traced(run)
            assert (run.path / "DONE").exists()
        told = ", ".join(
            f"{found[key]} {key}"
            for key in (
                "listings before it has work",
                "listings afterwards",
                "stats of parts",
                "WAL bytes read",
                "part bytes read",
            )
        )
        print(f"{rows} rows, {left // LINE_BYTES} of them in the open unit: {told}, {took_s:.1f} s")


if __name__ == "__main__":
    main()
