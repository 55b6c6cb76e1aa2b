"""Workers that are killed, stopped and started at random, until the run is done all the same.

TORTURE_S is how many seconds it goes on (then as many kills as fit), TORTURE_SEED is the seed of
one that failed.
"""

from __future__ import annotations

import random
import secrets
import signal
import time
from dataclasses import dataclass, field

import pytest
from faults.fault_scene import QUICK, Scene, Worker, Zygote, kept, make_scene, number

from launcher.rundir import RunDir

WORKERS = 4
TTL_S = 0.3
# Signals that ask it to leave still kill a worker that has only just started.
ENDS = (0, 75, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1)
HURRIED = QUICK | {
    "launcher.runner.dispatch:FLUSH_S": 0.01,
    "launcher.data.leases:BEAT_S": 0.05,
    "launcher.data.leases:TTL_S": TTL_S,
    "launcher.runner.replica:BEAT_S": 0.1,
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder, units=30, rows_per_unit=10, latency_ms=25, max_in_flight=3)


@dataclass
class Torturer:
    """Keeps workers on a run at work, and disturbs them."""

    run: RunDir
    zygote: Zygote
    chance: random.Random
    links: bool
    kills: int = 0
    stops: int = 0
    jobs: int = 0
    _workers: list[tuple[Worker, str, int]] = field(default_factory=list)
    _stopped: list[tuple[float, Worker]] = field(default_factory=list)

    def step(self) -> None:
        self._wake(time.monotonic())
        self._replace()
        worker, _, _ = self.chance.choice(self._workers)
        draw = self.chance.random()
        if draw < 0.1:
            worker.send(self.chance.choice([signal.SIGTERM, signal.SIGUSR1]))
        elif draw < 0.35 and all(w is not worker for _, w in self._stopped):
            worker.send(signal.SIGSTOP)
            until = time.monotonic() + self.chance.uniform(0.1, 3 * TTL_S)
            self._stopped.append((until, worker))
            self.stops += 1
        else:
            worker.send(signal.SIGKILL)
            self.kills += worker.reap(block=True) == -signal.SIGKILL
        time.sleep(self.chance.expovariate(1 / 0.04))

    def end(self) -> None:
        """Disturb nobody any more, and let a last one see that all is done."""
        self._wake(float("inf"))
        for worker, _, _ in self._workers:
            assert worker.wait() in ENDS, worker.text()
        last = self.zygote.start(self.run, job="last", constants=HURRIED)
        assert last.wait() == 0, last.text()

    def _wake(self, now: float) -> None:
        for until, worker in list(self._stopped):
            if until <= now:
                worker.send(signal.SIGCONT)
                self._stopped.remove((until, worker))

    def _replace(self) -> None:
        """Start one for each that has ended, in the same job or as another."""
        ended = [place for place in self._workers if place[0].reap(block=False) is not None]
        for place in ended:
            worker, job, restart = place
            assert worker.reap(block=False) in ENDS, worker.text()
            self._workers.remove(place)
            self._stopped = [(u, w) for u, w in self._stopped if w is not worker]
            how = self.chance.choice(["requeued", "same", "other"])
            if how == "other":
                self._start(self._new_job(), 0)
            else:
                self._start(job, restart + (how == "requeued"))
        while len(self._workers) < WORKERS:
            self._start(self._new_job(), 0)

    def _new_job(self) -> str:
        self.jobs += 1
        return str(100 + self.jobs)

    def _start(self, job: str, restart: int) -> None:
        worker = self.zygote.start(
            self.run,
            job=job,
            restart=restart,
            constants=HURRIED,
            links=self.links,
            stale_listings=self.chance.choice([0, 0, 3]),
        )
        self._workers.append((worker, job, restart))


def torture(scene: Scene, zygote: Zygote, chance: random.Random, *, links: bool) -> tuple[int, int]:
    """One run, from start to end; how many kills and stops it took."""
    found = Torturer(scene.fresh(), zygote, chance, links)
    while not found.run.done_path.exists():
        known = {path: path.stat().st_ino for path in (found.run.path / "parts").glob("u*")}
        found.step()
        for path, inode in known.items():  # two renames at one moment both leave a whole part
            assert path.stat().st_ino == inode or not links, f"{path} was published twice"
    found.end()
    scene.check_done(found.run, kills=found.kills)
    scene.check_strangers(found.run)
    assert kept(found.run) == scene.rows
    return found.kills, found.stops


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("names", "kills"), [("link", 200), ("rename", 50)])
def test_runs_end_as_if_nothing_had_happened(
    scene: Scene, zygote: Zygote, names: str, kills: int
) -> None:
    seed = int(number("TORTURE_SEED", secrets.randbelow(2**32)))
    print(f"TORTURE_SEED={seed}")
    chance = random.Random(seed)
    until = time.monotonic() + number("TORTURE_S", 0.0) / 2
    killed = stopped = runs = 0
    while killed < kills or time.monotonic() < until:
        more = torture(scene, zygote, chance, links=names == "link")
        killed, stopped, runs = killed + more[0], stopped + more[1], runs + 1
    print(f"{runs} runs, {killed} kills, {stopped} stops")
    assert stopped > kills // 20
