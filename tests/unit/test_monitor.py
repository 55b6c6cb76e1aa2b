"""What is said of a run, from files and a scheduler that says what a test tells it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from run_making import json_lines, make_identity, make_run

from launcher.cli.follow import status_answer, status_line
from launcher.errors import Problem, SchedulerError
from launcher.monitor import KILLED_AT_ONCE, RunStatus, failure, status, wait
from launcher.plan import grid
from launcher.plan.types import UnitGrid
from launcher.resources import templates
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

    def expected_start(self, options: Sequence[tuple[str, str | None]]) -> str | None:
        raise NotImplementedError

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


# --- how far it is --------------------------------------------------------------------------

ROWS, UNITS = 40, 10


@pytest.fixture
def long_run(tmp_path: Path) -> RunDir:
    """Ten units of four rows each, of one job that runs."""
    data = json_lines([{"text": f"row-{n:04}"} for n in range(ROWS)])
    size = len(data) // UNITS
    cut = UnitGrid(total_bytes=len(data), unit_bytes=size, head_units=UNITS, tail_bytes=size)
    run = make_run(tmp_path / "long", make_identity(tmp_path, data, grid=cut))
    submitted(run, "1", at=1.0)
    return run


def now(run: RunDir, state: JobState = JobState.RUNNING) -> RunStatus:
    return status(run, told({"1": state}))


def publish(run: RunDir, unit: int, *, tokens: int, worker: str = "w0") -> None:
    """A part of four rows with ``tokens`` new ones each, noted by ``worker``."""
    run.part_path(unit).write_text(json.dumps(ROW) + "\n")
    counts = {"ok": 3, "error": 1, "prompt_tokens": 4, "completion_tokens": 4 * tokens}
    with (run.path / "metrics" / f"{worker}.jsonl").open("a") as noted:
        noted.write(json.dumps({"unit": unit, "overlay": 0, **counts}) + "\n")


def stands(run: RunDir, replica: int, **told: Any) -> None:
    """Let a worker have said how it stands, as one of an older version may."""
    entry = {"replica": replica, "phase": "running", "rows": 0, "in_flight": 0}
    entry |= {"prompt_tokens": 0, "completion_tokens": 0, "tokens_per_s": 0.0}
    entry |= {"time": time.time(), "running_since": time.time() - 5}
    (run.path / "metrics" / f"w{replica}.now").write_text(json.dumps(entry | told))


def test_time_left_is_that_of_the_tokens_ahead(long_run: RunDir) -> None:
    publish(long_run, 0, tokens=50)
    publish(long_run, 1, tokens=150)
    stands(long_run, 0, rows=10, tokens_per_s=300.0)  # two answered in units that are open
    found = now(long_run)
    assert (found.rows_open, found.rows_left) == (2, 30)
    assert found.left_s == pytest.approx(30 * 100 / 300)
    assert "about 10s left" in status_line(found)
    assert (found.to_json()["rows_left"], found.to_json()["left_s"]) == (30, found.left_s)


def test_live_workers_add_up_each_at_its_ten_minutes_once_it_has_two(long_run: RunDir) -> None:
    publish(long_run, 0, tokens=100)
    long = {"tokens_per_s_10m": 250.0, "rate_covers_s": 130.0}
    stands(long_run, 0, rows=4, tokens_per_s=1000.0, **long)
    stands(long_run, 1, tokens_per_s=50.0, tokens_per_s_10m=700.0, rate_covers_s=90.0)
    stands(long_run, 2, tokens_per_s=9e9, time=time.time() - 60)  # it was killed
    assert now(long_run).left_s == pytest.approx(36 * 100 / 300)


def test_nothing_is_said_of_the_end_before_anything_is_known(long_run: RunDir) -> None:
    assert (now(long_run).left_s, now(long_run).rows_left) == (None, None)
    stands(long_run, 0, phase="starting")
    assert now(long_run).left_s is None
    stands(long_run, 0, rows=3, completion_tokens=90, tokens_per_s=30.0)
    assert now(long_run).left_s is None  # how many rows a unit has is not known
    publish(long_run, 0, tokens=0)  # none but errors: the answers of open units tell
    assert now(long_run).left_s == pytest.approx(36 * 30 / 30)
    stands(long_run, 0, rows=3, completion_tokens=90)  # it stands still
    assert (now(long_run).left_s, now(long_run).rows_left) == (None, 36)
    assert "left" not in status_line(now(long_run))


def test_what_is_in_flight_is_left_whatever_the_others_were_like(long_run: RunDir) -> None:
    for unit in range(UNITS - 1):
        publish(long_run, unit, tokens=100)
    stands(long_run, 0, rows=36 + 8, in_flight=3, tokens_per_s=30.0)
    found = now(long_run)
    assert found.rows_left == 3
    assert found.left_s == pytest.approx(10)


def test_units_without_rows_say_nothing_of_the_others(long_run: RunDir) -> None:
    stands(long_run, 0, rows=3, completion_tokens=90, tokens_per_s=30.0)
    long_run.part_path(0).write_text("")
    empty = dict.fromkeys(("ok", "error", "prompt_tokens", "completion_tokens"), 0)
    noted = long_run.path / "metrics" / "w0.jsonl"
    noted.write_text(json.dumps({"unit": 0, "overlay": 0, **empty}) + "\n")
    assert now(long_run).left_s is None


def test_input_that_tells_its_rows_needs_no_part_first(long_run: RunDir) -> None:
    identity = json.loads(long_run.identity_path.read_text())
    identity["inputs"][0]["rows"] = ROWS
    long_run.identity_path.write_text(json.dumps(identity))
    stands(long_run, 0, rows=4, completion_tokens=80, tokens_per_s=36.0)
    assert now(long_run).left_s == pytest.approx(36 * 20 / 36)


def test_one_replica_is_told_in_a_line(long_run: RunDir) -> None:
    stands(long_run, 0, rows=5, in_flight=3, queued=1, kv_cache_usage=0.5, tokens_per_s=12.0)
    text = status_answer(now(long_run), ended=False).text
    assert "replica 0: running, 5 rows, 3 in flight, 1 queued, KV cache 50%, 12 tokens/s" in text


def test_several_replicas_are_a_table_with_all_of_them_below(long_run: RunDir) -> None:
    more = {"queued": 4, "kv_cache_usage": 0.75, "tokens_per_s_10m": 90.0, "rate_covers_s": 500.0}
    stands(long_run, 10, rows=7, in_flight=20, tokens_per_s=100.0, host="node10", **more)
    stands(long_run, 2, phase="starting")
    answer = status_answer(now(long_run), ended=False)
    lines = [line.split() for line in answer.text.splitlines()[-4:]]
    assert lines[1] == ["2", "starting", "0", "0", "-", "0/-", "-", "0"]
    assert lines[2] == ["10", "node10", "running", "7", "100", "90", "20/4", "75%", "0"]
    assert lines[3][:5] == ["all", "1", "starting,", "1", "running"]
    assert lines[3][5:] == ["7", "100", "90", "20/4", "75%", "0"]
    starts = {
        line.index(word)
        for line, word in zip(
            answer.text.splitlines()[-4:], ("in flight", "0/-", "20/4", "20/4"), strict=True
        )
    }
    assert len(starts) == 1
    assert (answer.data["in_flight"], answer.data["queued"]) == (20, 4)
    assert (answer.data["kv_cache_usage"], answer.data["tokens_per_s_10m"]) == (0.75, 90.0)
    assert "100 tokens/s (90 over 10 minutes)" in answer.text


def test_of_very_many_replicas_the_rest_are_counted(long_run: RunDir) -> None:
    for replica in range(33):
        stands(long_run, replica, rows=1)
    lines = status_answer(now(long_run), ended=False).text.splitlines()
    assert lines[-2] == "and 13 more"
    assert lines[-1].split()[:4] == ["all", "33", "running", "33"]
    assert lines[-3].split()[0] == "19"


def test_a_run_whose_jobs_are_over_has_nobody_at_work(long_run: RunDir) -> None:
    publish(long_run, 0, tokens=100)
    stands(long_run, 0, rows=4, tokens_per_s=1000.0)
    found = now(long_run, JobState.FAILED)
    assert (found.workers, found.tokens_per_s, found.left_s) == ((), 0, None)
    assert (found.queued, found.kv_cache_usage) == (None, None)


OOM = "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0."
ABORTED = "[TensorRT-LLM][ERROR] Assertion failed: hasCapacity (kv.cpp:12)"


def over(run: RunDir, *lines: str, message: str | None = None) -> tuple[str, str]:
    """What is said of a job that has failed, and whose step left these lines."""
    submitted(run, "1", at=1.0)
    registered(run, "1", at=2.0)
    (run.path / "logs/1.s0.log").write_text("\n".join(("hpc-llm: start 0", *lines, "")))
    if message is not None:
        details = {"replica": 0, "problems": [Problem("run.died", message).to_json()]}
        run.outcome_path("1", 0, 0, "died").write_text(json.dumps(details))
    found = failure(status(run, told({"1": JobState.FAILED})))
    assert found is not None
    [problem] = found.problems
    return problem.code, problem.message


def test_a_step_of_which_no_rank_is_left_is_explained_by_its_launcher(run: RunDir) -> None:
    assert over(run, OOM) == ("run.no-memory", f"replica 0: {OOM}")


def test_a_process_that_the_kernel_has_killed_for_memory_was_killed_for_that(run: RunDir) -> None:
    who = "rank 1 on node02: its worker was killed by SIGKILL"
    assert over(run, OOM, message=who) == ("run.no-memory", f"replica 0: {who}: {OOM}")


def test_the_word_of_a_rank_stands_where_the_launcher_knows_no_more(run: RunDir) -> None:
    who = "rank 1 on node02: its worker was killed by SIGKILL"
    line = "srun: error: node02: task 1: Killed"
    assert over(run, line, message=who) == ("run.died", f"replica 0: {who}")


@pytest.mark.parametrize(
    ("lines", "code", "last"),
    [
        (["srun: error: node02: task 1: Killed"], "run.died", "node02: task 1: Killed"),
        ([ABORTED, "srun: error: n: task 1: Killed"], "engine.died", "hasCapacity (kv.cpp:12)"),
        ([ABORTED, OOM], "run.no-memory", OOM),
        ([], "run.died", KILLED_AT_ONCE),
    ],
)
def test_of_a_step_that_was_killed_at_once_the_log_tells_what_it_can(
    lines: list[str], code: str, last: str, run: RunDir
) -> None:
    found, message = over(run, *lines, message=KILLED_AT_ONCE)
    assert found == code
    assert message.startswith(f"replica 0: {KILLED_AT_ONCE}")
    assert message.endswith(last)


def test_the_script_calls_a_step_that_was_killed_at_once_by_that_name() -> None:
    assert f'"message": "{KILLED_AT_ONCE}"' in templates()["partials/body.sh.j2"]
