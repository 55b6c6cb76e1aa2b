"""What a site says of selection, limits, units and topology, and what a plan makes of it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import PlanError, Problem
from launcher.models.shapes import ModelShape
from launcher.plan.resolve import Facts, Resolution, resolve
from launcher.render.step import step_words
from launcher.spec.rules import read_job, read_site
from launcher.spec.source import parse

GPUS = {"model": "h100", "per_node": 4, "topology": "all-to-all", "request": "--gres=gpu:{n}"}
APPTAINER = {"runtime": "apptainer", "command": "singularity"}
PARTITION = {"nodes": 64, "time_limit": "1d", "cpus": {"count": 96}, "gpus": GPUS}


def resolved(
    job: dict[str, Any] | None = None,
    partition: dict[str, Any] | None = None,
    *,
    shape: ModelShape | None = None,
    gpus: dict[str, Any] | None = None,
    **site: Any,
) -> Resolution:
    """The plan of a job of one node on partition ``gpu``, with what is changed of each file."""
    jobs = {"name": "j", "model": "m", "input": {"path": "i"}, "output": {"path": "o"}}
    described = {**PARTITION, **(partition or {})}
    if gpus is not None:
        described["gpus"] = {**GPUS, **gpus}
    sites = {
        "name": "here",
        "scheduler": {"type": "slurm"},
        "launch": {"with": "srun"},
        "partitions": {"gpu": described},
        **site,
    }
    sizes = {"parallelism": {"tp": 4}, "replicas": 1}
    job_source = parse("job.yaml", yaml.safe_dump({**jobs, **sizes, **(job or {})}))
    site_source = parse("site.yaml", yaml.safe_dump(sites))
    return resolve(
        read_job(job_source),
        read_site(site_source),
        job_source=job_source,
        site_source=site_source,
        facts=Facts(shape=shape),
    )


def options(*args: Any, **kwargs: Any) -> dict[str, str | None]:
    return dict(resolved(*args, **kwargs).plan.directives)


def fault(*args: Any, **kwargs: Any) -> Problem:
    """The one error there is; it is short, and says what to do."""
    with pytest.raises(PlanError) as caught:
        resolved(*args, **kwargs)
    (problem,) = [p for p in caught.value.problems if p.severity == "error"]
    assert problem.hint
    assert problem.where is not None
    assert not problem.message.endswith(".")
    return problem


def warnings(*args: Any, **kwargs: Any) -> list[str]:
    return [w.code for w in resolved(*args, **kwargs).warnings]


def decided(found: Resolution, key: str) -> list[tuple[str, str]]:
    return [(d.value, d.source) for d in found.decisions if d.key == key]


def asking(**resources: Any) -> dict[str, Any]:
    return {"resources": resources}


# Which nodes, in whose name


def test_a_partition_is_asked_for_by_the_name_that_slurm_knows() -> None:
    assert options(partition={"select": {"partition": "boost"}})["--partition"] == "boost"
    found = resolved(partition={"select": {"partition": "none", "constraint": "gpu"}})
    assert "--partition" not in dict(found.plan.directives)
    assert dict(found.plan.directives)["--constraint"] == "gpu"
    assert decided(found, "--partition") == [("not named", "site here: partition gpu")]
    assert decided(found, "resources.constraint") == [("gpu", "site here: partition gpu")]


def test_what_the_job_says_wins_over_the_site() -> None:
    partition = {"select": {"constraint": "gpu", "qos": "regular"}}
    assert options(partition=partition)["--qos"] == "regular"
    found = resolved(asking(constraint="gpu&hbm80g", qos="debug", exclude="n[1-3]"), partition)
    given = dict(found.plan.directives)
    assert (given["--constraint"], given["--qos"]) == ("gpu&hbm80g", "debug")
    assert given["--exclude"] == "n[1-3]"
    assert decided(found, "resources.qos")[0][1].startswith("job.yaml:")


@pytest.mark.parametrize(("given", "asked"), [("m1", "m1_g"), ("m1_g", "m1_g"), ("_g", "_g")])
def test_the_suffix_of_an_account_is_added_where_it_is_missing(given: str, asked: str) -> None:
    partition = {"select": {"account_suffix": "_g"}}
    assert options(asking(account=given), partition)["--account"] == asked
    assert "--account" not in options(partition=partition)


def test_a_job_without_an_account_is_refused_where_one_is_required() -> None:
    scheduler = {"type": "slurm", "account_required": True}
    assert fault(scheduler=scheduler).code == "plan.account-missing"
    assert options(asking(account="a"), scheduler=scheduler)["--account"] == "a"
    local = {"type": "local", "account_required": True}
    job = {"engine": "echo", "parallelism": {"tp": 1}}
    assert resolved(job, scheduler=local, launch={"with": "none"}).plan.scheduler == "local"


def test_a_qos_that_the_site_does_not_list_is_refused_with_the_nearest_name() -> None:
    partition = {"qos": {"debug": {}, "large": {}}, "select": {"qos": "regular"}}
    problem = fault(asking(qos="debgu"), partition)
    assert (problem.code, problem.hint) == ("plan.qos-unknown", "did you mean debug?")
    assert "debug, large, regular" in str(fault(asking(qos="x"), partition).hint)
    assert options(asking(qos="regular"), partition)["--qos"] == "regular"
    assert options(asking(qos="any"))["--qos"] == "any", "a site that lists none"
    allowed = {**asking(qos="x"), "allow": ["unlisted-qos"]}
    assert warnings(allowed, partition) == ["plan.qos-unknown"]


# Options that sites refuse


def test_all_memory_is_asked_for_by_its_size_where_zero_is_refused() -> None:
    refusing = {"type": "slurm", "reject": ["--mem=0"]}
    assert options()["--mem"] == "0"
    assert options(partition={"memory": "450GiB"}, scheduler=refusing)["--mem"] == "460800M"
    found = resolved(partition={"memory": "450GiB"}, scheduler=refusing)
    assert decided(found, "--mem")[0][0] == "460800M"
    assert "--mem" not in options(scheduler=refusing), "nobody knows how much there is"
    nothing = {"type": "slurm", "reject": ["--mem"]}
    found = resolved(partition={"memory": "450GiB"}, scheduler=nothing)
    assert "--mem" not in dict(found.plan.directives)
    assert decided(found, "--mem") == [("left out", "site here: it is rejected there")]


def test_more_options_of_the_job_come_last_and_replace_those_of_the_plan() -> None:
    job = asking(sbatch=["--mail-type=END", "--mem-per-gpu=60G", "--switches=9"])
    partition = {"topology": {"type": "tree", "nodes": 1}}
    found = options({**job, "parallelism": {"tp": 4, "pp": 2}}, partition)
    assert list(found)[-3:] == ["--mail-type", "--mem-per-gpu", "--switches"]
    assert ("--mem" in found, found["--switches"]) == (False, "9")
    said = decided(resolved({**job, "parallelism": {"tp": 4, "pp": 2}}, partition), "--switches")
    assert [value for value, _ in said] == ["9"]


@pytest.mark.parametrize(
    ("job", "partition"),
    [
        ({}, {}),
        ({"parallelism": {"tp": 1}, "replicas": 9}, {"limits": {"jobs_running": 2}}),
        ({"parallelism": {"tp": 4, "pp": 2}}, {"topology": {"type": "tree", "nodes": 4}}),
        (asking(sbatch=["--mem=60G", "--exclusive"]), {"select": {"partition": "boost"}}),
        (asking(account="a", qos="q", exclude="n1"), {"select": {"constraint": "gpu"}}),
        ({"engine": "echo", "parallelism": {"tp": 1}}, {"gpus": None, "cpus": None}),
    ],
)
def test_each_option_of_the_script_is_explained_once_and_in_its_order(
    job: dict[str, Any], partition: dict[str, Any]
) -> None:
    found = resolved(job, partition)
    explained = [(d.key, d.value) for d in found.decisions if d.key.startswith("--")]
    assert explained == [(key, value or "given") for key, value in found.plan.directives]


def test_an_option_has_the_reason_of_what_it_comes_from() -> None:
    job = {**asking(time="4h", account="a", sbatch=["--nice=5"]), "limits": {"warn_before": "9m"}}
    found = resolved(job, {"select": {"partition": "boost"}})
    said = {d.key: d.source for d in found.decisions}
    for option, key in (("--time", "resources.time"), ("--account", "resources.account")):
        assert said[option] == said[key]
    own = ("--job-name", "--time", "--account", "--signal", "--nice")
    assert all(said[option].startswith("job.yaml:") for option in own)
    assert said["--partition"] == "site here: partition gpu"
    assert said["--gres"] == "site here: gpus.request"
    assert said["--no-requeue"] == "site here: scheduler.restart is none"
    assert decided(resolved(), "--signal") == [("B:USR1@300", "default")]


def test_an_option_of_the_job_that_the_site_rejects_is_no_longer_silently_dropped() -> None:
    scheduler = {"type": "slurm", "reject": ["--mem", "--hint=multithread"]}
    assert fault(asking(sbatch=["--mem=9G"]), scheduler=scheduler).code == "plan.option-rejected"
    problem = fault(asking(sbatch=["--hint=multithread"]), scheduler=scheduler)
    assert problem.code == "plan.option-rejected"
    assert options(asking(sbatch=["--hint=x"]), scheduler=scheduler)["--hint"] == "x"


# How much of a node


@pytest.mark.parametrize(
    ("unit", "tp", "asked"),
    [("gpu", 1, 1), ("gpu", 2, 2), ("node", 1, 4), ("gpu-or-node", 1, 1), ("gpu-or-node", 2, 4)],
)
def test_a_job_asks_for_what_can_be_had_of_a_node(unit: str, tp: int, asked: int) -> None:
    found = resolved({"parallelism": {"tp": tp}}, gpus={"unit": unit})
    assert dict(found.plan.directives)["--gres"] == f"gpu:{asked}"
    assert found.plan.layout.allocation.whole_node == (asked == 4)
    assert ("--exclusive" in dict(found.plan.directives)) == (asked == 4)
    idle = [w.message for w in found.warnings]
    assert len(idle) == (asked > tp)
    assert all(f"{asked - tp} of the {asked} GPUs" in m and "whole nodes only" in m for m in idle)


def test_fewer_gpus_a_node_are_used_but_all_are_asked_for_where_nodes_are_whole() -> None:
    job = {**asking(gpus_per_node=2), "parallelism": {"tp": 2, "pp": 2}}
    found = resolved(job, gpus={"unit": "node"})
    assert (found.plan.step.nodes, found.plan.step.tasks_per_node) == (2, 2)
    assert dict(found.plan.directives)["--gres"] == "gpu:4"
    assert [w.code for w in found.warnings] == ["plan.idle-gpus"]


def test_one_gpu_on_each_of_several_nodes_is_no_single_gpu() -> None:
    job = {**asking(gpus_per_node=1), "parallelism": {"pp": 2}}
    assert options(job, gpus={"unit": "gpu-or-node"})["--gres"] == "gpu:4"


def test_an_option_that_counts_the_gpus_of_the_job_gets_their_sum() -> None:
    job = {"parallelism": {"tp": 4, "pp": 3}}
    assert options(job, gpus={"request": "--gpus=h100:{n}"})["--gpus"] == "h100:12"
    assert options(job, gpus={"request": "--gpus-per-node={n}"})["--gpus-per-node"] == "4"


# Limits


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"max_nodes": 1}, "plan.job-too-large"),
        ({"max_gpus": 7}, "plan.job-too-large"),
        ({"min_nodes": 3}, "plan.job-too-small"),
        ({"min_gpus": 9}, "plan.job-too-small"),
    ],
)
def test_a_job_outside_the_limits_is_refused(limits: dict[str, Any], code: str) -> None:
    job = {"parallelism": {"tp": 4, "pp": 2}}
    assert fault(job, {"limits": limits}).code == code
    edges = {"max_nodes": 2, "min_nodes": 2, "max_gpus": 8, "min_gpus": 8}
    assert resolved(job, {"limits": edges}).warnings == ()


def test_a_job_shorter_than_the_site_wants_is_refused() -> None:
    partition = {"limits": {"min_time": "1h"}}
    assert fault(asking(time="59m"), partition).code == "plan.time-under-limit"
    assert resolved(asking(time="1h"), partition).warnings == ()


def test_packed_replicas_can_be_spread_to_keep_a_limit() -> None:
    job = {"parallelism": {"tp": 1}, "replicas": 4}
    partition = {"limits": {"max_gpus": 2}}
    problem = fault(job, partition)
    assert problem.hint == "set resources.gpus_per_node to at most 2"
    assert options({**job, **asking(gpus_per_node=2)}, partition)["--array"] == "0-1"
    assert "gpus_per_node" not in str(fault(job, partition, gpus={"unit": "node"}).hint)


def test_what_a_qos_allows_replaces_what_the_partition_does() -> None:
    partition = {
        "limits": {"max_nodes": 1, "max_gpus": 64},
        "qos": {"large": {"max_nodes": 8, "time_limit": "2h"}},
    }
    job = {"parallelism": {"tp": 4, "pp": 2}}
    assert fault(job, partition).code == "plan.job-too-large"
    assert options({**job, **asking(qos="large")}, partition)["--time"] == "0-02:00:00"
    problem = fault({**job, **asking(qos="large", time="3h")}, partition)
    assert problem.code == "plan.time-over-limit"
    longer = {"qos": {"long": {"time_limit": "3d"}}}
    assert options(asking(qos="long", time="2d"), longer)["--time"] == "2-00:00:00"


def test_an_array_runs_as_many_at_once_as_one_user_may() -> None:
    partition = {"limits": {"jobs_running": 2}}
    found = resolved({"replicas": 5}, partition)
    assert dict(found.plan.directives)["--array"] == "0-4%2"
    assert [w.code for w in found.warnings] == ["plan.jobs-wait"]
    assert decided(found, "resources.at_once")[0][0] == "2"
    assert options({"replicas": 5, **asking(at_once=1)}, partition)["--array"] == "0-4%1"
    assert options({"replicas": 2}, partition)["--array"] == "0-1"


@pytest.mark.parametrize(
    ("restart", "replicas", "fits"),
    [("requeue", 8, True), ("requeue", 9, False), ("chain", 2, True), ("chain", 3, False)],
)
def test_no_more_jobs_than_one_user_may_have_queued(
    restart: str,
    replicas: int,
    fits: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    partition = {"limits": {"jobs_queued": 8}}
    scheduler = {"type": "slurm", "restart": restart}
    if fits:
        assert resolved({"replicas": replicas}, partition, scheduler=scheduler).warnings == ()
    else:
        problem = fault({"replicas": replicas}, partition, scheduler=scheduler)
        assert problem.code == "plan.too-many-jobs"
        assert problem.hint == f"set replicas to at most {replicas - 1}"


# Topology


@pytest.mark.parametrize(
    ("kind", "pp", "option"),
    [
        ("tree", 1, None),
        ("tree", 2, ("--switches", "1@0-01:00:00")),
        ("tree", 4, ("--switches", "1@0-01:00:00")),
        ("tree", 5, ("--switches", "2@0-01:00:00")),
        ("dragonfly", 4, ("--switches", "1@0-01:00:00")),
        ("dragonfly", 5, None),
        ("block", 1, None),
        ("block", 4, ("--segment", "4")),
        ("block", 6, ("--segment", "3")),
        ("block", 8, ("--segment", "4")),
        ("block", 7, None),
    ],
)
def test_nodes_are_kept_near_to_each_other(
    kind: str, pp: int, option: tuple[str, str] | None
) -> None:
    job = {"parallelism": {"tp": 4, "pp": pp}}
    found = resolved(job, {"topology": {"type": kind, "nodes": 4}})
    near = [pair for pair in found.plan.directives if pair[0] in ("--switches", "--segment")]
    assert near == ([] if option is None else [option])
    assert len(decided(found, "--switches") + decided(found, "--segment")) == len(near)


def test_without_a_topology_nothing_is_said_of_it() -> None:
    assert {"--switches", "--segment"}.isdisjoint(options({"parallelism": {"tp": 4, "pp": 8}}))


@pytest.mark.parametrize(("version", "given"), [("23.11", False), ("24.05", True), (None, True)])
def test_segments_begin_with_24_05(version: str | None, given: bool) -> None:  # noqa: FBT001 - a column of the table above
    scheduler = {"type": "slurm", **({"version": version} if version else {})}
    job = {"parallelism": {"tp": 4, "pp": 4}}
    found = options(job, {"topology": {"type": "block", "nodes": 4}}, scheduler=scheduler)
    assert ("--segment" in found) == given


@given(
    pp=st.integers(1, 12),
    tp=st.sampled_from([1, 2, 4, 8, 12, 16]),
    block=st.integers(1, 18),
)
def test_a_segment_divides_the_nodes_and_holds_whole_stages(pp: int, tp: int, block: int) -> None:
    job = {"parallelism": {"tp": tp, "pp": pp}, "allow": ["tp-over-fabric"]}
    wide = {"nodes": 500, "topology": {"type": "block", "nodes": block}}
    found = resolved(job, wide)
    nodes = found.plan.layout.allocation.nodes
    size = int(dict(found.plan.directives).get("--segment") or 0)
    if size:
        assert nodes % size == 0
        assert 1 < size <= block
        placements = found.plan.layout.placements
        for stage in range(pp):
            parts = {p.node // size for p in placements if p.pp_rank == stage}
            assert len(parts) == 1


# Placement


def test_nodes_that_may_differ_are_refused_unless_they_are_allowed() -> None:
    job = {"parallelism": {"tp": 4, "pp": 2}, **asking(constraint="a100|h100")}
    assert fault(job).code == "plan.mixed-nodes"
    assert warnings({**job, "allow": ["mixed-nodes"]}) == ["plan.mixed-nodes"]
    assert warnings({**job, **asking(constraint="[a100|h100]&ib")}) == []
    assert fault({**job, **asking(constraint="[a100*1&h100*1]")}).code == "plan.mixed-nodes"
    assert warnings({"parallelism": {"tp": 4}, **asking(constraint="a100|h100")}) == []


def test_part_of_a_node_whose_gpus_are_paired_is_worth_a_warning() -> None:
    pairs = {"topology": "pairs"}
    assert warnings({"parallelism": {"tp": 2}}, gpus=pairs) == ["plan.pairs-unsure"]
    assert warnings({"parallelism": {"tp": 2}, "replicas": 2}, gpus=pairs) == []
    assert warnings({"parallelism": {"tp": 1, "pp": 2}}, gpus=pairs) == []


def test_what_the_site_does_not_say_is_said() -> None:
    unknown = resolved(gpus={"topology": None})
    assert [w.code for w in unknown.warnings] == ["plan.unstated"]
    assert "`gpus.topology`" in unknown.warnings[0].message
    assert warnings({"parallelism": {"tp": 1}}, gpus={"topology": None}) == []
    found = resolved(partition={"cpus": None})
    assert ["`cpus`" in w.message for w in found.warnings] == [True]


# Quirks of versions, and the environment


@pytest.mark.parametrize(
    ("version", "given"),
    [("21.08", None), ("22.05", "24"), ("23.02", "24"), ("23.11", None), (None, None)],
)
def test_srun_is_told_the_cpus_where_it_does_not_read_those_of_sbatch(
    version: str | None, given: str | None
) -> None:
    scheduler = {"type": "slurm", **({"version": version} if version else {})}
    found = resolved(scheduler=scheduler)
    assert found.plan.env.get("SRUN_CPUS_PER_TASK") == given
    # Both are told by an option in each version.
    assert dict(found.plan.directives)["--cpus-per-task"] == "24"
    assert "--cpus-per-task=24" in step_words(found.plan, PurePosixPath("/run"))


@pytest.mark.parametrize(("version", "shared"), [(None, False), ("23.02", False), ("23.11", True)])
def test_where_binding_is_forced_ranks_see_all_gpus_of_their_job(
    version: str | None,
    shared: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    scheduler = {"type": "slurm", **({"version": version} if version else {})}
    plan = resolved(scheduler=scheduler, gpus={"forced_binding": True}).plan
    words = step_words(plan, PurePosixPath("/run"))
    assert "--gpu-bind=none" in words
    assert ("--gres-flags=allow-task-sharing" in words) == shared
    unbound = step_words(resolved(scheduler=scheduler).plan, PurePosixPath("/run"))
    assert not [word for word in unbound if "bind" in str(word) or "gres" in str(word)]


def test_engines_are_told_that_there_is_no_internet() -> None:
    found = resolved(internet=False)
    assert (found.plan.env["HF_HUB_OFFLINE"], found.plan.env["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert decided(found, "env.HF_HUB_OFFLINE")
    assert resolved(internet=False, env={"HF_HUB_OFFLINE": "0"}).plan.env["HF_HUB_OFFLINE"] == "0"
    assert resolved(internet=True).plan.env == resolved().plan.env == {}
    echo = {"engine": "echo", "parallelism": {"tp": 1}}
    assert resolved(echo, internet=False).plan.env == {}


def test_an_image_sees_the_disk_of_the_node_and_its_caches() -> None:
    places: dict[str, Any] = {"scratch": {"node_local": "$T"}, "container": {"runtime": "pyxis"}}
    plan = resolved({"runtime": {"image": "/i.sqsh"}}, **places).plan
    words = step_words(plan, PurePosixPath("/run"))
    assert '--container-mounts=/run:/run,"${T:?}":"${T:?}"' in words
    assert 'TRITON_CACHE_DIR="$TRITON_CACHE_DIR"' in words
    bound = resolved({"runtime": {"image": "/i.sif"}}, **{**places, "container": APPTAINER}).plan
    words = step_words(bound, PurePosixPath("/run"))
    assert words[words.index('"${T:?}"') - 1] == "--bind"
    assert words[words.index("exec") - 1] == "singularity"


def test_mpirun_hands_on_where_caches_are() -> None:
    launch = {"with": "mpirun", "mpi": "openmpi5"}
    words = step_words(
        resolved(launch=launch, scratch={"node_local": "/l"}).plan, PurePosixPath("/run")
    )
    assert words[words.index("VLLM_CACHE_ROOT") - 1] == "-x"


def test_caches_go_to_the_disk_of_the_node() -> None:
    found = resolved(scratch={"node_local": "$SLURM_TMPDIR"})
    assert found.plan.scratch == "$SLURM_TMPDIR"
    assert decided(found, "scratch.node_local") == [
        ("$SLURM_TMPDIR", "site here: caches of engines")
    ]
    assert resolved().plan.scratch is None
