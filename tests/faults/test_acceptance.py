"""What others' runners are known to fail at, as far as no other test has it.

Elsewhere are: torn logs and kills at any call (test_wal_damage.py, test_crash_points.py), zombies
(test_zombies.py), disks (test_disk_errors.py), bad lines and encodings (tests/unit/test_rows.py),
bad prompts (tests/unit/test_prompts.py), changed inputs and foreign run directories
(tests/run/test_local_run.py). Equal prompts, equal ids and rows that fail are in every scene here.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from faults.fault_scene import Scene, Zygote, kept, make_scene, worker_environ
from run_making import json_lines, make_identity, make_plan, make_run

from launcher.data.tally import tally
from launcher.plan import grid
from launcher.report.merge import Format, merge
from launcher.rundir import RunDir
from launcher.telemetry.metrics import read_parts


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder, units=6, rows_per_unit=8, latency_ms=10, max_in_flight=3)


@pytest.mark.parametrize("content", [b"", b"{", b'{"ok": 1}'])
def test_a_torn_mark_of_the_end_does_not_make_a_run_complete(
    scene: Scene, zygote: Zygote, content: bytes
) -> None:
    """DONE decides nothing: parts do."""
    run = scene.fresh()
    run.done_path.write_bytes(content)
    worker = zygote.start(run)
    assert worker.wait() == 0, worker.text()
    scene.check_parts(run)
    assert kept(run) == scene.rows


def test_counts_survive_a_torn_line_to_which_more_was_appended(
    scene: Scene, zygote: Zygote
) -> None:
    run = scene.fresh()
    assert zygote.start(run).wait() == 0
    counted = tally(run, read_parts(run.path / "metrics"))
    (notes,) = (run.path / "metrics").glob("*.jsonl")
    first, *rest = notes.read_bytes().splitlines(keepends=True)
    for length in range(len(first)):
        notes.write_bytes(first[:length] + b"".join(rest))
        assert tally(run, read_parts(run.path / "metrics")) == counted


@pytest.mark.parametrize(("first", "then"), [(1, 3), (3, 1)])
def test_another_number_of_replicas_goes_on(
    scene: Scene, zygote: Zygote, first: int, then: int
) -> None:
    run = scene.fresh()
    workers = [zygote.start(run, job=f"a{n}") for n in range(first)]
    while len(kept(run)) < len(scene.rows) // 3:
        time.sleep(0.002)
    for worker in workers:
        worker.send(signal.SIGKILL)
        worker.reap(block=True)
    before = kept(run)
    again = [zygote.start(run, job=f"b{n}") for n in range(then)]
    assert [worker.wait() for worker in again] == [0] * then
    scene.check_done(run, kills=first)
    redone = Counter(row for worker in again for _, row in worker.finished())
    assert redone == Counter(scene.rows - before)


def test_error_rows_are_answers_and_no_start_repeats_them(scene: Scene, zygote: Zygote) -> None:
    run = scene.fresh()
    assert zygote.start(run).wait() == 0
    assert any(b'"status":"error"' in part for part in scene.parts.values())
    again = zygote.start(run, job="2")
    assert again.wait() == 0
    assert again.finished() == []


def test_an_engine_that_dies_again_and_again_gets_through(scene: Scene, zygote: Zygote) -> None:
    """Each start answers some rows more: the rows of an open unit are not answered in vain."""
    run = scene.fresh()
    plan = json.loads(run.plan_path("0001").read_bytes())
    plan["engine_options"]["die_after"] = 5
    run.plan_path("0001").write_text(json.dumps(plan))
    finished: list[tuple[int, int, int]] = []
    for start in range(len(scene.rows)):
        worker = zygote.start(run, job=str(start))
        code = worker.wait()
        assert code in (0, 7), worker.text()
        finished += [row for _, row in worker.finished()]
        if code == 0:
            break
    scene.check_done(run)
    assert sorted(finished) == sorted(scene.rows)


def test_a_line_of_50_mb_is_a_row_like_any_other(zygote: Zygote, tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b " * 25_000_000}, {"text": "c"}]
    identity = make_identity(tmp_path, json_lines(rows))
    run = make_run(tmp_path / "run", identity)
    worker = zygote.start(run)
    assert worker.wait() == 0, worker.text()
    done = json.loads(run.done_path.read_bytes())
    assert (done["ok"], done["error"]) == (3, 0)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = [_peak_bytes(tmp_path / str(rows), rows) for rows in (3_000, 40_000)]
    assert peaks[1] - peaks[0] < 24 * 1024**2
    assert peaks[1] < 200 * 1024**2


def _peak_bytes(folder: Path, rows: int) -> int:
    data = b"".join(b'{"text": "row %d"}\n' % n for n in range(rows))
    run = make_run(folder / "run", make_identity(folder, data), plans={"0001": make_plan()})
    zygote = Zygote(folder / "zygote")
    try:
        worker = zygote.start(run)
        assert worker.wait() == 0, worker.text()
        assert len(run.published_units()) == grid.count(run.identity().grid)
    finally:
        zygote.close()
    return worker.peak_bytes


@pytest.mark.parametrize("form", ["jsonl", "openai"])
def test_merging_that_is_killed_leaves_the_old_file_and_the_next_one_removes_its_rests(
    scene: Scene, zygote: Zygote, tmp_path: Path, form: Format
) -> None:
    run = scene.fresh()
    assert zygote.start(run).wait() == 0
    target = tmp_path / "out" / "merged.jsonl"
    target.parent.mkdir()
    merge(run, target, form)
    good = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    for delay_s in (0.0, 0.002, 0.005, 0.009):
        _killed_merge(run, target, form, delay_s)
        whole = {p.name: p.read_bytes() for p in target.parent.iterdir() if p.name in good}
        assert whole == good
    merge(run, target, form)
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == good


def _killed_merge(run: RunDir, target: Path, form: str, delay_s: float) -> None:
    again = "import sys; from pathlib import Path; from launcher.rundir import RunDir\n"
    again += "from launcher.report.merge import merge; print(flush=True)\n"
    again += "while True: merge(RunDir(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])"
    command = [sys.executable, "-c", again, str(run.path), str(target), form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=worker_environ()) as merging:
        assert merging.stdout is not None
        merging.stdout.readline()
        time.sleep(delay_s)
        merging.kill()
    assert merging.returncode == -signal.SIGKILL
