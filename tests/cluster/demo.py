"""What `make demo-slurm` shows: two jobs on a real Slurm cluster of four nodes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cluster.cluster import PROFILES, Cluster, install, why_not

HERE = Path(__file__).resolve().parent


def main() -> None:
    if (reason := why_not(PROFILES["default"])) is not None:
        sys.exit(reason)
    install()
    cluster = Cluster(PROFILES["default"])
    kept = cluster.is_up()
    if not kept:
        cluster.up()
    try:
        print(cluster.run("sinfo"))
        show(cluster, "tp3", answers=True)
        show(cluster, "array", answers=False)
    finally:
        if not kept:
            cluster.down()


def show(cluster: Cluster, name: str, *, answers: bool) -> None:
    """Submit the demo job ``name``, wait for it, and print where its ranks were and its rows."""
    run = cluster.root / "shared" / f"demo-{name}-{os.getpid()}"
    job = ("submit", f"{HERE}/demo/{name}.yaml", "--site", f"{HERE}/site.yaml")
    here = ("--set", f"output.path={run}", "--set", f"runtime.python={sys.executable}")
    hpc_llm(cluster, *job, *here, "--wait")
    hpc_llm(cluster, "status", str(run))
    done = hpc_llm(cluster, "results", str(run), quiet=True)
    for row in map(json.loads, done.splitlines() if answers else ()):
        print(row["input"]["question"], "\n   ", row["response"]["text"])
    print()


def hpc_llm(cluster: Cluster, *words: str, quiet: bool = False) -> str:
    command = (sys.executable, "-m", "launcher", *words)
    if not quiet:
        print("$ hpc-llm", *words, flush=True)
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(command, env=cluster.environment(), stdout=output, text=True, check=True)
    return done.stdout or ""


if __name__ == "__main__":
    main()
