"""Ranks sit where the plan says, whatever starts them, and nowhere else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_driving import Cli, started, write_job
from cluster.cluster import Cluster
from cluster.mpis import LAUNCHES, Launch, install

pytestmark = pytest.mark.slurm

Given = Mapping[str, Sequence[str]]
"""The nodes of a job in Slurm's order, and the ids of its GPUs on each."""

Table = dict[int, tuple[str, int, int, str]]
"""By rank: host, tp rank, pp rank, and the id of its own GPU."""

MakeBench = Callable[[str], "Bench"]

ONE_BY_ONE = {"latency_ms": 500, "max_in_flight": 1}
MPIS = [name for name, launch in LAUNCHES.items() if launch.with_ == "mpirun"]
# A busy cluster makes jobs wait; a job that got its nodes is at work in seconds.
QUEUE_S, WORK_S = 90.0, 90.0


@pytest.fixture(scope="module", autouse=True)
def mpis(cluster: Cluster) -> None:
    install()


class Bench:
    """One job on the cluster under one way to start ranks."""

    def __init__(self, cluster: Cluster, folder: Path, launch: Launch) -> None:
        home = folder / "home"
        home.mkdir()
        self.cluster = cluster
        self.run = folder / "run"
        self.cli = Cli(home, {"SLURM_CONF": str(cluster.conf)})
        self._folder = folder
        self._site = launch.site(folder)
        self._words: tuple[Path | str, ...] = ()

    def job(self, *, tp: int, pp: int = 1, gpus_per_node: int, rows: int = 4, **more: Any) -> None:
        path = write_job(
            self._folder,
            rows=[{"text": str(i)} for i in range(rows)],
            parallelism={"tp": tp, "pp": pp},
            resources={"gpus_per_node": gpus_per_node, "time": "10m"},
            engine_options=ONE_BY_ONE,
            **{"runtime": {"python": sys.executable}, **more},
        )
        self._words = (path, "--site", self._site)

    def submit(self) -> str:
        done = self.cli.ask("submit", *self._words)
        assert done.code == 0, done.out + done.err
        [submitted] = (self.run / "jobs").glob("*.submitted")
        return submitted.stem

    def render(self) -> Path:
        """The script of a run that is not submitted."""
        done = self.cli.ask("render", *self._words, "--out", self.run)
        assert done.code == 0, done.out + done.err
        return self.run / "script.sh"

    def stop(self) -> None:
        """Leave nothing on the cluster, neither a job nor the next start of one."""
        if (self.run / "control").is_dir():
            (self.run / "control/STOP").touch()
        names = {entry.name.partition(".")[0] for entry in (self.run / "jobs").glob("*.*")}
        for job in filter(str.isdigit, names):
            self.cluster.run("scancel", job, check=False)

    def planned(self, replica: int) -> list[dict[str, Any]]:
        placements = self.cli.ask("plan", *self._words).data["layout"]["placements"]
        return [p for p in placements if p["replica"] == replica]

    def log(self, replica: int = 0) -> str:
        return "".join(
            log.read_text() for log in sorted((self.run / "logs").glob(f"*.s{replica}.log"))
        )

    def wait(self) -> None:
        until((self.run / "DONE").exists, f"DONE in {self.run}")

    def check(self, given: Given, replica: int = 0) -> Table:
        """Where each rank says it is, which has to be where the plan has it in ``given``."""
        planned = {p["rank"]: p for p in self.planned(replica)}
        until(lambda: len(rank_reports(self.log(replica))) >= len(planned), "all ranks in the log")
        nodes = list(given)
        expected = {
            rank: (node := nodes[p["node"]], p["tp_rank"], p["pp_rank"], given[node][p["gpu"]])
            for rank, p in planned.items()
        }
        reports = rank_reports(self.log(replica))
        assert len(reports) == len(planned), "each rank once"
        found = {
            r["rank"]: (
                r["host"],
                r["tp_rank"],
                r["pp_rank"],
                r["gpus"].split(",")[planned[r["rank"]]["local_rank"]],
            )
            for r in reports
        }
        assert found == expected
        return found


