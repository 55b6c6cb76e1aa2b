"""Disks that are full, read-only or know no hard links, and listings that lag behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.fault_scene import (
    QUICK,
    Scene,
    Worker,
    Zygote,
    kept,
    make_scene,
    traced,
    worker_environ,
)
from faults.injection import CALM, STEADY, disturbed, each, points, strace_options

from launcher.rundir import RunDir

# From one call on, or just once: the errors of a disk that is full, of a quota, and of NFS,
# which may say so only when the file is closed.
FULL = [
    ("write", "ENOSPC", "+"),
    ("write", "EDQUOT", ""),
    ("fsync", "ENOSPC", "+"),
    ("fdatasync", "EDQUOT", "+"),
    ("link", "ENOSPC", "+"),
    ("link", "EDQUOT", ""),
    ("rename", "ENOSPC", "+"),
    ("openat", "ENOSPC", ""),
    ("openat", "EDQUOT", ""),
    ("close", "EDQUOT", ""),
]


def outcomes(run: RunDir) -> set[str]:
    return {path.suffix[1:] for path in (run.path / "jobs").iterdir() if path.suffix != ".tmp"}


def finish(scene: Scene, zygote: Zygote, run: RunDir) -> Worker:
    """Let another worker go on, which redoes nothing that was kept."""
    before = kept(run)
    again = zygote.start(run, constants=STEADY, job="2")
    assert again.wait() == 0, again.text()
    scene.check_done(run)
    assert sorted(row for _, row in again.finished()) == sorted(scene.rows - before)
    return again


@pytest.mark.parametrize(("call", "error", "on"), FULL)
def test_a_full_disk_at_any_call_stops_a_worker_resumably_and_loses_nothing(
    scene: Scene, zygotes: list[Zygote], tmp_path: Path, call: str, error: str, on: str
) -> None:
    def fill(zygote: Zygote, point: int) -> int:
        run, worker = disturbed(scene, zygote, call, f"error={error}:when={point}{on}")
        code = worker.wait()
        assert code in (0, 75), (point, worker.text())
        assert outcomes(run) <= {"done" if code == 0 else "resumable"}
        assert run.done_path.exists() or code == 75
        scene.check_parts(run)
        assert not list(run.path.rglob("*.tmp")), (point, worker.text())
        finish(scene, zygote, run)
        return code

    found = points(scene, zygotes[0], call, tmp_path / "strace.log")
    codes = each(zygotes, found, fill)
    assert 75 in codes


@pytest.mark.parametrize("call", ["write", "fsync", "link", "openat", "close"])
def test_a_broken_disk_is_a_failure_and_what_is_out_stays_right(
    scene: Scene, zygotes: list[Zygote], tmp_path: Path, call: str
) -> None:
    def broken(zygote: Zygote, point: int) -> int:
        run, worker = disturbed(scene, zygote, call, f"error=EIO:when={point}")
        code = worker.wait()
        assert code in (0, 7), (point, worker.text())
        scene.check_parts(run)
        finish(scene, zygote, run)
        return code

    found = points(scene, zygotes[0], call, tmp_path / "strace.log")
    assert 7 in each(zygotes, found, broken)


@pytest.mark.parametrize("place", ["metrics", "workers"])
def test_a_full_disk_stops_no_work_where_a_worker_only_tells_of_itself(
    scene: Scene, zygotes: list[Zygote], tmp_path: Path, place: str
) -> None:
    log = tmp_path / "strace.log"
    found = points(scene, zygotes[0], "write", log, below=place, constants=CALM)
    # The first one to workers says that there is a worker at all.
    tried = range(found[0] + 1 if place == "workers" else 1, found[-1] + 2)

    def fill(zygote: Zygote, point: int) -> bool:
        """Whether it was a file there that was struck; a part and the next lease may swap."""
        told = tmp_path / f"{point}"
        how = f"error=ENOSPC:when={point}"
        run, worker = disturbed(scene, zygote, "write", how, constants=CALM, log=told)
        code = worker.wait()
        if not re.search(rf"/{place}/.*\(INJECTED\)", told.read_text()):
            return False
        assert code == 0, (point, worker.text())
        scene.check_done(run)
        return True

    assert sum(each(zygotes, tried, fill)) >= len(found) // 2


@pytest.mark.parametrize("error", ["EPERM", "EMLINK", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_hard_links_does(scene: Scene, zygote: Zygote, error: str) -> None:
    run, worker = disturbed(scene, zygote, "link", f"error={error}")
    assert worker.wait() == 0, worker.text()
    scene.check_done(run)
    assert len(worker.finished()) == len(scene.rows)


def test_several_workers_share_a_file_system_without_hard_links(
    scene: Scene, zygote: Zygote
) -> None:
    run = scene.fresh()
    workers = [zygote.start(run, job=str(n), hold=True) for n in range(3)]
    _without_links(workers)
    assert {w.wait() for w in workers} <= {0, 75}
    finish(scene, zygote, run)


def _without_links(workers: list[Worker]) -> None:
    if workers:
        inject = ("-e", "inject=?link,linkat:error=EPERM")
        with traced(workers[0], *strace_options("link", links=True), *inject):
            _without_links(workers[1:])
            workers[0].wait()


def test_listings_that_lag_behind_cost_neither_rows_nor_files(scene: Scene, zygote: Zygote) -> None:
    """A worker left with all parts out, and the next one does not see them for a while."""
    run = scene.fresh()
    assert zygote.start(run).wait() == 0
    run.done_path.unlink()
    leases = len(list((run.path / "leases").iterdir()))
    again = zygote.start(run, job="2", stale_listings=30)
    assert again.wait() == 0, again.text()
    scene.check_done(run)
    assert again.finished() == []
    assert len(list((run.path / "leases").iterdir())) <= leases + len(scene.parts)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Zygote, Path]]:
    """Workers who alone see a disk of 1 MB; and where this process finds it."""
    folder = tmp_path_factory.mktemp("small")
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("a disk of one's own needs root and unshare(1)")
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(folder)]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a disk of one's own cannot be mounted: {tried.stderr.strip()}")
    zygote = Zygote(tmp_path_factory.mktemp("zygote"), prefix)
    zygote.ask({})  # it is up, and so is the disk
    yield zygote, folder
    zygote.close()


@pytest.fixture(scope="module")
def long_scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Rows enough to fill some blocks of a disk."""
    folder = tmp_path_factory.mktemp("long")
    return make_scene(folder, units=3, rows_per_unit=80, latency_ms=1, max_in_flight=8)


