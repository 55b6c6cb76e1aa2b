"""Slurm through its commands. The only module that knows their flags and their output."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import Problem, SchedulerError
from launcher.parsers.slurm_values import (
    JobRows,
    read_expected_start,
    read_job_rows,
    read_job_state,
)
from launcher.schedulers.base import JobRef, JobState, clean_environment

__all__ = ["REASONS", "STATES", "SlurmScheduler"]

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
# What squeue gives as the reason (slurm/slurm.h, `enum job_state_reason`), in words. Those that
# say so will not pass by waiting.
REASONS: Mapping[str, str] = {
    "Priority": "jobs of higher priority are before it",
    "Resources": "it waits for free nodes",
    "Dependency": "it waits for the job before it",
    "BeginTime": "it starts again about two minutes after its requeue",
    "ReqNodeNotAvail": "nodes it asks for are down or reserved",
    "Licenses": "it waits for a license",
    "JobHeldUser": "it is held: release it with scontrol release",
    "JobHeldAdmin": "an administrator holds it",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is closed",
    "QOSMaxJobsPerUserLimit": "your other jobs use up what the QOS allows",
    "QOSGrpGRES": "the GPUs of the QOS are in use",
    "AssocGrpGRES": "the GPUs of the account are in use",
    "PartitionTimeLimit": "hopeless: its time is over the limit of the partition",
    "PartitionNodeLimit": "hopeless: it asks for more nodes than the partition gives",
    "BadConstraints": "hopeless: no node fits what it asks for",
    "InvalidAccount": "hopeless: the account is not valid",
    "InvalidQOS": "hopeless: the QOS is not valid",
    "AccountNotAllowed": "hopeless: the account may not use the partition",
    "AssocGrpBillingMinutes": "hopeless: the account has no hours left",
    "AssocGrpCPUMinutesLimit": "hopeless: the account has no hours left",
}
# For a figure that is only nice to have.
_PATIENCE_S = 10.0
_TRANSIENT = ("Unable to contact slurm controller", "Socket timed out", "try again")


class SlurmScheduler:
    """``sbatch``, ``squeue`` before ``sacct``, and ``scancel``."""

    poll_s = 15.0

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        self._timeout_s = timeout_s

    def submit(self, script: Path, name: str, *, after: JobRef | None = None) -> JobRef:
        """Queue ``script``. Never retried here: an sbatch that timed out may have worked."""
        from submitit.core.utils import FailedSubmissionError  # noqa: PLC0415 - it takes 100 ms
        from submitit.slurm.slurm import SlurmExecutor  # noqa: PLC0415 - as above

        waiting = () if after is None else (f"--dependency=afterany:{after.id}",)
        answer = self._run("sbatch", f"--job-name={name}", *waiting, str(script))
        # submitit's parser, so that its Job handles and ours agree on the id.
        try:
            job = SlurmExecutor._get_job_id_from_submission_command(answer)  # noqa: SLF001
        except FailedSubmissionError as exc:
            problem = Problem("slurm.no-job-id", f"`sbatch` named no job, it said {answer!r}")
            raise SchedulerError(problem) from exc
        return JobRef(id=str(job))

    def find(self, name: str) -> JobRef | None:
        """By squeue, then by sacct: without accounting what squeue has forgotten is not found."""
        # %F is the id of the whole array.
        asked = ("--noheader", "--all", "--states=all", "--format=%F")
        found = self._told("squeue", *asked, f"--name={name}")
        found = found or self._accounted(f"--name={name}", "--starttime=now-7days")
        return JobRef(id=_whole(found[0][0])) if found else None

    def reasons(self, jobs: Sequence[JobRef]) -> Mapping[str, str]:
        """As `squeue` gives it, in words; the reason of an array is that of its first task."""
        if not jobs:
            return {}
        asked = ("--noheader", "--all", "--states=PENDING", "--format=%i|%r", "--me")
        rows = self._told("squeue", *asked)
        found: dict[str, str] = {}
        for job in jobs:
            reason = next((reason for id_, reason in rows if _names(job.id, id_)), None)
            if reason is not None:
                # Some are followed by what they are about: "ReqNodeNotAvail, Unavailable…".
                found[job.id] = REASONS.get(reason.partition(",")[0], reason)
        return found

    def expected_start(self, options: Sequence[tuple[str, str | None]]) -> str | None:
        """As ``sbatch --test-only`` has it; of an array, of its first task.

        It goes by the time limits of what runs and waits now (sbatch(1)).
        """
        words = [name if value is None else f"{name}={value}" for name, value in options]
        # It answers on stderr (slurm, src/api/allocate.c, slurm_job_will_run).
        answer = self._call("sbatch", "--test-only", *words, "--wrap=true", most_s=_PATIENCE_S)
        found = read_expected_start(answer.stderr)
        if found is None:
            said = " ".join(answer.stderr.split())[:200]
            problem = Problem("slurm.no-start", f"`sbatch --test-only` named no time: {said!r}")
            raise SchedulerError(problem)
        return found

    def states(self, jobs: Sequence[JobRef]) -> Mapping[str, JobState]:
        """One state a job; of an array the liveliest of its tasks.

        A script that was started by hand is over with its process, if its allocation is or not.
        """
        over = {job.id for job in jobs if job.process is not None and job.process.gone()}
        ids = [job.id for job in jobs if job.id not in over]
        rows = self._rows(ids)
        found = {id_: _liveliest([word for job, word in rows if _names(id_, job)]) for id_ in ids}
        return found | dict.fromkeys(over, JobState.ENDED)

    def cancel(self, jobs: Sequence[JobRef]) -> None:
        # The last of a chain first, or each end would start the next.
        ids = [job.id for job in reversed(jobs) if job.process is None]
        if not ids:
            return
        try:
            self._run("scancel", *ids)
        except SchedulerError as exc:
            if "Invalid job id" not in exc.problems[0].message:  # that is one which is over
                raise

    def _rows(self, ids: Sequence[str]) -> JobRows:
        """Squeue first: it needs no accounting, which can be half a minute behind besides.

        Jobs that are over it knows for ``MinJobAge``, five minutes by default (slurm.conf(5)).
        """
        if not ids:
            return ()
        # --array: one line for each task, also for those that wait together.
        asked = ("--noheader", "--all", "--array", "--states=all", "--format=%i|%T", "--me")
        rows = self._told("squeue", *asked)
        missing = [id_ for id_ in ids if not any(_names(id_, job) for job, _ in rows)]
        return (*rows, *self._accounted("--jobs", ",".join(missing))) if missing else rows

    def _accounted(self, *selection: str) -> JobRows:
        """What sacct knows; nothing where there is no accounting."""
        columns = ("-X", "--noheader", "-P", "--format=JobID,State")
        try:
            return self._told("sacct", *columns, *selection)
        except SchedulerError as exc:
            if exc.transient or exc.problems[0].code == "slurm.absent":
                raise
            return ()

    def _told(self, *argv: str) -> JobRows:
        return read_job_rows(self._run(*argv))

    def _run(self, *argv: str) -> str:
        return self._call(*argv, most_s=self._timeout_s).stdout

    def _call(self, *argv: str, most_s: float) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=most_s,
                check=False,
                env=clean_environment(os.environ),
            )
        except FileNotFoundError as exc:
            hint = "submit on a login node of the cluster, or choose another --site"
            problem = Problem("slurm.absent", f"`{argv[0]}` is not on PATH", hint=hint)
            raise SchedulerError(problem) from exc
        except subprocess.TimeoutExpired as exc:
            message = f"`{argv[0]}` gave no answer in {most_s:g} s"
            raise SchedulerError(Problem("slurm.timeout", message), transient=True) from exc
        if done.returncode:
            text = done.stderr.strip() or "no message"
            problem = Problem("slurm.refused", f"`{argv[0]}` exited {done.returncode}: {text}")
            raise SchedulerError(problem, transient=any(t in text for t in _TRANSIENT))
        return done


def _whole(job: str) -> str:
    """The array or the heterogeneous job of ``12_3`` or ``12+1``, as squeue(1) has them."""
    return re.split(r"[_+]", job, maxsplit=1)[0]


def _names(id_: str, job: str) -> bool:
    """Whether ``job``, as Slurm prints it, is ``id_`` or a part of it."""
    return id_ in (job, _whole(job))


def _liveliest(words: Sequence[str]) -> JobState:
    """What squeue has forgotten and no accounting knows is over."""
    states = [STATES.get(read_job_state(word), JobState.LOST) for word in words]
    for wanted in (JobState.RUNNING, JobState.QUEUED, JobState.LOST):
        if wanted in states:
            return wanted
    return max(states, key=list(JobState).index, default=JobState.ENDED)
