"""What earlier runs are believed of, and what not."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from run_making import json_lines, make_identity, make_plan, make_run

from launcher.earlier import LEAST_MINUTES, LEAST_ROWS, lengths_of, newest, pace_of
from launcher.plan.types import Cut, Plan, RunIdentity
from launcher.rundir import RunDir
from launcher.telemetry.metrics import Beat, WorkerLog

PART = {"overlay": 0, "unit": 0, "error": 0}

WORKED = {
    "plan": "0001",
    "steady_minutes": 9,
    "steady_tokens_per_s": 5,
    "time": 1,
    "start_s": 1,
    "rows": 99,
    "prompt_tokens": 1,
    "completion_tokens": 1,
}


def identity(folder: Path) -> RunIdentity:
    return make_identity(folder / "input", json_lines([{"text": "a"}]))


def work(
    run: RunDir,
    worker: str = "a",
    *,
    minutes: int = 5,
    tokens_s: float = 100,
    rows: int = 100,
    start_s: int = 40,
    killed: bool = False,
) -> None:
    """A worker that answers ``rows`` evenly after a start."""
    now = 0.0
    log = WorkerLog(run.path / "metrics", worker, plan="0001", clock=lambda: now)
    for at_s in range(0, start_s, 5):
        now = at_s
        log.beat(Beat(replica=0, phase="starting"))
    for at_s in range(0, minutes * 60 + 5, 5):
        now = start_s + at_s
        done = at_s / (minutes * 60)
        made, answered = int(tokens_s * at_s), int(rows * done)
        log.beat(
            Beat(
                replica=0,
                phase="running",
                rows=answered,
                prompt_tokens=10 * answered,
                completion_tokens=made,
            )
        )
    last = (run.path / "metrics" / f"{worker}.now").read_bytes()
    log.close(answer_p95_s=7)
    if killed:  # no line at the end, and the beat stays
        (run.path / "metrics" / f"{worker}.jsonl").unlink()
        (run.path / "metrics" / f"{worker}.now").write_bytes(last)


def ran(folder: Path, *, plan: Plan | None = None, **worked: Any) -> RunDir:
    run = make_run(folder, identity(folder), plans={"0001": plan or make_plan()})
    work(run, **worked)
    return run


def test_the_pace_is_the_median_of_the_last_workers(tmp_path: Path) -> None:
    run = ran(tmp_path / "r")
    work(run, "b", tokens_s=300)
    work(run, "c", tokens_s=120, start_s=60)
    found = pace_of(make_plan(), identity(tmp_path), [run])
    assert found is not None
    assert found.tokens_s == pytest.approx(120, rel=0.01)
    assert (found.run, found.workers, found.answer_s) == (str(run.path), 3, 7)
    assert found.start_s == 40
    assert found.prompt_tokens == pytest.approx(10)
    assert found.new_tokens == pytest.approx((100 + 300 + 120) * 305 / 300, rel=0.05)


def test_a_killed_worker_counts_by_its_last_beat(tmp_path: Path) -> None:
    run = ran(tmp_path / "r", killed=True)
    found = pace_of(make_plan(), identity(tmp_path), [run])
    assert found is not None
    assert found.tokens_s == pytest.approx(100)


@pytest.mark.parametrize(
    "worked",
    [
        {"minutes": LEAST_MINUTES - 1},
        {"rows": LEAST_ROWS - 1},
        {"tokens_s": 0},
        {"minutes": LEAST_MINUTES - 1, "killed": True},
    ],
)
def test_a_worker_that_was_too_short_is_not_believed(
    tmp_path: Path, worked: Mapping[str, Any]
) -> None:
    run = ran(tmp_path / "r", **worked)
    assert pace_of(make_plan(), identity(tmp_path), [run]) is None


@pytest.mark.parametrize(
    "other",
    [
        make_plan(site="elsewhere"),
        make_plan(engine="vllm"),
        make_plan(engine_options={"max_num_seqs": 8}),
        make_plan(directives=(("--partition", "other"),)),
        make_plan(layout=dataclasses.replace(make_plan().layout, cut=Cut(tp=2))),
    ],
    ids=["site", "engine", "options", "partition", "cut"],
)
def test_a_run_of_another_kind_is_not_asked(tmp_path: Path, other: Plan) -> None:
    run = ran(tmp_path / "r", plan=other)
    assert pace_of(make_plan(), identity(tmp_path), [run]) is None
    assert pace_of(other, identity(tmp_path), [run]) is not None


def test_a_model_is_the_same_by_its_content_or_else_by_its_name(tmp_path: Path) -> None:
    run = ran(tmp_path / "r")
    own = identity(tmp_path)
    renamed = dataclasses.replace(own, model=dataclasses.replace(own.model, name="other"))
    assert pace_of(make_plan(), renamed, [run]) is None
    assert lengths_of(renamed, [run]) is None


@pytest.mark.parametrize(
    "line",
    [
        '{"worked": 7}',
        '{"worked": {"plan": "0001", "steady_minutes": "9", "steady_tokens_per_s": 1e9}}',
        '{"worked": {"plan": "../../0001", "steady_minutes": 9, "rows": 99}}',
        '{"worked": {"plan": ["0001"], "steady_minutes": 9, "rows": 99}}',
        json.dumps({"worked": {**WORKED, "steady_tokens_per_s": math.nan}}),
        json.dumps({"worked": {**WORKED, "rows": 10**400}}),
        json.dumps({"worked": {**WORKED, "time": 1e12}}),
        json.dumps({**PART, "ok": 10**400, "prompt_tokens": 1, "completion_tokens": 1}),
        "{torn",
        "\x00",
    ],
)
def test_lines_that_no_worker_writes_tell_nothing(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path / "r", identity(tmp_path / "r"))
    (run.path / "metrics" / "a.jsonl").write_text(f"{line}\n")
    assert pace_of(make_plan(), identity(tmp_path), [run]) is None
    assert lengths_of(identity(tmp_path), [run]) is None


def test_a_damaged_run_is_passed_over(tmp_path: Path) -> None:
    damaged = ran(tmp_path / "damaged")
    damaged.plan_path("0001").write_text("{")
    whole = ran(tmp_path / "whole")
    found = pace_of(make_plan(), identity(tmp_path), [damaged, whole])
    assert found is not None
    assert found.run == str(whole.path)
    damaged.identity_path.write_text("[]")
    assert lengths_of(identity(tmp_path), [damaged]) is None


def noted(run: RunDir, rows: int) -> None:
    part = {**PART, "ok": rows, "prompt_tokens": 30 * rows, "completion_tokens": 12 * rows}
    (run.path / "metrics" / "w.jsonl").write_text(json.dumps(part) + "\n")


def test_answers_are_as_long_as_those_of_the_newest_run_that_asked_alike(tmp_path: Path) -> None:
    own = identity(tmp_path)
    few, many = (make_run(tmp_path / name, own) for name in ("few", "many"))
    noted(few, LEAST_ROWS - 1)
    noted(many, LEAST_ROWS)
    found = lengths_of(own, [few, many])
    assert found is not None
    assert (found.run, found.rows, found.new_tokens) == (str(many.path), LEAST_ROWS, 12)
    assert (found.prompt_tokens, found.same_input) == (30, True)
    elsewhere = lengths_of(identity(tmp_path / "other"), [few, many])
    assert elsewhere is not None
    assert not elsewhere.same_input
    asked = dataclasses.replace(own.sampling, max_tokens=own.sampling.max_tokens + 1)
    assert lengths_of(dataclasses.replace(own, sampling=asked), [few, many]) is None


def test_the_newest_runs_come_first_and_those_that_are_gone_not_at_all(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, identity(tmp_path / name)) for name in ("a", "b", "c")]
    for age, run in enumerate(runs):
        os.utime(run.identity_path, (1000 - age, 1000 - age))
    runs[1].identity_path.unlink()
    assert newest([runs[2], runs[1], runs[0]]) == [runs[0], runs[2]]
    with runs[2].identity_path.open("ab") as file:
        file.truncate(60_000_000)  # a manifest of very many files
    os.utime(runs[2].identity_path, (10, 10))
    assert newest(runs) == [runs[0]]
