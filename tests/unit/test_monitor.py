"""What is said of a run, from files and a scheduler that says what a test tells it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from run_making import json_lines, make_identity, make_run

from launcher.errors import Problem, SchedulerError
from launcher.monitor import RunStatus, failure, status, wait
from launcher.plan import grid
from launcher.rundir import RunDir
from launcher.schedulers.base import JobRef, JobState

Answer = Mapping[str, JobState] | SchedulerError
ROW = {
    "id": None,
    "row": [0, 0],
    "status": "ok",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


@dataclass
class ToldScheduler:
    """Gives the answers it was told, the last one again and again."""

    answers: list[Answer]
    poll_s: float = 0.0
    asked: int = 0

    def submit(self, script: Path, name: str, *, after: JobRef | None = None) -> JobRef:
        raise NotImplementedError

    def find(self, name: str) -> JobRef | None:
        raise NotImplementedError

    def reasons(self, jobs: Sequence[JobRef]) -> Mapping[str, str]:
        return {job.id: "it waits" for job in jobs}

    def states(self, jobs: Sequence[JobRef]) -> Mapping[str, JobState]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, SchedulerError):
            raise answer
        return answer

    def cancel(self, jobs: Sequence[JobRef]) -> None:
        raise NotImplementedError


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", make_identity(tmp_path, json_lines([{"text": "a"}])))


def submitted(run: RunDir, job: str, *, at: float) -> None:
    entry = {"id": job, "process": None, "submitted": at}
    (run.path / "jobs" / f"{job}.submitted").write_text(json.dumps(entry))


def registered(run: RunDir, job: str, *, at: float, restart: int = 0) -> None:
    entry = {"job": job, "restart": restart, "plan": "0001", "started": at, "process": None}
    (run.path / "jobs" / f"{job}.{restart}.json").write_text(json.dumps(entry))


def ended(run: RunDir, job: str, outcome: str, *codes: str, restart: int = 0) -> None:
    problems = [Problem(code, "as told").to_json() for code in codes]
    path = run.outcome_path(job, restart, 0, outcome)
    path.write_text(json.dumps({"replica": 0, "problems": problems}))


def publish_all(run: RunDir) -> None:
    for unit in grid.units(run.identity().grid):
        run.part_path(unit).write_text(json.dumps(ROW) + "\n" if unit == 0 else "")
    run.done_path.write_text("{}")


def codes(found: RunStatus) -> list[str]:
    failed = failure(found)
    return [problem.code for problem in failed.problems] if failed else []


def told(*answers: Answer) -> ToldScheduler:
    return ToldScheduler(list(answers))


def test_a_job_that_died_before_its_first_line_is_not_judged_by_the_one_before(
    run: RunDir,
) -> None:
    submitted(run, "1", at=1.0)
    registered(run, "1", at=2.0)
    ended(run, "1", "resumable")
    assert status(run, told({"1": JobState.FAILED})).state == "stopped"
    submitted(run, "2", at=3.0)
    found = status(run, told({"1": JobState.FAILED, "2": JobState.FAILED}))
    assert found.state == "failed"
    assert codes(found) == ["run.died"]


def test_a_run_is_judged_by_the_newest_start_of_its_newest_job(run: RunDir) -> None:
    submitted(run, "1", at=1.0)
    registered(run, "1", at=99.0)  # a node whose clock is ahead
    ended(run, "1", "failed", "engine.died")
    submitted(run, "2", at=3.0)
    registered(run, "2", at=4.0)
    ended(run, "2", "failed", "gpu.too-few")
    registered(run, "2", at=5.0, restart=1)
    ended(run, "2", "resumable", restart=1)
    found = status(run, told({"1": JobState.FAILED, "2": JobState.FAILED}))
    assert found.state == "stopped"
    assert codes(found) == ["run.stopped"]


def test_a_scheduler_that_does_not_answer_for_a_while_ends_no_waiting(run: RunDir) -> None:
    submitted(run, "1", at=1.0)
    registered(run, "1", at=2.0)
    ended(run, "1", "failed", "engine.died")
    busy = SchedulerError(Problem("slurm.timeout", "no answer"), transient=True)
    scheduler = told({"1": JobState.RUNNING}, busy, busy, {"1": JobState.FAILED})
    seen: list[str] = []
    assert wait(run, scheduler, lambda found: seen.append(found.state)).state == "failed"
    assert seen == ["running", "failed"]


def test_a_scheduler_that_refuses_ends_the_waiting(run: RunDir) -> None:
    submitted(run, "1", at=1.0)
    with pytest.raises(SchedulerError):
        wait(run, told(SchedulerError(Problem("slurm.absent", "gone"))), lambda _: None)


class DoneMeanwhile(dict[str, JobState]):
    """States whose run gets done while they are looked at."""

    def __init__(self, run: RunDir, states: Mapping[str, JobState]) -> None:
        super().__init__(states)
        self._run = run

    def values(self) -> Any:
        publish_all(self._run)
        return super().values()


def test_a_run_is_done_only_with_all_of_its_rows_counted(run: RunDir) -> None:
    submitted(run, "1", at=1.0)
    found = status(run, told(DoneMeanwhile(run, {"1": JobState.RUNNING})))
    assert (found.state, found.ended) == ("running", False)
    found = status(run, told({"1": JobState.RUNNING}))
    assert (found.state, found.rows_ok, found.units_done) == ("done", 1, found.units_total)


def test_a_job_that_never_began_points_at_what_its_nodes_see(run: RunDir) -> None:
    submitted(run, "11", at=1.0)
    failed = failure(status(run, told({"11": JobState.FAILED})))
    assert failed is not None
    [problem] = failed.problems
    assert "job 11 was over before the first line" in problem.message
    assert str(run.path) in (problem.hint or "")
