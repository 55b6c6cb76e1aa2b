"""What the shipped site files make of a few jobs: a plan, or a refusal that is listed here."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest

from launcher.errors import PlanError
from launcher.plan.types import Plan
from launcher.prepare import prepare
from launcher.resources import builtin
from launcher.sites import load_site, outline
from launcher.spec.site import Detect, SiteSpec

GOLDEN = Path(__file__).parent.parent / "golden"
SITE_FILES = sorted(Path(str(builtin("site_configs"))).glob("*.yaml"))

# A job file below tests/golden/jobs, and what is set in it.
JOBS = {
    "echo": ("packed", "engine=echo", "parallelism={tp: 1}", "replicas=1"),
    "four-of-one": ("packed", "parallelism={tp: 1}"),
    "two-of-two": ("packed", "replicas=2"),
    "four-over-two-nodes": ("over-nodes",),
    "eight-of-a-group": ("over-nodes", "parallelism={tp: 8}"),
}
OVER = "plan.tp-over-fabric"
# By site, or site and partition, the jobs that are refused there and the codes. Nodes of most
# sites have four GPUs, and so refuse a group of eight.
FOUR = {"eight-of-a-group": OVER}
EIGHT: dict[str, str] = {}
TWO = {**FOUR, "four-over-two-nodes": OVER}
ONE = {**TWO, "two-of-two": OVER}
LARGE, QUEUED = "plan.job-too-large", "plan.too-many-jobs"
REFUSED = {
    "delta.gpuA100x8": EIGHT,
    "delta.gpuH200x8": EIGHT,
    "dgx-h100": EIGHT,
    "ferranti": EIGHT,
    "generic": {"four-of-one": "plan.no-gpus", **dict.fromkeys(ONE, f"plan.no-gpus {OVER}")},
    "karolina": EIGHT,
    "kestrel.debug": {**dict.fromkeys(JOBS.keys() - {"echo"}, LARGE), **FOUR},  # two GPUs
    "killarney.h100": EIGHT,
    "killarney.l40s": ONE,
    "local": dict.fromkeys(JOBS.keys() - {"echo"}, "plan.no-gpus"),
    "lonestar6.gpu-a100": ONE,
    "lonestar6.gpu-a100-dev": ONE,
    "lonestar6.gpu-h100": TWO,
    "nibi": EIGHT,
    "roihu.gpularge": {**FOUR, "echo": "plan.job-too-small"},
    "roihu.gpumedium": {**FOUR, "four-over-two-nodes": LARGE},
    "tamia.h200": EIGHT,
    "vista.gh": ONE,
    "vista.gh-dev": {**ONE, "echo": QUEUED, "four-of-one": QUEUED},  # a chain of four is queued
}


pytestmark = pytest.mark.usefixtures("own_home")


@functools.cache
def spec(path: Path) -> SiteSpec:
    return load_site(str(path), "shipped").spec


PLACES = [(path, name) for path in SITE_FILES for name in spec(path).partitions]


def planned(path: Path, partition: str, job: str) -> Plan:
    base, *settings = JOBS[job]
    resources = ("resources.time=10m", f"resources.partition={partition}")
    given = ("runtime={venv: /venvs/llm}", *resources, *settings)
    file = GOLDEN / "jobs" / f"{base}.yaml"
    return prepare(file, site=str(path), settings=given).resolution.plan


def codes(path: Path, partition: str, job: str) -> str | None:
    """Of all errors of the job there; None where it can be planned."""
    try:
        planned(path, partition, job)
    except PlanError as exc:
        return " ".join(sorted({p.code for p in exc.problems if p.severity == "error"}))
    return None


def refused(path: Path, partition: str) -> dict[str, str]:
    return REFUSED.get(f"{path.stem}.{partition}", REFUSED.get(path.stem, FOUR))


def name_of(value: object) -> str:
    return value.stem if isinstance(value, Path) else str(value)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(("path", "partition"), PLACES, ids=name_of)
def test_each_shipped_site_plans_a_job_or_refuses_it_as_listed(
    path: Path, partition: str, job: str
) -> None:
    assert codes(path, partition, job) == refused(path, partition).get(job)


PLANNED = [(*place, job) for place in PLACES for job in JOBS if job not in refused(*place)]


@pytest.mark.parametrize(("path", "partition", "job"), PLANNED, ids=name_of)
def test_a_plan_obeys_its_site(path: Path, partition: str, job: str) -> None:
    plan = planned(path, partition, job)
    there = spec(path).partitions[partition]
    rejected = spec(path).scheduler.reject

    assert {option for option, _ in plan.directives} & set(rejected) == set()
    assert {f"{option}={value}" for option, value in plan.directives} & set(rejected) == set()
    assert there.gpus is None or plan.layout.allocation.gpus_per_node <= there.gpus.per_node
    nodes_of_groups = defaultdict(set)
    for p in plan.layout.placements:
        nodes_of_groups[p.replica, p.pp_rank].add(p.node)
    assert {len(nodes) for nodes in nodes_of_groups.values()} == {1}


def test_the_table_names_only_sites_and_jobs_that_there_are() -> None:
    places = {path.stem for path in SITE_FILES} | {f"{p.stem}.{name}" for p, name in PLACES}

    assert REFUSED.keys() <= places
    assert {job for row in REFUSED.values() for job in row} <= JOBS.keys()


def test_gpus_and_network_of_a_site_are_told_in_one_line() -> None:
    told = {path.stem: outline(spec(path)) for path in SITE_FILES}

    assert told["tamia"] == (
        "h100 x 4, InfiniBand 4 x 200 Gbit/s; h200 x 8, InfiniBand 8 x 200 Gbit/s"
    )
    assert told["juwels-booster"] == "a100 x 4, InfiniBand 4 x 200 Gbit/s"
    assert told["nibi"] == "h100 x 8, Ethernet 200 Gbit/s"
    assert told["perlmutter"] == "a100 x 4, Slingshot 4 x 200 Gbit/s"
    assert told["marenostrum5"] == "h100 x 4"
    assert told["delta"].startswith("a100 x 4, Slingshot 1 port(s); a100 x 8")
    assert told["local"] == "no GPUs stated"


def test_no_two_shipped_sites_claim_the_same_machine() -> None:
    claims = [spec(p).detect for p in SITE_FILES if spec(p).detect != Detect()]
    hosts = {"login1.vista.tacc.utexas.edu", "login2.ls6.tacc.utexas.edu", "login1.example.org"}

    found = {
        host: [c for c in claims if c.hostname and re.search(c.hostname, host)] for host in hosts
    }
    assert {host: len(matching) for host, matching in found.items()} == {
        "login1.vista.tacc.utexas.edu": 1,
        "login2.ls6.tacc.utexas.edu": 1,
        "login1.example.org": 0,
    }