def until(true: Callable[[], Any], what: str, limit_s: float = WORK_S) -> Any:
    """What ``true`` gives as soon as it is true."""
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"not in {limit_s:g} s: {what}"
        time.sleep(0.1)
    return found


def rank_reports(log: str) -> list[dict[str, Any]]:
    return [json.loads(found) for found in re.findall(r"hpc-llm rank (\{.*?\})", log)]


def given_to(cluster: Cluster, job: str) -> Given:
    """What ``job`` has, as soon as it has it; Slurm forgets the ids when a job ends."""
    show = ("scontrol", "show", "job", "--details", job)
    return until(lambda: read_details(cluster, cluster.run(*show)), f"start of {job}", QUEUE_S)  # type: ignore[no-any-return]


def read_details(cluster: Cluster, shown: str) -> Given:
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


def outside(cluster: Cluster) -> dict[str, str]:
    """The environment of somebody who is in no job."""
    return cluster.environment({k: v for k, v in os.environ.items() if "SLURM" not in k})


@contextmanager
def batch(cluster: Cluster, *words: str | Path, cwd: Path) -> Iterator[str]:
    """A job by hand, which is cancelled in the end."""
    command = ("sbatch", "--parsable", *map(str, words))
    job = subprocess.check_output(command, env=outside(cluster), cwd=cwd, text=True).strip()
    try:
        yield job
    finally:
        cluster.run("scancel", job, check=False)


