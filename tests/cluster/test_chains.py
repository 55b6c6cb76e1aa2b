"""Where jobs may not requeue themselves: all of them are queued at once, each after another."""

from __future__ import annotations

import pytest
from cluster.user import SITE, SLOW, User

pytestmark = pytest.mark.slurm


@pytest.fixture
def chained(user: User) -> User:
    site = user.folder / "site.yaml"
    site.write_text(SITE.read_text().replace("restart: requeue", "restart: chain"))
    return user.with_environment(HPC_LLM_SITE=str(site))


def test_the_next_job_goes_on_and_the_last_finds_nothing_left(chained: User) -> None:
    first = chained.submit(
        chained.job(rows=60, limits={"attempts": 3, "warn_before": "31s"}, engine_options=SLOW)
    )
    chained.until_published()
    jobs = [job["id"] for job in chained.status()["jobs"]]
    assert jobs[0] == first
    assert len(jobs) == 3
    chained.cluster.run("scancel", "--signal=USR1", "--batch", first)
    chained.until("done")
    ends = [chained.ended(job) for job in jobs]
    assert ends == [["FAILED", "75:0"], ["COMPLETED", "0:0"], ["COMPLETED", "0:0"]]
    assert chained.texts() == [str(i) for i in range(60)]
    assert not list((chained.run / "logs").glob(f"{jobs[2]}.s*.log"))


def test_a_failure_ends_the_whole_chain_and_its_reason_is_told(chained: User) -> None:
    last = {"attempts": 2}
    chained.submit(chained.job(limits=last, engine_options={"max_in_flight": 0}))
    jobs = [job["id"] for job in chained.status()["jobs"]]
    assert [chained.ended(job) for job in jobs] == [["FAILED", "7:0"], ["COMPLETED", "0:0"]]
    chained.until("failed")
    [problem] = chained.cli.ask("status", chained.run).json["problems"]
    assert problem["code"] == "engine.options"


def test_a_chain_is_cancelled_whole(chained: User) -> None:
    chained.submit(chained.job(rows=100, limits={"attempts": 2}, engine_options=SLOW))
    chained.until_published()
    jobs = [job["id"] for job in chained.status()["jobs"]]
    assert chained.cli.ask("cancel", chained.run).data["jobs"] == jobs
    chained.until("cancelled")
    assert [chained.shown(job, "JobState") for job in jobs] == ["CANCELLED", "CANCELLED"]