@pytest.mark.parametrize("free_kib", [0, 4, 8, 12, 16, 20, 24, 32, 40, 56, 88])
def test_on_a_small_disk_a_run_ends_once_there_is_room(
    long_scene: Scene, small_disk: tuple[Zygote, Path], free_kib: int
) -> None:
    zygote, folder = small_disk
    outside = Path(f"/proc/{zygote.process.pid}/root{folder}")
    run = long_scene.fresh(outside / f"run-{free_kib}")
    inside = RunDir(folder / run.path.name)
    ballast = _fill(outside, free_kib * 1024)
    try:
        worker = zygote.start(inside, constants=QUICK)
        code = worker.wait()
    finally:
        ballast.unlink()
    assert code == 75 or (code == 0 and free_kib > 60), worker.text()
    assert ("no-space" in worker.text()) == (code == 75)
    assert "Traceback" not in worker.text()
    long_scene.check_parts(run)
    before = kept(run)
    again = zygote.start(inside, constants=QUICK, job="2")
    assert again.wait() == 0, again.text()
    long_scene.check_done(run)
    assert sorted(row for _, row in again.finished()) == sorted(long_scene.rows - before)
    shutil.rmtree(run.path)


def _fill(disk: Path, free_bytes: int) -> Path:
    """Leave ``free_bytes`` of the disk."""
    ballast = disk / "ballast"
    state = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - free_bytes)
    return ballast


def test_a_read_only_run_directory_is_a_failure_with_its_reason(
    scene: Scene, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a read-only mount needs root")
    run = scene.fresh(tmp_path / "run")
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(run.path)]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"it cannot be mounted read-only: {tried.stderr.strip()}")
    for command in (["launcher.runner"], ["launcher.runner.rank"]):
        done = subprocess.run(
            [*prefix, sys.executable, "-m", *command, *ARGUMENTS],
            capture_output=True,
            text=True,
            check=False,
            env=worker_environ(),
        )
        assert "Read-only file system" in done.stdout + done.stderr
        assert done.returncode == 7, done.stderr
    assert outcomes(run) == set()


ARGUMENTS = ("--plan", "0001", "--replica", "0", "--job", "1", "--restart", "0")


@pytest.mark.parametrize("module", ["launcher.runner", "launcher.runner.rank"])
def test_a_log_that_cannot_be_written_changes_no_exit_code(scene: Scene, module: str) -> None:
    """Python ends with 120 where it cannot flush its standard output at the end."""
    run = scene.fresh()
    command = [sys.executable, "-m", module, *ARGUMENTS]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=full, cwd=run.path, env=worker_environ(), check=False
        )
    assert done.returncode == 0
    assert outcomes(run) == {"done"}
    scene.check_done(run)


def test_a_wrapper_that_cannot_write_says_so_in_its_outcome(scene: Scene) -> None:
    run = scene.fresh()
    shutil.rmtree(run.path / "control", ignore_errors=True)
    (run.path / "control").touch()  # where the preflight wants to leave its word
    command = [sys.executable, "-m", "launcher.runner.rank", *ARGUMENTS]
    done = subprocess.run(command, cwd=run.path, env=worker_environ(), check=False)
    assert done.returncode == 7
    details = json.loads((run.path / "jobs" / "1.0.s0.failed").read_bytes())
    assert [problem["code"] for problem in details["problems"]] == ["run.io"]


def test_an_outcome_names_the_full_disk(scene: Scene, zygote: Zygote, tmp_path: Path) -> None:
    log = tmp_path / "strace.log"
    found = points(scene, zygote, "write", log, below="parts", constants=CALM)
    how = f"error=EDQUOT:when={found[0]}"
    run, worker = disturbed(scene, zygote, "write", how, constants=CALM)
    assert worker.wait() == 75
    details = json.loads((run.path / "jobs" / "1.0.s0.resumable").read_bytes())
    assert [problem["code"] for problem in details["problems"]] == ["output.no-space"]