def state(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", job, check=False).strip()


@pytest.fixture
def bench(cluster: Cluster, shared: Path) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(launch: str) -> Bench:
        made.append(Bench(cluster, shared, LAUNCHES[launch]))
        return made[-1]

    yield make
    for used in made:
        used.stop()


@pytest.mark.parametrize("launch", LAUNCHES)
def test_every_rank_sits_once_where_the_plan_has_it(
    launch: str, bench: MakeBench, cluster: Cluster
) -> None:
    used = bench(launch)
    used.job(tp=2, pp=2, gpus_per_node=2)
    given = given_to(cluster, used.submit())
    used.wait()
    table = used.check(given)
    hosts = [table[rank][0] for rank in range(4)]
    assert hosts[0] == hosts[1] != hosts[2] == hosts[3]


@pytest.mark.parametrize("launch", LAUNCHES)
def test_mpi_starts_in_the_ranks_and_joins_them(
    launch: str, bench: MakeBench, shared: Path
) -> None:
    """A rank number in the environment is not all that an engine's MPI needs."""
    used = bench(launch)
    used.job(tp=2, pp=2, gpus_per_node=2, runtime={"python": str(LAUNCHES[launch].python(shared))})
    job = used.submit()
    until(lambda: state(used.cluster, job) not in ("PENDING", ""), "the start", QUEUE_S)
    used.wait()
    assert sorted(re.findall(r"mpi (\d) of 4", used.log())) == ["0", "1", "2", "3"]


@pytest.fixture(scope="module")
def half_held(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node three of whose GPUs belong to another job."""
    size = ("--gres=gpu:3", "--nodes=1", "--mem=100", "--time=10")
    words = (*size, "--output=/dev/null", "--wrap", "exec sleep 600")
    with batch(cluster, *words, cwd=tmp_path_factory.mktemp("held")) as job:
        [node] = given_to(cluster, job)
        yield node


@pytest.mark.parametrize("launch", ["srun-pmix", *MPIS])
def test_on_a_partly_occupied_node_the_ranks_have_the_gpus_of_their_job(
    launch: str, bench: MakeBench, half_held: str, cluster: Cluster
) -> None:
    """The nodes of one job then have different GPUs, and no node may take another's list."""
    used = bench(launch)
    used.job(tp=4, pp=2, gpus_per_node=4)
    script = used.render()
    # Without --mem a job takes all of a node's, and shares no node.
    with batch(cluster, f"--nodelist={half_held}", "--mem=500", script, cwd=used.run) as job:
        given = given_to(cluster, job)
        used.wait()
        used.check(given)
    assert len(given) == 2
    assert given[half_held] != ["0", "1", "2", "3"]
    for report in rank_reports(used.log()):
        assert report["gpus"].split(",") == given[report["host"]]


@pytest.mark.parametrize("launch", ["srun-pmix", *MPIS])
def test_replicas_on_one_node_run_at_the_same_time(
    launch: str, bench: MakeBench, cluster: Cluster
) -> None:
    used = bench(launch)
    used.job(tp=4, gpus_per_node=8, replicas=2, rows=400)
    given = given_to(cluster, used.submit())
    for replica in (0, 1):
        until(lambda r=replica: "is ready" in used.log(r), f"replica {replica} at work")  # type: ignore[misc]
    first, second = (used.check(given, replica) for replica in (0, 1))
    assert not list((used.run / "jobs").glob("*.s[01].*")), "neither has ended"
    assert {gpu for *_, gpu in first.values()}.isdisjoint(gpu for *_, gpu in second.values())


STEPS_UNLIKE_THE_PLAN = {
    "too few ranks": (
        "srun-pmix",
        {"    --ntasks=4": "    --ntasks=3"},
        "run.world-mismatch",
        r"rank \d on node0\d is one of 3, and the plan has 4 ranks",
    ),
    "too few ranks by mpirun": (
        "openmpi4",
        {"    -np \\\n    4 ": "    -np \\\n    3 "},
        "run.world-mismatch",
        r"rank \d on node0\d is one of 3, and the plan has 4 ranks",
    ),
    "ranks dealt out like cards": (
        "srun-pmix",
        {"=block:block": "=cyclic"},
        "run.placement-mismatch",
        r"rank (1 is number 0|2 is number 1) on node0\d, and the plan has it as number [01] of its",
    ),
    "all ranks on one node": (
        "srun-pmix",
        {"    --nodes=2": "    --nodes=1", "--ntasks-per-node=2": "--ntasks-per-node=4"},
        "run.placement-mismatch",
        r"rank ([23]) is number \1 on node0\d, and the plan has it as number [01] of its node",
    ),
}


@pytest.mark.parametrize(
    ("launch", "edits", "code", "says"),
    STEPS_UNLIKE_THE_PLAN.values(),
    ids=STEPS_UNLIKE_THE_PLAN,
)
def test_a_step_unlike_the_plan_stops_and_says_how(
    launch: str,
    edits: dict[str, str],
    code: str,
    says: str,
    bench: MakeBench,
    cluster: Cluster,
) -> None:
    used = bench(launch)
    used.job(tp=2, pp=2, gpus_per_node=2, rows=400)
    script = used.render()
    text = script.read_text()
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    script.write_text(text)
    with batch(cluster, script, cwd=used.run) as job:
        given_to(cluster, job)
        outcomes = used.run / "jobs"
        until(lambda: state(cluster, job) not in ("RUNNING", "COMPLETING"), "the end")
        used.stop()
    assert f"error[{code}]: rank " in used.log()
    assert re.search(says, used.log())
    problems = [
        problem["code"]
        for ended in outcomes.glob("[0-9]*.s0.*")
        for problem in json.loads(ended.read_text())["problems"]
    ]
    assert problems == [code]
    assert not list(outcomes.glob("[0-9]*.done"))


@pytest.mark.parametrize("launch", ["srun-pmix", *MPIS])
def test_a_script_run_by_hand_in_an_allocation_places_its_ranks_too(
    launch: str, bench: MakeBench, cluster: Cluster
) -> None:
    used = bench(launch)
    used.job(tp=2, pp=2, gpus_per_node=2)
    script = used.render()
    size = ("--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", "--time=2")
    # This machine's own name is 127.0.0.1 to the nodes, where Hydra would look for its mpiexec.
    environ = outside(cluster) | {"HYDRA_IFACE": "hlslbr0"}
    with started(
        ["salloc", *size, "bash", "-c", f"scontrol show job -d $SLURM_JOB_ID; bash {script}"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        shown, _ = process.communicate(timeout=QUEUE_S)
    assert process.returncode == 0, shown + used.log()
    assert (used.run / "DONE").exists()
    used.check(read_details(cluster, shown))
