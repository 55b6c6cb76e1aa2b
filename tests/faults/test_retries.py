"""The pass that answers errors again, killed at any call: nothing of it or of the first is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from faults.fault_scene import Scene, Zygote, kept
from faults.injection import STEADY, disturbed, each, points

from launcher.data.tally import finish
from launcher.report.reading import Reading
from launcher.rundir import RunDir


def overlaid(run: RunDir) -> dict[str, bytes]:
    parts = run.pass_path(1) / "parts"
    return {path.name: path.read_bytes() for path in parts.iterdir()}


@pytest.fixture(scope="module")
def retried(scene: Scene, zygote: Zygote) -> Scene:
    """A finished run whose errors are to be answered again, by an engine that does better."""
    run = scene.fresh()
    assert zygote.start(run).wait() == 0
    plan = json.loads(run.plan_path("0001").read_bytes())
    plan["engine_options"]["fail_rate"] = 0.0
    run.plan_path("0001").write_text(json.dumps(plan))
    failed = [int(n[1:7]) for n, part in sorted(scene.parts.items()) if b'"engine_error"' in part]
    assert len(failed) >= 2
    assert run.create_overlay(failed, ["engine_error"]) == 1
    run.reopen()
    return replace(scene, template=run)


@pytest.fixture(scope="module")
def truth(retried: Scene, zygote: Zygote) -> RunDir:
    run = retried.fresh()
    worker = zygote.start(run, constants=STEADY, job="2")
    assert worker.wait() == 0, worker.text()
    assert {row for _, row in worker.finished()} == kept(run, 1)
    return run


@pytest.mark.parametrize("call", ["link", "unlink", "fsync", "write", "openat"])
def test_a_worker_killed_at_any_call_while_it_repeats_errors_loses_nothing(
    retried: Scene, truth: RunDir, zygotes: list[Zygote], tmp_path: Path, call: str
) -> None:
    rows, lines = kept(truth, 1), [found.line for found in Reading(truth).rows()]

    def crash(zygote: Zygote, point: int) -> bool:
        run, worker = disturbed(retried, zygote, call, f"signal=KILL:when={point}")
        assert worker.wait() in (0, -9), worker.text()
        retried.check_parts(run)
        assert overlaid(truth).items() >= {
            (name, data) for name, data in overlaid(run).items() if not name.startswith(".")
        }
        before = kept(run, 1)
        again = zygote.start(run, constants=STEADY, job="3")
        assert again.wait() == 0, again.text()
        assert sorted(row for _, row in again.finished()) == sorted(rows - before)
        assert overlaid(run) == overlaid(truth)
        assert [found.line for found in Reading(run).rows()] == lines
        assert run.done_path.read_bytes() == truth.done_path.read_bytes()
        assert list((run.pass_path(1) / "wal").iterdir()) == []
        retried.check_parts(run)
        return worker.wait() != 0

    found = points(retried, zygotes[0], call, tmp_path / "strace.log")
    killed = each(zygotes, found, crash)
    assert sum(killed) >= len(killed) / 2


def test_a_straggler_that_ends_the_first_pass_removes_nothing_of_the_next(retried: Scene) -> None:
    """It stood still after it had seen all parts, and the errors are being answered again."""
    run = retried.fresh()
    units = run.overlay(1)["units"]
    log = run.wal_path(units[0], 1, 1)
    log.write_bytes(b"rows of the living")
    scratch = run.part_path(units[1], 1).with_name(f".u{units[1]:06}.jsonl.0123.tmp")
    scratch.write_bytes(b"a part of the living")
    run.wal_path(units[0], 1).write_bytes(b"rows of a worker that died")
    finish(run, ())
    assert log.exists()
    assert scratch.exists()
    assert not run.done_path.exists()
