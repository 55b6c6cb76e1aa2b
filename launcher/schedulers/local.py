"""The machine at hand as a scheduler: the same script, in a session of its own.

Ctrl-C in the terminal that submitted never reaches it, and any process can ask after it or
end it, because it is known by pid, start time and boot id.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.local.local import LocalExecutor, LocalJob

from launcher.errors import Problem, SchedulerError
from launcher.process import ProcessIds
from launcher.schedulers.base import JobRef, JobState, clean_environment

__all__ = ["LocalScheduler"]

KILL_AFTER_S = 15.0


class _ScriptExecutor(LocalExecutor):  # type: ignore[misc] # submitit exports it untyped
    """Starts a finished script instead of a pickled function: nothing of submitit runs in it."""

    def start(self, script: Path, job: str) -> tuple[LocalJob[Any], int]:
        """The job handle and the process id of ``script``, started in a session of its own."""
        environ = clean_environment(os.environ) | {"HPC_LLM_LOCAL_JOB": job}
        with (script.parent / "logs" / f"{job}.log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        return LocalJob(folder=self.folder, job_id=job, process=process), process.pid


class LocalScheduler:
    """Runs scripts on this machine, at once."""

    poll_s = 0.5

    def __init__(self) -> None:
        # Kept so that the child is reaped while this process waits for it.
        self._jobs: list[LocalJob[Any]] = []

    def submit(self, script: Path, name: str, *, after: JobRef | None = None) -> JobRef:  # noqa: ARG002 - processes have no names, and nothing here makes chains
        job = f"local-{int(time.time())}-{secrets.token_hex(3)}"
        try:
            started, pid = _ScriptExecutor(folder=script.parent / "logs").start(script, job)
        except OSError as exc:
            problem = Problem("local.start", f"cannot start {script}: {exc}")
            raise SchedulerError(problem) from exc
        self._jobs.append(started)
        return JobRef(id=job, process=ProcessIds.of(pid))

    def find(self, name: str) -> JobRef | None:  # noqa: ARG002 - as in `submit`
        return None

    def reasons(self, jobs: Sequence[JobRef]) -> Mapping[str, str]:  # noqa: ARG002 - none wait
        return {}

    def expected_start(self, options: Sequence[tuple[str, str | None]]) -> str | None:  # noqa: ARG002 - it has no queue
        return None

    def states(self, jobs: Sequence[JobRef]) -> Mapping[str, JobState]:
        for own in self._jobs:
            own.done()
        return {job.id: _state(job) for job in jobs}

    def cancel(self, jobs: Sequence[JobRef]) -> None:
        """SIGTERM to the whole session, SIGKILL to what is left of it after a while.

        Raises
        ------
        SchedulerError
            ``local.elsewhere`` for a job of another host, which no signal reaches.
        """
        if hosts := {job.process.host for job in jobs if job.process and job.process.elsewhere()}:
            message = f"the job runs on {', '.join(sorted(hosts))}, and no signal gets there"
            raise SchedulerError(Problem("local.elsewhere", message, hint="cancel it there"))
        self._signal(jobs, signal.SIGTERM)
        deadline = time.monotonic() + KILL_AFTER_S
        while time.monotonic() < deadline:
            if not any(state is JobState.RUNNING for state in self.states(jobs).values()):
                return
            time.sleep(0.1)
        self._signal(jobs, signal.SIGKILL)

    def _signal(self, jobs: Sequence[JobRef], number: signal.Signals) -> None:
        for job in jobs:
            if job.process is not None and _state(job) is JobState.RUNNING:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.process.pid, number)


def _state(job: JobRef) -> JobState:
    if job.process is None:
        return JobState.LOST
    if job.process.elsewhere():
        return JobState.LOST
    # Killed alone, the script leaves its steps behind: they still work and can be ended.
    return JobState.ENDED if job.process.session_gone() else JobState.RUNNING
