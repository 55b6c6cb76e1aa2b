"""What the launcher of a step has said of its end, which no rank of it could hear.

Texts are those of SchedMD/slurm (src/srun/libsrun/launch.c, src/slurmd/slurmd/req.c and
src/slurmd/slurmstepd/, the memory cgroup's check), NVIDIA/pyxis and NVIDIA/enroot, Apptainer, and
open-mpi/ompi (the help texts of mpirun and prterun).
"""

from __future__ import annotations

import re
from pathlib import Path

from launcher.errors import Problem

__all__ = ["end_of_start", "last_words"]

# Whoever reports the end of a step does so at the end of its log.
_READ_BYTES = 1 << 20
_LONGEST = 400
_CONTAINER_HINT = "see that compute nodes can read the image and start it: try `true` in it there"
# (code, hint, lines), from the top: one may be the consequence of one before it. Of the lines of
# one, the first was first.
_TOLD = tuple(
    (code, hint, re.compile(f"^.*(?:{'|'.join(lines)}).*$", re.MULTILINE))
    for code, hint, lines in (
        (
            "run.no-memory",
            "spread the ranks over more nodes, or have less loaded at once",
            (
                r"Detected \d+ oom[-_]kill event",
                r": tasks? [\d,-]+: Out Of Memory",
                "killed by the cgroup out-of-memory handler",
            ),
        ),
        ("run.container", _CONTAINER_HINT, (r"pyxis: +\[ERROR\] ",)),
        (
            "run.container",
            _CONTAINER_HINT,
            (
                r"pyxis: (?:couldn't|failed|child \d+ failed)",
                r"enroot-\w+: failed",
                r"^(?:\d+: )?FATAL: ",
            ),
        ),
        (
            "run.died",
            "resume the run: what is finished is kept",
            (r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+ DUE TO ",),
        ),
        (
            "run.died",
            "look for the first error in `hpc-llm logs RUN`, then resume it",
            (
                # Wrappers of ranks end with 7 and 75 where they could say why.
                r"^srun: error: \S+: tasks? [\d,-]+: (?!Exited with exit code (?:7|75)$)",
                r"^srun: error: (?:Unable|Task launch)",
                r"noticed that process rank \d+ with PID",
            ),
        ),
    )
)


def last_words(log: Path, start: int) -> Problem | None:
    """Why a step ended, as its launcher tells; None when it does not.

    Parameters
    ----------
    log
        Of one replica of a job, with all of its starts.
    start
        The number of the one that is meant: its lines follow ``hpc-llm: start N``.
    """
    text = end_of_start(log, start)
    for code, hint, pattern in _TOLD:
        if found := pattern.search(text):
            return Problem(code, found[0].strip()[:_LONGEST], hint=hint)
    return None


def end_of_start(log: Path, start: int) -> str:
    """What was printed last under one start, as in `last_words`; nothing where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _READ_BYTES))
            text = file.read().decode(errors="replace").replace("\r", "\n")
    except OSError:
        return ""
    return re.split(rf"^hpc-llm: start {start}$", text, flags=re.MULTILINE)[-1]
