"""The same product on clusters that are set up in other ways."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cli_driving import poll
from cluster.cluster import Cluster
from cluster.user import SLOW, User, check_killed_submission, running, waiting

pytestmark = pytest.mark.slurm


class TestWithoutAccounting:
    """What squeue has forgotten, which takes it seconds here, nobody knows."""

    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls) -> Iterator[Cluster]:
        with running("no-accounting") as found:
            yield found

    def test_runs_stand_as_they_did_once_their_jobs_are_forgotten(self, user: User) -> None:
        stopped = replace(user, folder=user.folder / "stopped")
        [job, other] = [
            own.submit(own.job(rows=40, engine_options=SLOW)) for own in (user, stopped)
        ]
        user.until("running")
        stopped.until_published()
        stopped.cluster.run("scancel", other)
        user.until("done")
        poll(lambda: user.unknown(job) and user.unknown(other), "the end of both jobs")

        run, file = user.run, user.folder / "job.yaml"
        commands = (["status", run], ["logs", run], ["list"], ["results", run], ["submit", file])
        said = [user.cli(*words) for words in commands]
        assert [(done.code, done.err) for done in said] == [(0, "")] * len(said)
        found = user.status()
        assert (found["state"], found["jobs"]) == ("done", [{"id": job, "state": "ended"}])
        assert user.texts() == [str(i) for i in range(40)]

        found = stopped.status()
        assert (found["state"], found["jobs"]) == ("stopped", [{"id": other, "state": "ended"}])
        assert stopped.cli.ask("cancel", stopped.run).data["jobs"] == []
        assert stopped.cli.ask("resume", stopped.run).data["how"] == "submitted"
        stopped.until("done")
        assert stopped.texts() == [str(i) for i in range(40)]

    @pytest.mark.parametrize("ended", [False, True], ids=["live", "over"])
    def test_a_submission_that_was_killed_half_way_is_not_repeated(
        self, user: User, *, ended: bool
    ) -> None:
        check_killed_submission(user, ended=ended)

    def test_a_profile_that_hides_waiting_jobs_lets_no_second_one_start(self, user: User) -> None:
        """What squeue does not show is over here."""
        own, job = waiting(user.with_environment(SQUEUE_STATES="RUNNING"))
        id_ = own.submit(job)
        again = own.cli.ask("submit", job).data
        assert (again["how"], again["job"]) == ("attached", id_)
        assert own.status()["state"] == "queued"


def read_rank(user: User, log: str) -> tuple[str, str, str]:
    """Host and ``gpus`` as a rank reports them, and the numbers of the GPUs that it may open."""
    text = (user.run / "logs" / log).read_text()
    [report] = map(json.loads, re.findall(r"hpc-llm rank (\{.*\})", text))
    # The files have no driver behind them, which is only said to those who may open them.
    opened = re.findall(r"nvidia(\d): No such device or address", text)
    kept_out = re.findall(r"nvidia(\d): Operation not permitted", text)
    assert sorted(opened + kept_out) == list("01234567")
    return report["host"], report["gpus"], ",".join(opened)


class TestDeviceLimits:
    """A step opens the GPUs of its own job only, and counts them from 0."""

    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls) -> Iterator[Cluster]:
        with running("cgroup") as found:
            yield found

    @pytest.fixture
    def python(self, user: User) -> str:
        """An interpreter that tries every GPU of its node first, and null."""
        written = user.folder / "python"
        # One write: what cat says in pieces, srun may put together in another order.
        gpus = f'printf "%s\\n" "$(cat {user.cluster.root}/dev/nvidia* 2>&1)"'
        written.write_text(f'#!/bin/sh\n{gpus}\n: >/dev/null && exec {sys.executable} "$@"\n')
        written.chmod(0o755)
        return str(written)

    def test_packed_replicas_share_the_gpus_of_a_partly_occupied_node(
        self, user: User, python: str
    ) -> None:
        """CUDA_VISIBLE_DEVICES is 0,1 there, whichever GPUs these are."""
        node = user.cluster.profile.nodes[0]
        here = ("sbatch", "--parsable", f"--nodelist={node}", f"--job-name={user.name}")
        size = ("--gres=gpu:3", "--output=/dev/null", "--wrap", "exec sleep 300")
        user.cluster.run(*here, *size)
        job = user.job(
            rows=20,
            replicas=2,
            resources={"partition": "gpu", "time": "10m", "gpus_per_node": 2},
            engine_options=SLOW,
            runtime={"python": python},
        )
        assert user.cli.ask("render", job, "--out", user.run).code == 0
        id_ = user.cluster.run(*here, str(user.run / "script.sh")).strip()
        user.until_ready(id_)
        shown = user.cluster.run("scontrol", "show", "job", "--details", id_)
        assert "(IDX:3-4)" in shown
        user.until("done")
        ranks = [read_rank(user, f"{id_}.s{replica}.log") for replica in (0, 1)]
        assert ranks == [(node, "0", "3,4"), (node, "1", "3,4")]
