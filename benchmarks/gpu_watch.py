"""What GPU benchmarks look at from outside: processes, GPUs, a run's beats, and rates from them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Seconds since the epoch, rows, their prompt and new tokens, and, where the engine was asked, new
# tokens by its own count, which has those of unfinished rows too.
Sample = Sequence[float]
Tail = dict[str, Any]
DONE, GENERATED = 3, 4
# Of the power that a GPU draws while it is full.
MOST = 0.8


def total_at(series: Sequence[Sequence[Sample]], when: float, column: int) -> float:
    """The sum over workers at ``when``, between the beats of each."""
    total = 0.0
    for samples in series:
        after = bisect_left([sample[0] for sample in samples], when)
        if after == 0:
            continue
        if after == len(samples):
            total += samples[-1][column]
            continue
        (t0, *_), (t1, *_) = samples[after - 1], samples[after]
        share = (when - t0) / (t1 - t0) if t1 > t0 else 1.0
        low, high = samples[after - 1][column], samples[after][column]
        total += low + share * (high - low)
    return total


def steady(series: Sequence[Sequence[Sample]], rows: int, column: int) -> dict[str, float] | None:
    """New tokens a second in the middle of a run of ``rows``; None where it is too short."""
    beats = sorted({sample[0] for samples in series for sample in samples})
    inner = [t for t in beats if 0.1 * rows <= total_at(series, t, 1) <= 0.9 * rows]
    if not inner or inner[0] == inner[-1]:
        return None
    first, last = inner[0], inner[-1]
    took_s = last - first
    new, prompt = (total_at(series, last, c) - total_at(series, first, c) for c in (column, 2))
    return {
        "from": first,
        "to": last,
        "tokens_per_s": new / took_s,
        "prompt_tokens_per_s": prompt / took_s,
    }


def tail(series: Sequence[Sequence[Sample]], rows: int, ready: float, end: float) -> Tail | None:
    """The time from nine tenths of ``rows`` to ``end``, and its share of that from ``ready``."""
    beats = sorted({sample[0] for samples in series for sample in samples if sample[0] < end})
    points = [(ready, 0.0), *((t, total_at(series, t, 1)) for t in beats if t > ready)]
    before = max(point for point in points if point[1] < 0.9 * rows)
    after = min([point for point in points if point > before], default=(end, float(rows)))
    share = (0.9 * rows - before[1]) / (after[1] - before[1])
    since = before[0] + share * (after[0] - before[0])
    if not ready < since < end:
        return None
    return {
        "from": since,
        "to": end,
        "seconds": end - since,
        "share": (end - since) / (end - ready),
    }


class GpuWatch:
    """What nvidia-smi says of the GPUs that this process may use, twice a second."""

    FIELDS = "index,utilization.gpu,memory.used,memory.total,power.draw"

    def __init__(self) -> None:
        self._seen: list[tuple[float, list[float]]] = []
        query = [
            f"--query-gpu={self.FIELDS}",
            "--format=csv,noheader,nounits",
            "-lms",
            "500",
            *only(),
        ]
        self._process: subprocess.Popen[str] | None = None
        with contextlib.suppress(FileNotFoundError):
            self._process = subprocess.Popen(
                ["nvidia-smi", *query], stdout=subprocess.PIPE, text=True
            )
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # "[N/A]"
                self._seen.append((time.time(), [float(text) for text in line.split(",")]))

    def between(self, start: float, end: float) -> list[dict[str, float]]:
        """For each GPU: median and least utilisation, most memory, median power."""
        return [
            {
                "gpu": gpu,
                "samples": len(rows),
                "utilisation_median": statistics.median(row[1] for row in rows),
                "utilisation_mean": statistics.fmean(row[1] for row in rows),
                "utilisation_least": min(row[1] for row in rows),
                "memory_most_mib": max(row[2] for row in rows),
                "memory_total_mib": rows[0][3],
                "power_median_w": statistics.median(row[4] for row in rows),
            }
            for gpu, rows in self._of_each(start, end).items()
        ]

    def lull_s(self, start: float, end: float) -> dict[int, float]:
        """For each GPU: how long before ``end`` it last drew most of its median power.

        One that has a single sequence left is as busy as another, and draws far less.
        """
        found = {}
        for gpu, rows in self._of_each(start, end).items():
            least = MOST * statistics.median(row[4] for row in rows)
            found[gpu] = end - max((row[5] for row in rows if row[4] >= least), default=start)
        return found

    def _of_each(self, start: float, end: float) -> dict[int, list[list[float]]]:
        """The fields of each GPU, and when they were seen."""
        found: dict[int, list[list[float]]] = {}
        for when, values in self._seen:
            if start <= when <= end:
                found.setdefault(int(values[0]), []).append([*values, when])
        return dict(sorted(found.items()))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


@contextlib.contextmanager
def session(command: Sequence[str | Path], **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A process whose whole session is gone in the end, whatever happens."""
    process = subprocess.Popen(
        list(map(str, command)), start_new_session=True, text=True, stdin=subprocess.DEVNULL, **how
    )
    try:
        yield process
    finally:
        while left := [pid for pid in session_of(process.pid) if pid != os.getpid()]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.1)


def session_of(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def note_beats(run: Path, series: dict[str, list[Sample]]) -> None:
    for path in run.glob("metrics/*.now"):
        with contextlib.suppress(OSError, ValueError):  # its worker has just ended
            beat = json.loads(path.read_bytes())
            samples = series.setdefault(path.stem, [])
            if not samples or samples[-1][0] < beat["time"]:
                tokens = beat["prompt_tokens"], beat["completion_tokens"]
                samples.append((beat["time"], beat["rows"], *tokens))


def parts_of(run: Path) -> list[dict[str, Any]]:
    """What each published part holds, as its worker noted it, beside what else it noted."""
    texts = [path.read_text() for path in run.glob("metrics/*.jsonl")]
    notes = [json.loads(line) for text in texts for line in text.splitlines()]
    return [note for note in notes if "ok" in note]


def read_marks(path: Path, run: Path) -> dict[str, float]:
    """Seconds from the start that the job noted of itself to each event of its first replica."""
    entries = [json.loads(p.read_bytes()) for p in run.glob("jobs/*.json")]
    if not entries or not path.exists():
        return {}
    found: dict[str, float] = {}
    for line in path.read_text().splitlines():
        for event, when in json.loads(line).items():
            found.setdefault(event, when - entries[0]["started"])
    return found


def only() -> list[str]:
    """Words for nvidia-smi, which knows nothing of CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [] if visible is None else ["-i", visible]


def gpus_seen() -> list[str]:
    """The GPUs that this process may use, a line for each."""
    return gpu_lines("--query-gpu=index,name", "--format=csv,noheader")


def gpu_lines(*words: str) -> list[str]:
    """What nvidia-smi says of the GPUs that this process may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    try:
        done = subprocess.run(
            ["nvidia-smi", *words, *only()], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()
