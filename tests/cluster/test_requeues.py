"""What is done twice when a job of several replicas is requeued while it works: next to nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cli_driving import poll
from cluster.cluster import Cluster
from cluster.user import User, somebody
from vllm_standin import Noted, journal, python_path, write_checkpoint

from launcher.data.wal import finished
from launcher.rundir import RunDir
from launcher.telemetry.metrics import read_parts

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

ROWS = 6000
# So many that not all are between two units when they leave.
REPLICAS = 3
# What one engine answers at once, in a second: the rows are a minute of work, and what was
# answered in the last half second is no more than what is in flight.
WINDOW = 33
# So short are the answers that four times as many are handed over, the rest to queue there.
IN_FLIGHT = 4 * WINDOW
ROW_S = 1.0


@dataclass(frozen=True)
class Replicas:
    """A run of several replicas in one job, whose engines keep a journal of their rows."""

    user: User

    def submit(self, time: str) -> None:
        self._write_model(latency_s=ROW_S)
        job = self.user.job(
            rows=ROWS,
            engine="vllm",
            model=str(self.user.folder / "model"),
            replicas=REPLICAS,
            resources={"partition": "gpu", "time": time, "gpus_per_node": REPLICAS},
            engine_options={"max_num_seqs": WINDOW},
            # Slurm looks twice a minute who is to be warned before it looks again: one that has
            # a minute, 10 to 40 s after its start, when it is at work for sure. All that is left
            # then is kept for closing: what is in flight is cut off.
            limits={"warn_before": "20s"},
        )
        self.user.submit(job)

    def _write_model(self, latency_s: float) -> None:
        path = str(self.user.folder / "journal")
        write_checkpoint(self.user.folder / "model", journal=path, latency_s=latency_s)

    @property
    def job(self) -> str:
        [job] = self.user.jobs()
        return job

    def journal(self) -> list[Noted]:
        return journal(self.user.folder / "journal")

    def units_by_start(self) -> list[list[int]]:
        """The units whose part the first start published, and those of the second."""
        found: list[list[int]] = [[], []]
        for entry in read_parts(self.user.run / "metrics"):
            found[int(entry["worker"].split(".")[1])].append(entry["unit"])
        return found

    def until_well_under_way(self) -> None:
        """Far more is answered than may be answered twice, and by all replicas."""
        metrics = self.user.run / "metrics"

        def true() -> bool:
            entries = list(read_parts(metrics))
            workers = {entry["worker"] for entry in entries}
            rows = sum(entry["ok"] for entry in entries)
            return len(workers) == REPLICAS and rows > 4 * REPLICAS * WINDOW

        poll(true, f"many parts of every replica in {metrics}")

    def go_on(self) -> FirstStart:
        """What the first start has left; the second one answers the rest of it quickly."""
        poll(lambda: self.user.shown(self.job, "JobState") == "PENDING", "the requeue")
        run = RunDir(self.user.run)
        logged = list(finished(run))
        first = FirstStart(
            journal=self.journal(),
            logged={json.loads(line)["response"]["text"] for _, _, line in logged},
            open={unit for unit, _, _ in logged},
            published=run.published_units(),
        )
        self._write_model(latency_s=0.02)
        # One warning is enough.
        self.user.cluster.run("scontrol", "update", f"JobId={self.job}", "TimeLimit=5")
        self.user.release(self.job)
        self.user.until("done")
        return first

    def check(self, first: FirstStart, *, answered_twice: int) -> None:
        """Everything was done once, but for what ``first`` had in flight."""
        assert self.user.texts() == [str(i) for i in range(ROWS)]
        assert self.user.shown(self.job, "Restarts") == "1"
        assert self.user.ended(self.job) == ["COMPLETED", "0:0"]
        ends = [row[1] for row in self.user.accounted(duplicates=True)]
        assert ends == ["REQUEUED", "COMPLETED"]

        before, after = self.units_by_start()
        assert len(before) == len(set(before))
        # Not all of them: what is cut off while it publishes does not note it.
        assert set(before) <= first.published
        assert sorted(after) == sorted(RunDir(self.user.run).published_units() - first.published)
        assert first.open
        assert first.open <= set(after)

        second = self.journal()[len(first.journal) :]
        asked_again = Counter(noted.text for noted in second if noted.what == "asked")
        assert not first.logged & asked_again.keys()
        assert asked_again.most_common(1)[0][1] == 1
        assert first.of("answered").most_common(1)[0][1] == 1
        assert len(first.of("answered").keys() & asked_again.keys()) <= answered_twice
        in_flight = first.of("asked").keys() - first.of("answered").keys()
        assert len(in_flight) <= REPLICAS * IN_FLIGHT
        assert in_flight <= asked_again.keys()
        assert {noted.pid for noted in second}.isdisjoint(noted.pid for noted in first.journal)


@dataclass(frozen=True)
class FirstStart:
    """What a start that was ended has left.

    Attributes
    ----------
    logged
        The answers in its logs, and in ``open`` the units that they are of.
    """

    journal: list[Noted]
    logged: set[str]
    open: set[int]
    published: set[int]

    def of(self, what: str) -> Counter[str]:
        """How often each row was ``asked`` or ``answered``."""
        return Counter(noted.text for noted in self.journal if noted.what == what)


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: Cluster) -> Iterator[Replicas]:
    """A job of one minute, which is at work while other tests are."""
    folder = cluster.root / "shared" / f"requeues-{os.getpid()}"
    with somebody(cluster, folder) as user:
        found = Replicas(user.with_environment(PYTHONPATH=python_path()))
        found.submit("1m")
        yield found


def test_a_requeue_without_a_warning_does_next_to_nothing_twice(user: User) -> None:
    """As for preemption: the processes have half a minute at most, and no word before."""
    replicas = Replicas(user.with_environment(PYTHONPATH=python_path()))
    replicas.submit("10m")
    replicas.until_well_under_way()
    user.cluster.run("scontrol", "requeue", replicas.job)
    first = replicas.go_on()
    replicas.check(first, answered_twice=REPLICAS * WINDOW)


# Not the first in this file: so the minute passes meanwhile.
def test_replicas_that_are_warned_by_the_time_limit_are_requeued_and_do_no_row_twice(
    limited: Replicas,
) -> None:
    limited.until_well_under_way()
    for replica in range(REPLICAS):
        limited.user.until_file(f"jobs/{limited.job}.0.s{replica}.resumable")
    first = limited.go_on()
    limited.check(first, answered_twice=0)
