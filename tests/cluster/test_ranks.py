"""Ranks sit where the plan says, whatever starts them, and nowhere else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_driving import Cli, poll, write_job
from cluster.cluster import Cluster
from cluster.mpis import LAUNCHES, Launch, install

pytestmark = pytest.mark.slurm

Table = dict[int, tuple[str, int, int, str]]
"""By rank: host, tp rank, pp rank, and the id of its own GPU."""

SLOW = {"latency_ms": 500, "max_in_flight": 1}
MPIS = [name for name, launch in LAUNCHES.items() if launch.with_ == "mpirun"]


@pytest.fixture(scope="session", autouse=True)
def mpis(cluster: Cluster) -> None:
    install()


class Bench:
    """One job on the cluster under one way to start ranks."""

    def __init__(self, cluster: Cluster, folder: Path, launch: Launch) -> None:
        home = folder / "home"
        home.mkdir()
        self.cluster = cluster
        self.run = folder / "run"
        self._folder = folder
        self.cli = Cli(home, {"SLURM_CONF": str(cluster.conf), "HPC_LLM_SITE": ""})
        self._site = launch.site(folder)
        self._words: tuple[Path | str, ...] = ()

    def job(self, *, tp: int, pp: int = 1, gpus_per_node: int, rows: int = 8, **more: Any) -> None:
        path = write_job(
            self._folder,
            rows=[{"text": str(i)} for i in range(rows)],
            parallelism={"tp": tp, "pp": pp},
            resources={"gpus_per_node": gpus_per_node, "time": "10m"},
            runtime={"python": sys.executable},
            **more,
        )
        self._words = (path, "--site", self._site)

    def submit(self) -> str:
        done = self.cli.ask("submit", *self._words)
        assert done.code == 0, done.err + done.out
        [submitted] = (self.run / "jobs").glob("*.submitted")
        return submitted.stem

    def render(self, edit: Callable[[str], str] = str) -> Path:
        """The script of a run that is not submitted, after ``edit``."""
        done = self.cli.ask("render", *self._words, "--out", self.run)
        assert done.code == 0, done.err + done.out
        script = self.run / "script.sh"
        script.write_text(edit(script.read_text()))
        return script

    def planned(self) -> dict[str, Any]:
        return self.cli.ask("plan", *self._words).data

    def wait(self) -> None:
        poll((self.run / "DONE").exists, f"DONE in {self.run}")

    def log(self, replica: int = 0) -> str:
        logs = sorted((self.run / "logs").glob(f"*.s{replica}.log"))
        return logs[0].read_text() if logs else ""

    def expected(self, job: str, replica: int = 0) -> Table:
        """Where the plan has each rank, with the nodes and the GPUs that Slurm gave to ``job``."""
        given = allocation(self.cluster, job)
        nodes = list(given)
        return {
            p["rank"]: (
                nodes[p["node"]],
                p["tp_rank"],
                p["pp_rank"],
                given[nodes[p["node"]]][p["gpu"]],
            )
            for p in self.planned()["layout"]["placements"]
            if p["replica"] == replica
        }

    def found(self, replica: int = 0) -> Table:
        """Where each rank says it is, once all have said it."""
        planned = self.planned()
        ranks = planned["step"]["nodes"] * planned["step"]["tasks_per_node"]
        reports = poll(
            lambda: r if len(r := rank_reports(self.log(replica))) >= ranks else None,
            f"{ranks} ranks in the log of replica {replica}",
        )
        assert sorted(r["rank"] for r in reports) == list(range(ranks)), "each rank once"
        local = {
            p["rank"]: p["local_rank"]
            for p in planned["layout"]["placements"]
            if p["replica"] == replica
        }
        return {
            r["rank"]: (
                r["host"],
                r["tp_rank"],
                r["pp_rank"],
                r["gpus"].split(",")[local[r["rank"]]],
            )
            for r in reports
        }


def rank_reports(log: str) -> list[dict[str, Any]]:
    return [json.loads(found) for found in re.findall(r"hpc-llm rank (\{.*?\})", log)]


def allocation(cluster: Cluster, job: str) -> dict[str, list[str]]:
    """The nodes of ``job`` in Slurm's order, and the ids of its GPUs on each."""
    shown = cluster.run("scontrol", "show", "job", "--details", job)
    given: dict[str, list[str]] = {}
    for names, gpus in re.findall(r" Nodes=(\S+) .* GRES=\S*\(IDX:([\d,-]+)\)", shown):
        for node in cluster.run("scontrol", "show", "hostnames", names).split():
            given[node] = list(numbers(gpus))
    return dict(sorted(given.items()))


def numbers(ranges: str) -> Iterator[str]:
    """The numbers of ``0-2,5``."""
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from map(str, range(int(first), int(last or first) + 1))


@pytest.fixture
def bench(
    cluster: Cluster, shared: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Bench]]:
    benches = []

    def make(launch: str) -> Bench:
        benches.append(Bench(cluster, shared, LAUNCHES[launch]))
        return benches[-1]

    yield make
    for used in benches:
        names = {entry.name.split(".")[0] for entry in (used.run / "jobs").glob("[0-9]*")}
        cluster.run("scancel", *names, check=False)


