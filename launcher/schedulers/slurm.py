"""Slurm through its commands. The only module that knows their flags and their output."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launcher.errors import Problem, SchedulerError
from launcher.schedulers.base import JobRef, JobState, clean_environment

__all__ = ["STATES", "SlurmScheduler"]

# Every base state of Slurm's `enum job_states` (slurm/slurm.h). A state that is not here is
# LOST, never guessed to be final.
STATES: Mapping[str, JobState] = {
    "PENDING": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "COMPLETED": JobState.DONE,
    "CANCELLED": JobState.FAILED,
    "FAILED": JobState.FAILED,
    "TIMEOUT": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "PREEMPTED": JobState.PREEMPTED,
    "BOOT_FAIL": JobState.FAILED,
    "DEADLINE": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    # Flags that squeue shows in place of a base state.
    "COMPLETING": JobState.RUNNING,
    "CONFIGURING": JobState.RUNNING,
    "REQUEUED": JobState.QUEUED,
    "REQUEUE_HOLD": JobState.QUEUED,
    "RESV_DEL_HOLD": JobState.QUEUED,
    "SPECIAL_EXIT": JobState.QUEUED,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
}
_TRANSIENT = ("Unable to contact slurm controller", "Socket timed out", "try again")


class SlurmScheduler:
    """``sbatch``, ``squeue`` before ``sacct``, and ``scancel``."""

    poll_s = 15.0

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        self._timeout_s = timeout_s

    def submit(self, script: Path) -> JobRef:
        """Queue ``script``. Never retried here: an sbatch that timed out may have worked."""
        from submitit.core.utils import FailedSubmissionError  # noqa: PLC0415 - it takes 100 ms
        from submitit.slurm.slurm import SlurmExecutor  # noqa: PLC0415 - as above

        answer = self._run("sbatch", str(script))
        # submitit's parser, so that its Job handles and ours agree on the id.
        try:
            job = SlurmExecutor._get_job_id_from_submission_command(answer)  # noqa: SLF001
        except FailedSubmissionError as exc:
            problem = Problem("slurm.no-job-id", f"`sbatch` named no job, it said {answer!r}")
            raise SchedulerError(problem) from exc
        return JobRef(id=str(job))

    def states(self, jobs: Sequence[JobRef]) -> Mapping[str, JobState]:
        """One state a job; of an array the liveliest of its tasks."""
        ids = [job.id for job in jobs]
        rows = list(self._rows(ids))
        return {id_: _liveliest([s for job, s in rows if _names(id_, job)]) for id_ in ids}

    def cancel(self, jobs: Sequence[JobRef]) -> None:
        if not jobs:
            return
        try:
            self._run("scancel", *(job.id for job in jobs))
        except SchedulerError as exc:
            if "Invalid job id" not in exc.problems[0].message:  # that is one which is over
                raise

    def _rows(self, ids: Sequence[str]) -> Iterator[tuple[str, JobState]]:
        """Squeue first: it knows queued and running jobs even where there is no accounting."""
        if not ids:
            return
        queue = _pairs(self._run("squeue", "--noheader", "--all", "--format=%i|%T", "--me"))
        live = [(job, state) for job, state in queue if any(_names(id_, job) for id_ in ids)]
        yield from live
        missing = [id_ for id_ in ids if not any(_names(id_, job) for job, _ in live)]
        if missing:
            yield from self._ended(missing)

    def _ended(self, ids: Sequence[str]) -> Iterator[tuple[str, JobState]]:
        asked = ("-X", "--noheader", "-P", "--format=JobID,State", "--jobs", ",".join(ids))
        try:
            known = list(_pairs(self._run("sacct", *asked)))
        except SchedulerError as exc:
            if exc.transient or exc.problems[0].code == "slurm.absent":
                raise
            known = []  # no accounting here
        yield from known
        # What squeue has forgotten and no accounting knows is over.
        for id_ in ids:
            if not any(_names(id_, job) for job, _ in known):
                yield id_, JobState.ENDED

    def _run(self, *argv: str) -> str:
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
                check=False,
                env=clean_environment(os.environ),
            )
        except FileNotFoundError as exc:
            hint = "submit on a login node of the cluster, or choose another --site"
            problem = Problem("slurm.absent", f"`{argv[0]}` is not on PATH", hint=hint)
            raise SchedulerError(problem) from exc
        except subprocess.TimeoutExpired as exc:
            message = f"`{argv[0]}` gave no answer in {self._timeout_s:g} s"
            raise SchedulerError(Problem("slurm.timeout", message), transient=True) from exc
        if done.returncode:
            text = done.stderr.strip() or "no message"
            problem = Problem("slurm.refused", f"`{argv[0]}` exited {done.returncode}: {text}")
            raise SchedulerError(problem, transient=any(t in text for t in _TRANSIENT))
        return done.stdout


def _names(id_: str, job: str) -> bool:
    """Whether ``job``, as Slurm prints it, is ``id_`` or a task of that array."""
    return job == id_ or job.partition("_")[0] == id_


def _pairs(text: str) -> Iterator[tuple[str, JobState]]:
    for line in filter(None, text.splitlines()):
        job, _, state = line.partition("|")
        # "CANCELLED by 1000", "COMPLETED+"
        word = state.split()[0].rstrip("+") if state.split() else ""
        yield job, STATES.get(word, JobState.LOST)


def _liveliest(states: Sequence[JobState]) -> JobState:
    order = list(JobState)
    for wanted in (JobState.RUNNING, JobState.QUEUED, JobState.LOST):
        if wanted in states:
            return wanted
    return max(states, key=order.index) if states else JobState.LOST
