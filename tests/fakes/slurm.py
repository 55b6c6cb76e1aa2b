#!/usr/bin/env python3
"""sbatch, squeue, sacct and scancel of a cluster that is a directory, ``$FAKE_SLURM``.

The command is the name this file is called by (the links in ``bin``). What it prints and how it
fails are as Slurm 23.11's own: src/sbatch/sbatch.c, src/squeue/print.c, src/sacct/print.c,
src/scancel/scancel.c. In the directory

- ``jobs.json`` holds ``{id: state}``; tests change it as a cluster would,
- ``calls.jsonl`` has a line for each call, with its words and its environment,
- ``fail.<command>`` makes that command fail: ``{"code", "stderr", "stdout", "sleep_s", "works"}``,
  with ``"calls"`` only from that call on.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

HOME = Path(os.environ["FAKE_SLURM"])
QUEUED = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "SPECIAL")


@contextmanager
def jobs() -> Iterator[dict[str, str]]:
    """The cluster's jobs, for this process alone while it looks at them."""
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = HOME / "jobs.json"
        found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        yield found
        path.write_text(json.dumps(found))


def sbatch(words: list[str]) -> None:
    if words[0] == "--test-only":
        if not all(word.startswith("--") for word in words) or words[-1] != "--wrap=true":
            die(f"sbatch: error: the fake takes options and a command, got {words}")
        start = "Job 1000 to start at 2037-01-02T03:04:05 using 8 processors on nodes node01"
        print(f"sbatch: {start} in partition gpu", file=sys.stderr)
        return
    form = r"--job-name=\S+ (--dependency=afterany:(?P<after>\d+) )?[^-].*"
    if not (taken := re.fullmatch(form, " ".join(words))):
        die(f"sbatch: error: the fake takes a name, a job before it and a script, got {words}")
    text = Path(words[-1]).read_text()
    if not text.startswith("#!"):
        die("sbatch: error: This does not look like a batch script.")
    tasks = re.search(r"^#SBATCH --array=0-(\d+)", text, re.MULTILINE)
    with jobs() as known:
        number = 1000 + len({whole(job) for job in known})
        parts = [f"{number}+{n}" for n in range(text.count("#SBATCH hetjob") + 1)]
        ids = parts if len(parts) > 1 else [f"{number}_[0-{tasks[1]}]" if tasks else str(number)]
        known.update(dict.fromkeys(ids, "PENDING"))
        (HOME / f"name.{number}").write_text(words[0].partition("=")[2])
        if "#SBATCH --hold" in text:
            (HOME / f"reason.{number}").write_text("JobHeldUser")
        if taken["after"]:
            (HOME / f"reason.{number}").write_text("Dependency")
    print(f"Submitted batch job {number}")


def squeue(words: list[str]) -> None:
    shown = {
        (
            "--noheader",
            "--all",
            "--array",
            "--states=all",
            "--format=%i|%T",
            "--me",
        ): "{id}|{state}",
        ("--noheader", "--all", "--states=PENDING", "--format=%i|%r", "--me"): "{id}|{reason}",
        ("--noheader", "--all", "--states=all", "--format=%F"): "{base}",
    }
    plain = tuple(word for word in words if not word.startswith("--name="))
    if plain not in shown:
        die(f"squeue: error: the fake does not know {words}")
    for job, state in apart(chosen(words)) if "--array" in words else chosen(words):
        if "--states=all" in words or state == "PENDING":
            base = whole(job)
            print(shown[plain].format(id=job, state=state, base=base, reason=reason_of(base)))


def sacct(words: list[str]) -> None:
    if words[:4] != ["-X", "--noheader", "-P", "--format=JobID,State"]:
        die(f"sacct: error: the fake does not know {words}")
    asked = words[5].split(",") if words[4] == "--jobs" else None
    for job, state in chosen(words):
        if asked is None or {job, whole(job)} & {*asked}:
            print(f"{job}|{state}")


def chosen(words: list[str]) -> list[tuple[str, str]]:
    """The jobs of the name that ``--name`` gives, or all."""
    name = next((word.partition("=")[2] for word in words if word.startswith("--name=")), None)
    with jobs() as known:
        return [(job, state) for job, state in known.items() if name in (None, name_of(job))]


def apart(found: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The tasks of arrays that wait, each by itself."""
    for job, state in found:
        if waiting := re.fullmatch(r"(\d+)_\[0-(\d+)\]", job):
            yield from ((f"{waiting[1]}_{n}", state) for n in range(int(waiting[2]) + 1))
        else:
            yield job, state


def whole(job: str) -> str:
    return re.split("[_+]", job)[0]


def name_of(job: str) -> str | None:
    path = HOME / f"name.{whole(job)}"
    return path.read_text() if path.exists() else None


def reason_of(job: str) -> str:
    path = HOME / f"reason.{job}"
    return path.read_text() if path.exists() else "Priority"


def scancel(words: list[str]) -> None:
    if not words:
        die("scancel: error: No job identification provided")
    # Of a job that is over, or that never was, 22.05 says nothing; others may, see test_slurm.
    with jobs() as known:
        for word in words:
            for job in [job for job in known if word in (job, whole(job))]:
                if known[job].startswith(QUEUED):
                    known[job] = f"CANCELLED by {os.getuid()}"


def die(text: str) -> NoReturn:
    sys.exit(text)


def main() -> None:
    command, words = Path(sys.argv[0]).name, sys.argv[1:]
    with (HOME / "calls.jsonl").open("a") as log:
        call = {"command": command, "words": words, "environ": dict(os.environ)}
        log.write(json.dumps(call) + "\n")
    work = {"sbatch": sbatch, "squeue": squeue, "sacct": sacct, "scancel": scancel}[command]
    path = HOME / f"fail.{command}"
    if not path.exists():
        work(words)
        return
    fault = json.loads(path.read_text())
    lines = map(json.loads, (HOME / "calls.jsonl").read_text().splitlines())
    if sum(line["command"] == command for line in lines) < fault.get("calls", 0):
        work(words)
        return
    if fault.get("works"):
        work(words)
    time.sleep(fault.get("sleep_s", 0))
    sys.stdout.write(fault.get("stdout", ""))
    sys.stderr.write(fault.get("stderr", ""))
    sys.exit(fault.get("code", 0))


if __name__ == "__main__":
    main()
