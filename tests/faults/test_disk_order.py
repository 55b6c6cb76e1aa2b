"""What a crash of the whole machine can lose: the order in which files and names are on disk."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from faults.disk_order import TRACED, Call, calls, violations
from faults.fault_scene import (
    QUICK,
    Scene,
    Worker,
    Zygote,
    kept,
    make_scene,
    needs_strace,
    traced,
)

from launcher.rundir import RunDir

FLUSHED = QUICK | {"launcher.runner.dispatch:SYNC_S": 0.0}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    needs_strace()
    return make_scene(tmp_path_factory.mktemp("scene"), units=4, rows_per_unit=6)


def half_done(scene: Scene, zygote: Zygote, *, job: str = "0") -> RunDir:
    """A run whose worker was killed with a part out and rows of another unit in its log."""
    run = scene.fresh()
    worker = zygote.start(run, job=job, constants=FLUSHED)
    while not (list((run.path / "parts").glob("u*")) and any(_logs(run))):
        assert worker.reap(block=False) is None, "it was too fast"
    worker.send(signal.SIGKILL)
    worker.reap(block=True)
    return run


def _logs(run: RunDir) -> Iterator[Path]:
    return (p for p in (run.path / "wal").glob("*.wal") if p.stat().st_size)


def log_of(run: RunDir, worker: Worker, path: Path) -> list[str]:
    with traced(worker, "-y", "-s", "400", "-e", TRACED, log=path):
        assert worker.wait() == 0, worker.text()
    return path.read_text().splitlines()


def read(lines: list[str], run: RunDir) -> list[Call]:
    return list(calls(lines, PurePosixPath(run.path)))


@pytest.fixture(scope="module")
def undisturbed(
    scene: Scene, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDir, list[str]]:
    """A worker that flushes, publishes and says so, and the log of its calls."""
    run = scene.fresh()
    worker = zygote.start(run, constants=FLUSHED, hold=True)
    return run, log_of(run, worker, tmp_path_factory.mktemp("log") / "strace")


@pytest.fixture(scope="module")
def steady(
    scene: Scene, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDir, list[str]]:
    """The same by one thread: each unit is published before the next."""
    run = scene.fresh()
    worker = zygote.start(run, constants=FLUSHED, hold=True, inline=True)
    return run, log_of(run, worker, tmp_path_factory.mktemp("log") / "strace")


@pytest.fixture(scope="module")
def adopting(
    scene: Scene, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDir, list[str]]:
    """The same of one that takes over what a killed one left."""
    run = half_done(scene, zygote)
    before = kept(run)
    worker = zygote.start(run, constants=FLUSHED, hold=True, job="2")
    lines = log_of(run, worker, tmp_path_factory.mktemp("log") / "strace")
    assert len(worker.finished()) == len(scene.rows - before) < len(scene.rows)
    return run, lines


@pytest.mark.parametrize("kind", ["undisturbed", "adopting"])
def test_no_name_is_on_disk_before_its_content_nor_said_to_be_there_before_it_is(
    request: pytest.FixtureRequest, kind: str
) -> None:
    run, lines = request.getfixturevalue(kind)
    found = read(lines, run)
    named = {c.paths[1].as_posix() for c in found if c.name == "link" and c.ok}
    assert named >= {"DONE", "jobs/2.0.s0.done" if kind == "adopting" else "jobs/1.0.s0.done"}
    assert sum(c.name == "fdatasync" for c in found) >= 1
    assert sum(c.name == "unlink" and c.paths[0].suffix == ".wal" for c in found) >= 1
    assert violations(found) == []


Spoil = Callable[[list[Call]], list[Call]]


def without(name: str, path: str) -> Spoil:
    """The log of a worker that leaves such calls out."""

    def spoilt(found: list[Call]) -> list[Call]:
        left = [c for c in found if not _is(c, name, path)]
        assert left != found
        return left

    return spoilt


def late(name: str, path: str, after: str, its_path: str) -> Spoil:
    """The log of a worker that makes the first such call only after that other one."""

    def spoilt(found: list[Call]) -> list[Call]:
        first = next(c for c in found if _is(c, name, path))
        there = next(i for i, c in enumerate(found) if _is(c, after, its_path))
        assert first.began < found[there].began
        rest = [*found[: there + 1], first, *found[there + 1 :]]
        rest.remove(first)
        # New places in the log, as the checker goes by them.
        return [Call(**{**vars(c), "began": n, "ended": n}) for n, c in enumerate(rest)]

    return spoilt


def _is(call: Call, name: str, path: str) -> bool:
    return (
        call.name == name and call.ok and re.fullmatch(path, call.paths[-1].as_posix()) is not None
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("fsync", r"parts/\.u000001.*"), "named before its content"),
        (without("fsync", r"\.DONE.*"), "DONE was named before its content"),
        (without("fsync", r"jobs/\..*"), "named before its content"),
        (without("fsync", "jobs"), "told of before"),
        (without("fsync", r"\."), "DONE was told of before"),
        (without("fsync", "wal"), "never on disk"),
        (without("fsync", "leases"), "was begun before"),
        (late("fsync", r"parts/\.u000001.*", "link", r"parts/u000001\.jsonl"), "named before"),
        (late("fsync", r"parts", "unlink", r"wal/u.*"), "removed before"),
        (late("fsync", r"parts", "write", r"metrics/.*\.jsonl"), "told of before"),
        (late("link", r"parts/u000001.*", "unlink", r"wal/u000001.*"), "removed before"),
    ],
)
def test_a_log_in_which_one_call_is_missing_or_late_is_found_out(
    steady: tuple[RunDir, list[str]], spoil: Spoil, said: str
) -> None:
    run, lines = steady
    assert violations(read(lines, run)) == []
    assert any(said in text for text in violations(spoil(read(lines, run))))


def test_calls_that_another_thread_interrupts_are_put_together() -> None:
    lines = [
        '7 link("/r/parts/.a.tmp", "/r/parts/a" <unfinished ...>',
        "8 fsync(5</r/parts>) = 0",
        "7 <... link resumed>) = 0",
        '8 write(6</elsewhere>, "x", 1) = 1',
        '9 unlink("/r/wal/u000000.g1.wal") = -1 ENOENT (No such file or directory)',
    ]
    found = list(calls(lines, PurePosixPath("/r")))
    assert [(c.name, c.began, c.ended, c.ok) for c in found] == [
        ("fsync", 1, 1, True),
        ("link", 0, 2, True),
        ("unlink", 4, 4, False),
    ]
    assert found[2].error == "ENOENT"
