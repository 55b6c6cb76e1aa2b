"""What hpc-llm asks of any scheduler, and no more."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from launcher.process import ProcessIds

__all__ = ["JobRef", "JobState", "Scheduler", "clean_environment"]


class JobState(enum.Enum):
    """A job as its scheduler sees it.

    ``ENDED`` is over, and the scheduler cannot say how; ``LOST`` is not over: the scheduler
    just does not know it.
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    PREEMPTED = "preempted"
    ENDED = "ended"
    LOST = "lost"

    @property
    def live(self) -> bool:
        """Whether work may still come from it, as far as anybody knows."""
        return self in {JobState.QUEUED, JobState.RUNNING, JobState.LOST}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRef:
    """A submitted job: the scheduler's id, and on this machine its process."""

    id: str
    process: ProcessIds | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobRef:
        process = data.get("process")
        return cls(id=data["id"], process=ProcessIds(**process) if process else None)


class Scheduler(Protocol):
    """Submit a script, ask after jobs, cancel them. Implementations raise `SchedulerError`.

    Attributes
    ----------
    poll_s
        How long to wait between two questions about one job, so that nobody is a burden.
    """

    poll_s: float

    def submit(self, script: Path, name: str, *, after: JobRef | None = None) -> JobRef:
        """Start or queue ``script``, whose directory is the run's, as a job called ``name``.

        It waits for the end of ``after``, however that ends.
        """

    def find(self, name: str) -> JobRef | None:
        """The job called ``name``, queued, running or over, as far as anybody remembers it."""

    def states(self, jobs: Sequence[JobRef]) -> Mapping[str, JobState]:
        """The state of every one of ``jobs``, by id."""

    def reasons(self, jobs: Sequence[JobRef]) -> Mapping[str, str]:
        """Why queued ``jobs`` wait, in words, by id; those that do not are left out."""

    def expected_start(self, options: Sequence[tuple[str, str | None]]) -> str | None:
        """When a job with these options would start, as ``YYYY-MM-DDTHH:MM:SS`` of local time.

        None where jobs start at once. An estimate of this moment, and nothing is submitted.
        """

    def cancel(self, jobs: Sequence[JobRef]) -> None:
        """End ``jobs``; those that are over already are no error.

        What was started by hand inside an allocation is not touched: that is its user's, and
        steps leave it as soon as they see ``control/STOP``.
        """


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what a surrounding job or MPI left in it, and without taste.

    sbatch reads ``SBATCH_*`` and ``SLURM_*`` as options, so that a submission from inside a
    job would inherit that job's shape. With ``SQUEUE_STATES=RUNNING`` in a user's profile squeue
    hides jobs that wait, with ``SCANCEL_INTERACTIVE`` scancel asks back (their manual pages).
    """
    slurms = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_")
    foreign = (*slurms, "PMI", "OMPI_", "HPC_LLM_LOCAL_")
    # Where the controller is, and who may talk to it, is the user's and not that job's.
    kept = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
    return {k: v for k, v in environ.items() if k in kept or not k.startswith(foreign)}