@contextmanager
def batch(cluster: Cluster, *words: str | Path, cwd: Path) -> Iterator[str]:
    """A job by hand, which is cancelled in the end."""
    done = subprocess.run(
        ["sbatch", "--parsable", *map(str, words)],
        env=cluster.environment({k: v for k, v in os.environ.items() if "SLURM" not in k}),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    job = done.stdout.strip()
    try:
        yield job
    finally:
        cluster.run("scancel", job, check=False)


def state(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", job, check=False).strip()


@pytest.mark.parametrize("launch", LAUNCHES)
def test_every_rank_sits_once_where_the_plan_has_it(
    launch: str, bench: Callable[[str], Bench]
) -> None:
    used = bench(launch)
    used.job(tp=2, pp=2, gpus_per_node=2)
    job = used.submit()
    used.wait()
    assert used.found() == used.expected(job)
    assert len({host for host, *_ in used.found().values()}) == 2


@pytest.fixture(scope="module")
def half_held(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node three of whose GPUs belong to another job."""
    words = ("--gres=gpu:3", "--nodes=1", "--time=5", "--output=/dev/null", "--wrap", "sleep 300")
    with batch(cluster, *words, cwd=tmp_path_factory.mktemp("held")) as job:
        poll(lambda: state(cluster, job) == "RUNNING", "the job that holds GPUs")
        [node] = allocation(cluster, job)
        yield node


@pytest.mark.parametrize("launch", LAUNCHES)
def test_on_a_partly_occupied_node_the_ranks_have_the_gpus_of_their_job(
    launch: str, bench: Callable[[str], Bench], half_held: str, cluster: Cluster
) -> None:
    """The nodes of one job then have different GPUs, and no node may take another's list."""
    used = bench(launch)
    used.job(tp=4, pp=2, gpus_per_node=4)
    script = used.render()
    with batch(cluster, f"--nodelist={half_held}", script, cwd=used.run) as job:
        used.wait()
        assert half_held in allocation(cluster, job)
        assert used.found() == used.expected(job)
    for report in rank_reports(used.log()):
        assert report["gpus"].split(",") == allocation(cluster, job)[report["host"]]


@pytest.mark.parametrize("launch", ["srun-pmix", *MPIS])
def test_replicas_on_one_node_run_at_the_same_time(
    launch: str, bench: Callable[[str], Bench]
) -> None:
    used = bench(launch)
    used.job(tp=4, gpus_per_node=8, replicas=2, rows=400, engine_options=SLOW)
    job = used.submit()
    for replica in (0, 1):
        poll(lambda r=replica: "is ready" in used.log(r), f"replica {replica} at work")
        assert used.found(replica) == used.expected(job, replica)
    assert not list((used.run / "jobs").glob("*.s[01].*")), "neither has ended"
    assert not {gpu for *_, gpu in used.found(0).values()} & {g for *_, g in used.found(1).values()}


@pytest.mark.parametrize(
    ("old", "new", "code", "says"),
    [
        ("--ntasks=4", "--ntasks=3", "run.world-mismatch", "one of 3, and the plan has 4 ranks"),
        (
            "--distribution=block:block",
            "--distribution=cyclic",
            "run.placement-mismatch",
            r"rank 1 is number 0 on node\d+, and the plan has it as number 1 of its node",
        ),
        (
            "--ntasks-per-node=2",
            "--ntasks-per-node=1",
            "run.world-mismatch",
            "",
        ),
    ],
)
def test_a_step_unlike_the_plan_stops_and_says_how(
    old: str,
    new: str,
    code: str,
    says: str,
    bench: Callable[[str], Bench],
    cluster: Cluster,
) -> None:
    used = bench("srun-pmix")
    used.job(tp=2, pp=2, gpus_per_node=2, rows=400, engine_options=SLOW)

    def edit(text: str) -> str:
        head, step = text.split("start_step()")
        assert old in step
        return "start_step()".join((head, step.replace(old, new)))

    with batch(cluster, used.render(edit), cwd=used.run) as job:
        poll(lambda: state(cluster, job) == "RUNNING", "the start")
        started = time.monotonic()
        poll(lambda: state(cluster, job) != "RUNNING", "the end")
        print(time.monotonic() - started, state(cluster, job))
    print(used.log())
    for f in (used.run / "jobs").iterdir():
        print(f.name, f.read_text())
    print(used.cli("status", used.run))
    raise AssertionError


@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_script_run_by_hand_in_an_allocation_places_its_ranks_too(
    launch: str, bench: Callable[[str], Bench], cluster: Cluster
) -> None:
    used = bench(launch)
    used.job(tp=2, pp=2, gpus_per_node=2)
    script = used.render()
    done = subprocess.run(
        ["salloc", "-N2", "--ntasks-per-node=2", "--gres=gpu:2", "-t2", "bash", str(script)],
        env=cluster.environment({k: v for k, v in os.environ.items() if "SLURM" not in k}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + used.log()
    print(done.stderr, used.log())
    job = next((used.run / "jobs").glob("*.s0.done")).name.split(".")[0]
    assert used.found() == used.expected(job)
