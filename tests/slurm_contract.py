"""What `SlurmScheduler` promises, for a cluster that is real and for the fake one alike."""

from __future__ import annotations

import abc
import secrets
from pathlib import Path

import pytest
from cli_driving import poll

from launcher.schedulers.base import JobRef, JobState
from launcher.schedulers.slurm import SlurmScheduler

__all__ = ["SlurmContract", "World", "held_script"]

UNKNOWN = "3999999"


def held_script(folder: Path, *, tasks: int = 1, parts: int = 1) -> Path:
    """A script that waits to be released, then for its folder's say.

    It is an array of ``tasks``, or a heterogeneous job of ``parts``.
    """
    array = f"#SBATCH --array=0-{tasks - 1}\n" if tasks > 1 else ""
    part = "#SBATCH --hold\n#SBATCH --time=1\n#SBATCH --output=/dev/null\n"
    head = "#SBATCH hetjob\n".join([part] * parts)
    path = folder / "script.sh"
    path.write_text(
        f"#!/bin/bash\n{head}{array}"
        f"cd {folder}\n"
        "until [ -s code$SLURM_ARRAY_TASK_ID ]; do sleep 0.1; done\n"
        "exit $(<code$SLURM_ARRAY_TASK_ID)\n"
    )
    return path


class World(abc.ABC):
    """A cluster whose jobs a test starts and ends. ``task`` is that of an array, if it is one."""

    scheduler = SlurmScheduler()

    @abc.abstractmethod
    def script(self, **shape: int) -> Path:
        """A `held_script` that the cluster's nodes see."""

    @abc.abstractmethod
    def start(self, job: JobRef, *, task: int | None = None) -> None:
        """Let ``job`` run; of an array one task, the others go on waiting."""

    @abc.abstractmethod
    def end(self, job: JobRef, *, code: int, task: int | None = None) -> None:
        """Let what runs exit with ``code``."""

    def submit(self, **shape: int) -> tuple[JobRef, str]:
        name = f"contract.{secrets.token_hex(4)}"
        return self.scheduler.submit(self.script(**shape), name), name

    def state(self, id_: str) -> JobState:
        return self.scheduler.states([JobRef(id=id_)])[id_]

    def until(self, id_: str, *states: JobState) -> None:
        poll(lambda: self.state(id_) in states, f"{states} of job {id_}")


class SlurmContract:
    """Tests of a fixture ``world``."""

    def test_a_job_that_waits_is_queued_has_a_reason_and_is_found(self, world: World) -> None:
        job, name = world.submit()
        assert world.state(job.id) is JobState.QUEUED
        assert "scontrol release" in world.scheduler.reasons([job])[job.id]
        assert world.scheduler.find(name) == job

    def test_a_name_that_begins_like_anothers_is_not_that_other(self, world: World) -> None:
        _, name = world.submit()
        assert world.scheduler.find(name[:-1]) is None
        assert world.scheduler.find(name + "0") is None

    @pytest.mark.parametrize(("code", "expected"), [(0, JobState.DONE), (3, JobState.FAILED)])
    def test_a_job_runs_and_ends_and_is_found_still(
        self, world: World, code: int, expected: JobState
    ) -> None:
        job, name = world.submit()
        world.start(job)
        world.until(job.id, JobState.RUNNING)
        assert world.scheduler.reasons([job]) == {}
        world.end(job, code=code)
        world.until(job.id, expected)
        assert world.scheduler.find(name) == job

    def test_an_array_is_as_lively_as_its_liveliest_task(self, world: World) -> None:
        job, name = world.submit(tasks=3)
        assert world.state(job.id) is JobState.QUEUED
        assert job.id in world.scheduler.reasons([job])
        world.start(job, task=1)
        world.until(f"{job.id}_1", JobState.RUNNING)
        assert world.state(job.id) is JobState.RUNNING
        assert world.scheduler.find(name) == job
        world.end(job, task=1, code=0)
        world.until(f"{job.id}_1", JobState.DONE)
        assert world.state(job.id) is JobState.QUEUED
        world.scheduler.cancel([job])
        world.until(job.id, JobState.FAILED)
        assert world.state(f"{job.id}_1") is JobState.DONE

    def test_a_heterogeneous_job_goes_by_the_id_of_its_first_part(self, world: World) -> None:
        job, _ = world.submit(parts=2)
        assert world.state(job.id) is JobState.QUEUED
        assert world.state(f"{job.id}+1") is JobState.QUEUED
        assert job.id in world.scheduler.reasons([job])
        world.scheduler.cancel([job])
        world.until(job.id, JobState.FAILED)

    def test_a_cancelled_job_is_over_and_may_be_cancelled_again(self, world: World) -> None:
        waiting, _ = world.submit()
        running, _ = world.submit()
        world.start(running)
        world.until(running.id, JobState.RUNNING)
        world.scheduler.cancel([waiting, running])
        world.until(waiting.id, JobState.FAILED)
        world.until(running.id, JobState.FAILED)
        world.scheduler.cancel([waiting, running, JobRef(id=UNKNOWN)])

    def test_what_never_was_is_over_and_not_found(self, world: World) -> None:
        assert world.state(UNKNOWN) is JobState.ENDED
        assert world.scheduler.find(f"contract.{secrets.token_hex(8)}") is None
