"""What a job may ask for, out of what a cluster's commands print."""

from __future__ import annotations

import pytest
from describing import changed, found, of_set

from launcher.discover import Captured
from launcher.spec.site import Limits, Qos


def test_memory_that_nobody_stated_is_not_told() -> None:
    captures = changed(of_set("roihu"), "scontrol-node.txt", "RealMemory=880000", "RealMemory=1")
    described, site = found(captures)
    assert site.partitions["gpularge"].memory is None
    assert any("gpularge.memory" in places for places, _ in described.questions)


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        ("MaxCPUsPerNode=64 MaxCPUsPerSocket=UNLIMITED", 64),
        ("MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=20", 80),
        ("MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=UNLIMITED", 288),
    ],
)
def test_cpus_are_those_that_a_job_of_the_partition_can_have(limit: str, count: int) -> None:
    unlimited = "MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=UNLIMITED"
    captures = changed(of_set("roihu"), "scontrol-partition.txt", unlimited, limit)
    cpus = found(captures)[1].partitions["gpularge"].cpus
    assert cpus is not None
    assert cpus.count == count


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("AllowAccounts=ALL", "DenyAccounts=project_2001234"),
        ("RootOnly=NO", "RootOnly=YES"),
        ("State=UP", "State=DRAIN"),
    ],
)
def test_partitions_that_take_no_job_of_the_user_are_left_out(old: str, new: str) -> None:
    assert list(
        found(changed(of_set("roihu"), "scontrol-partition.txt", old, new))[1].partitions
    ) == ["default"]


def test_associations_on_other_clusters_say_nothing() -> None:
    head = "Cluster|Account|User|Partition|QOS|Def QOS|MaxJobs|MaxSubmit|MaxWall|MaxTRES\n"
    here = "perlmutter|m1234_g|ada||gpu_debug|gpu_debug||||\n"
    there = "muller|m1234_g|ada||gpu_debug,gpu_regular|gpu_regular||||\n"
    login = {**of_set("perlmutter").login, "sacctmgr-assoc.txt": head + here + there}
    partition = found(Captured(login))[1].partitions["gpu_ss11-hbm40g"]
    assert list(partition.qos) == ["gpu_debug"]
    assert partition.select.qos == "gpu_debug"


def test_a_qos_that_lets_no_gpu_in_cannot_be_chosen() -> None:
    captures = of_set("perlmutter")
    head = "Name|MaxWall|MaxTRES|MaxTRESPU|MaxJobsPU|MaxSubmitPU|MinTRES|GrpTRES|Flags\n"
    qos = "gpu_debug|30:00|gres/gpu=0||||||\ngpu_regular|1-00:00:00|gres/gpu=16|gres/gpu=8|||||\n"
    login = {**captures.login, "sacctmgr-qos.txt": head + qos}
    partition = found(Captured(login))[1].partitions["gpu_ss11-hbm40g"]
    assert {name: one.max_gpus for name, one in partition.qos.items()} == {"gpu_regular": 8}


@pytest.mark.parametrize(
    ("own", "job", "wanted"),
    [
        # Of two limits the partition's counts, of two kinds of limit both do.
        ("|gres/gpu=64|", "gres/gpu=8||", 8),
        ("gres/gpu=16||", "gres/gpu=8||", None),
        ("gres/gpu=16||", "gres/gpu=32||OverPartQOS", 32),
        ("gres/gpu=16||", "||OverPartQOS", None),
        ("||", "gres/gpu:gh200=12,gres/gpu:h100=2||", 12),
    ],
)
def test_limits_of_a_qos_join_those_of_the_partition(
    own: str, job: str, wanted: int | None
) -> None:
    head = "Name|MaxTRES|MaxTRESPU|Flags\n"
    login = {
        **of_set("roihu").login,
        "sacctmgr-qos.txt": f"{head}gpularge|{own}\nnormal|{job}\n",
    }
    partition = found(Captured(login))[1].partitions["gpularge"]
    assert partition.qos.get("normal", Qos()).max_gpus == wanted


def test_what_all_users_and_one_user_may_have_bounds_a_job() -> None:
    head = "Name|MaxWall|MaxTRES|MaxTRESPU|MaxJobsPU|MaxSubmitPU|MinTRES|GrpTRES|Flags\n"
    qos = (
        "gpularge|12:00:00|node=6|gres/gpu=16,cpu=9|2||gres/gpu=1|gres/gpu=12,node=3|DenyOnLimit\n"
    )
    partition = found(Captured({**of_set("roihu").login, "sacctmgr-qos.txt": head + qos}))[
        1
    ].partitions["gpularge"]
    assert partition.limits == Limits(max_nodes=3, max_gpus=12, jobs_running=2)
    assert partition.time_limit == 12 * 3600


def test_cpus_of_which_sinfo_says_the_least_are_not_told() -> None:
    text = of_set("tamia").login["sinfo.txt"].replace("|64|", "|64+|")
    partition = found(Captured({"sinfo.txt": text}))[1].partitions["gpubase_bynode_b1-h200"]
    assert partition.cpus is None


def test_cpus_that_slurm_keeps_for_itself_and_memory_are_not_for_jobs() -> None:
    captures = changed(of_set("roihu"), "scontrol-node.txt", "CPUEfctv=288", "CPUEfctv=280")
    captures = changed(
        captures, "scontrol-node.txt", "Weight=1 Owner", "Weight=1 MemSpecLimit=10000 Owner"
    )
    cpus = found(captures)[1].partitions["gpularge"].cpus
    assert cpus is not None
    assert (cpus.count, cpus.threads_per_core) == (280, 1)
    captures = changed(
        of_set("roihu"),
        "scontrol-node.txt",
        "   State=IDLE",
        "   MemSpecLimit=10000\n   State=IDLE",
    )
    assert found(captures)[1].partitions["gpularge"].memory == (880000 - 10000) * 2**20


def test_cores_that_slurm_counts_have_no_threads() -> None:
    captures = changed(of_set("juwels-booster"), "scontrol-node.txt", "CPUTot=96", "CPUTot=48")
    captures = changed(captures, "scontrol-node.txt", "CPUEfctv=96", "CPUEfctv=48")
    cpus = found(captures)[1].partitions["booster"].cpus
    assert cpus is not None
    assert (cpus.count, cpus.threads_per_core) == (48, 1)
