"""A stand-in for Open MPI's mpirun, to start the tasks of several "nodes" on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["write_mpirun"]

_SCRIPT = """\
#!{python}
import os, signal, subprocess, sys, time

GPUS = {gpus!r}
words = sys.argv[1:]
assert words[:3] == ["-np", str(len(GPUS)), "--map-by"], words
assert words[3] == "ppr:1:node", words
start = 4
while words[start].startswith("-"):
    start += 2
tasks = []
for number, seen in enumerate(GPUS):
    own = dict(OMPI_COMM_WORLD_RANK=number, OMPI_COMM_WORLD_SIZE=len(GPUS))
    own.update(OMPI_COMM_WORLD_LOCAL_RANK=0, CUDA_VISIBLE_DEVICES=seen)
    environ = {{**os.environ, **{{name: str(value) for name, value in own.items()}}}}
    tasks.append(subprocess.Popen(words[start:], env=environ))


def tell(number, _=None):
    for task in tasks:
        task.send_signal(number)


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, tell)
code, killed_s = 0, None
while None in [task.poll() for task in tasks]:
    time.sleep(0.05)
    bad = [task.returncode for task in tasks if task.returncode]
    if bad and killed_s is None:  # as mpirun does when a process fails, and srun when told to
        code, killed_s = bad[0], time.monotonic() + 10
        tell(signal.SIGTERM)
    elif killed_s is not None and time.monotonic() > killed_s:
        tell(signal.SIGKILL)
sys.exit(code or max(abs(task.returncode) for task in tasks))
"""


def write_mpirun(folder: Path, gpus: Sequence[str]) -> Path:
    """Write ``mpirun`` to ``folder``: a task for each of ``gpus``, which is all that it sees."""
    folder.mkdir(parents=True)
    written = folder / "mpirun"
    written.write_text(_SCRIPT.format(python=sys.executable, gpus=list(gpus)))
    written.chmod(0o755)
    return folder
