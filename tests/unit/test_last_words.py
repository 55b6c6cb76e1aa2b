"""What the log of a step says of its end where no rank could.

Lines are real ones, or as the source that a comment names formats them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.telemetry.last_words import last_words

# SchedMD/slurm 22.05 and 23.11
OOM = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been "
    "OOM Killed."
)
KILLED = "srun: error: node03: task 3: Killed"
EXITED = "srun: error: node01: tasks 0-1: Exited with exit code 7"
LINES = [
    (OOM, "run.no-memory"),
    ("srun: error: node03: task 3: Out Of Memory", "run.no-memory"),
    ("slurmstepd: error: Detected 2 oom-kill event(s) in StepId=7.0 cgroup.", "run.no-memory"),
    (KILLED, "run.died"),
    ("srun: error: node03: tasks 0,2-3: Segmentation fault (core dumped)", "run.died"),
    ("srun: error: node03: task 0: Exited with exit code 127", "run.died"),
    ("srun: error: Unable to create step for job 7: Requested node configuration", "run.died"),
    (
        "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-02T03:04:05 DUE TO TIME LIMIT",
        "run.died",
    ),
    # NVIDIA/pyxis pyxis_slurmstepd.c, and what it prints of enroot's log
    ("slurmstepd: error: pyxis: child 4711 failed with error code: 1", "run.container"),
    ("slurmstepd: error: pyxis: couldn't start container", "run.container"),
    (
        "slurmstepd: error: pyxis:     [ERROR] URL https://nvcr.io/x returned error code: 401",
        "run.container",
    ),
    # apptainer/apptainer, pkg/sylog
    ("FATAL:   could not open image /shared/t.sif: no such file or directory", "run.container"),
    # open-mpi/ompi v4.1, orte/tools/orterun/help-orterun.txt
    ("mpirun noticed that process rank 1 with PID 0 on node n1 exited on signal 9", "run.died"),
]


def log(folder: Path, *lines: str) -> Path:
    path = folder / "7.s0.log"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(("line", "code"), LINES)
def test_a_line_of_the_launcher_tells_why_a_step_ended(
    line: str, code: str, tmp_path: Path
) -> None:
    found = last_words(log(tmp_path, "hpc-llm: start 0", "Loading weights", line, "more"), 0)
    assert found is not None
    assert (found.code, found.message) == (code, line)
    assert found.hint


def test_the_deepest_one_counts_and_of_equals_the_first(tmp_path: Path) -> None:
    other = "srun: error: node04: task 5: Killed"
    found = last_words(log(tmp_path, KILLED, other), 0)
    assert found is not None
    assert found.message == KILLED
    found = last_words(log(tmp_path, KILLED, OOM, other), 0)
    assert found is not None
    assert found.message == OOM


def test_other_starts_do_not_count(tmp_path: Path) -> None:
    path = log(tmp_path, "hpc-llm: start 0", OOM, "hpc-llm: start 1", KILLED)
    found = last_words(path, 1)
    assert found is not None
    assert found.message == KILLED


@pytest.mark.parametrize(
    "line",
    [
        # What a wrapper that has said why it failed leaves behind.
        EXITED,
        "srun: error: node01: task 0: Exited with exit code 75",
        "slurmstepd: pyxis: importing docker image: nvcr.io/x",
        "3: an answer about srun: error: handling",
        "enroot-aufs2ovlfs: WARNING",
    ],
)
def test_what_tells_nothing_new_is_left_out(line: str, tmp_path: Path) -> None:
    assert last_words(log(tmp_path, line), 0) is None


def test_without_a_log_nothing_is_known(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none", 0) is None
