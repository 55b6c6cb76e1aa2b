"""What the ranks of a replica tell before the engine starts, and what is made of it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from run_making import make_plan

from launcher.parsers.ibstat import Port
from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.types import Cut, Network, NodeGpus, Plan, Rail, Step
from launcher.preflight import facts as facts_module
from launcher.preflight.facts import Facts, NodeFacts, gather
from launcher.preflight.fingerprint import Fingerprint, fingerprint
from launcher.preflight.verdict import CONNECTION_BYTES, Finding, check_world, judge

MIB = 1 << 20
MODEL = Fingerprint(digest="d", files={"config.json": "c", "a.safetensors": "9 bytes x"})
OPEN_MPI, MPICH = "Open MPI v4.1.4, package: Debian", "MPICH Version:      4.2.0"


def plan_of(tp: int = 2, nodes: int = 2, *, gpus: NodeGpus | bool = True, **changes: Any) -> Plan:
    """``tp`` ranks on each of ``nodes``."""
    shape = NodeShape(slots=tp, slots_all=tp, has_gpus=bool(gpus))
    layout = lay_out(Cut(tp=tp, pp=nodes), 1, shape)
    step = Step(kind="leader", nodes=nodes, tasks_per_node=tp)
    wanted: dict[str, Any] = {
        "engine": "tensorrt-llm",
        "model_path": "/m",
        "launcher": "srun",
        "mpi": "pmix",
    }
    wanted["gpus"] = gpus if isinstance(gpus, NodeGpus) else None
    return make_plan(**{**wanted, "layout": layout, "step": step, **changes})


def ranks_of(
    plan: Plan, of_node: Mapping[int, Mapping[str, Any]] | None = None, **of_rank: Any
) -> list[Facts]:
    """All is well but for what ``of_node`` says of a node, or ``of_rank`` of every rank."""
    each = plan.step.tasks_per_node
    found = []
    for rank in range(plan.step.tasks):
        node = rank // each
        well: dict[str, Any] = {
            "versions": {"python": "3.12.3"},
            "model": MODEL,
            "gpus": tuple(f"GPU-{node}-{n}" for n in range(each)),
            "mpi": OPEN_MPI,
            "shm_bytes": 1 << 34,
        }
        told: dict[str, Any] = {
            "rank": rank,
            "local_rank": rank % each,
            "host": f"node{node}",
            "pmi": {"PMIX_RANK": str(rank)},
            "visible": ",".join(map(str, range(each))),
            "node": None
            if rank % each
            else NodeFacts(**well | dict((of_node or {}).get(node, {}))),
        }
        found.append(Facts(**told | of_rank))
    return found


def judged(plan: Plan, ranks: list[Facts], digest: str | None = "d") -> list[Finding]:
    return judge(plan, 0, ranks, digest)


def one(found: list[Finding], code: str) -> Finding:
    [finding] = found
    assert finding.problem.code == code
    assert finding.problem.hint
    return finding


def everywhere(plan: Plan, **of_node: Any) -> dict[int, dict[str, Any]]:
    return dict.fromkeys(range(plan.step.nodes), of_node)


# --- the verdict


@given(tp=st.integers(1, 8), nodes=st.integers(1, 5))
def test_ranks_of_which_nothing_is_wrong_may_go_on(tp: int, nodes: int) -> None:
    plan = plan_of(tp, nodes)
    assert judged(plan, ranks_of(plan)) == []


@given(nodes=st.integers(3, 6), bad=st.integers(0, 5), data=st.data())
def test_of_more_than_two_nodes_one_that_is_unlike_the_others_is_named(
    nodes: int, bad: int, data: st.DataObject
) -> None:
    bad %= nodes
    plan = plan_of(2, nodes)
    name = data.draw(st.sampled_from(sorted(MODEL.files)))
    other = dataclasses.replace(MODEL, files={**MODEL.files, name: "other"})
    found = one(judged(plan, ranks_of(plan, {bad: {"model": other}})), "preflight.model-differs")
    assert (found.hosts, found.mendable) == ((f"node{bad}",), True)
    assert found.problem.message == f"/m differs in {name}: rank {2 * bad} on node{bad}"


def test_of_two_nodes_with_different_weights_nobody_can_say_which_is_wrong() -> None:
    plan = plan_of()
    other = dataclasses.replace(MODEL, files={**MODEL.files, "a.safetensors": "9 bytes y"})
    found = one(judged(plan, ranks_of(plan, {1: {"model": other}})), "preflight.model-differs")
    assert (found.hosts, found.mendable) == (("node0", "node1"), False)


def test_of_two_nodes_the_one_that_has_not_the_model_of_the_run_is_wrong() -> None:
    plan = plan_of()
    other = Fingerprint(digest="e", files={"config.json": "c", "a.safetensors": "8 bytes x"})
    found = one(judged(plan, ranks_of(plan, {0: {"model": other}})), "preflight.model-differs")
    assert (found.hosts, found.mendable) == (("node0",), True)
    assert "/m is not what the run began with in a.safetensors: rank 0" in found.problem.message


def test_a_model_that_all_nodes_have_otherwise_would_be_so_on_others() -> None:
    plan = plan_of()
    found = one(judged(plan, ranks_of(plan), digest="before"), "preflight.model-differs")
    assert not found.mendable
    assert judged(plan, ranks_of(plan), digest=None) == []


def test_a_model_that_is_missing_is_the_nodes_fault_unless_none_has_it() -> None:
    plan = plan_of()
    gone = {"model": None, "model_error": "No such file or directory: /m/config.json"}
    found = one(judged(plan, ranks_of(plan, {1: gone})), "preflight.model-missing")
    assert (found.hosts, found.mendable) == (("node1",), True)
    assert "rank 2 on node1: No such file or directory: /m/config.json" in found.problem.message
    found = one(judged(plan, ranks_of(plan, {0: gone, 1: gone})), "preflight.model-missing")
    assert not found.mendable
    alone = plan_of(1, 1)
    assert one(judged(alone, ranks_of(alone, {0: gone})), "preflight.model-missing").mendable


def test_a_plan_from_a_shape_alone_has_no_model_to_start() -> None:
    plan = plan_of(1, 1, model_path=None, model="llama-3.1-8b")
    ranks = ranks_of(plan, everywhere(plan, model=None))
    assert not one(judged(plan, ranks, None), "model.not-cached").mendable
    echo = plan_of(model_path=None, engine="echo")
    assert judged(echo, ranks_of(echo, everywhere(echo, model=None)), None) == []


@pytest.mark.parametrize(
    ("library", "launcher", "pmi", "remedy"),
    [
        (OPEN_MPI, "srun", {}, "launch.mpi: pmix"),
        ("Open MPI v5.0.3", "srun", {"PMI_RANK": "0"}, "launch.mpi: pmix"),
        ("Open MPI v5.0.3", "srun", {"PMIX_RANK": "0"}, None),
        (MPICH, "srun", {"PMIX_RANK": "0"}, "launch.mpi: pmi2"),
        (OPEN_MPI, "mpirun", {"PMI_RANK": "0"}, "launch.mpi: openmpi4"),
        (MPICH, "mpirun", {"PMIX_RANK": "0"}, "launch.mpi: hydra"),
        ("Intel(R) MPI Library 2021.12", "srun", {"PMIX_RANK": "0"}, "launch.mpi: pmi2"),
        (OPEN_MPI, "srun", {"PMI_RANK": "0"}, None),
        (MPICH, "srun", {"PMI_RANK": "0"}, None),
        (MPICH, "mpirun", {"PMI_RANK": "0"}, None),
        (MPICH, "srun", {"PMIX_RANK": "0", "PMI_CONTROL_PORT": "1"}, None),
        (None, "srun", {}, None),
    ],
)
def test_ranks_that_would_be_alone_are_told_with_their_remedy(
    library: str | None, launcher: str, pmi: dict[str, str], remedy: str | None
) -> None:
    plan = plan_of(launcher=launcher)
    found = judged(plan, ranks_of(plan, everywhere(plan, mpi=library), pmi=pmi))
    if remedy is None:
        assert found == []
        return
    finding = one(found, "preflight.mpi")
    assert not finding.mendable
    assert remedy in str(finding.problem.hint)
    assert str(library) in finding.problem.message


def test_engines_that_do_not_meet_by_mpi_are_not_asked_for_it() -> None:
    step = Step(kind="spmd", nodes=2, tasks_per_node=2)
    plan = plan_of(engine="transformers", step=step)
    assert judged(plan, ranks_of(plan, pmi={})) == []


def test_an_mpi_library_that_cannot_be_loaded_on_one_node_is_that_nodes_fault() -> None:
    plan = plan_of()
    broken = {"mpi": None, "mpi_error": "ImportError: libmpi.so.40: cannot open shared object file"}
    found = one(judged(plan, ranks_of(plan, {1: broken})), "preflight.mpi")
    assert (found.hosts, found.mendable) == (("node1",), True)
    assert "rank 2 on node1: " in found.problem.message
    assert "libmpi.so.40" in found.problem.message


def test_fewer_gpus_than_the_rank_is_to_use_are_named() -> None:
    plan = plan_of()
    found = one(judged(plan, ranks_of(plan, {1: {"gpus": ("GPU-a",)}})), "preflight.gpus")
    assert found.problem.message == "rank 2 on node1 is to use GPU 1, and sees 1 GPUs"
    assert (found.hosts, found.mendable) == (("node1",), True)


def test_a_driver_that_fails_is_its_nodes_fault() -> None:
    plan = plan_of(1, 1)
    failing = {"gpus": None, "gpu_error": "Unable to determine the device handle for GPU"}
    found = one(judged(plan, ranks_of(plan, {0: failing})), "preflight.gpus")
    assert found.mendable
    assert "Unable to determine" in found.problem.message


@pytest.mark.parametrize("visible", ["0,0", "GPU-x,GPU-x"])
def test_two_ranks_with_one_gpu_are_named(visible: str) -> None:
    plan = plan_of(2, 1)
    found = one(judged(plan, ranks_of(plan, visible=visible)), "preflight.gpu-twice")
    assert found.problem.message.startswith("rank 0 on node0 and rank 1 on node0 would use the")


def test_two_nodes_that_are_one_machine_have_the_same_gpus() -> None:
    plan = plan_of(1, 2)
    same = everywhere(plan, gpus=("GPU-a",))
    assert one(judged(plan, ranks_of(plan, same)), "preflight.gpu-twice").hosts == ("node1",)


def test_a_task_that_starts_all_ranks_of_a_node_uses_all_gpus_that_it_sees() -> None:
    step = Step(kind="per-node", nodes=2, tasks_per_node=1)
    plan = plan_of(engine="vllm", step=step)
    seen = {n: {"gpus": (f"GPU-{n}-0", f"GPU-{n}-1", f"GPU-{n}-2")} for n in (0, 1)}
    assert judged(plan, ranks_of(plan, seen, visible="1,2")) == []
    found = judged(plan, ranks_of(plan, seen, visible="2,2"))
    assert [f.problem.code for f in found] == ["preflight.gpu-twice"] * 2


@given(ranks=st.integers(2, 16), free=st.integers(0, 512 * MIB))
def test_shared_memory_is_enough_for_every_rank_on_the_node_or_it_is_told(
    ranks: int, free: int
) -> None:
    plan = plan_of(ranks, 1)
    found = judged(plan, ranks_of(plan, {0: {"shm_bytes": free}}))
    assert bool(found) == (free < 2 * ranks * CONNECTION_BYTES)
    # Containers of one job are alike.
    assert not any(f.mendable for f in found)
    without = dataclasses.replace(plan, env={"NCCL_SHM_DISABLE": "1"})
    assert judged(without, ranks_of(without, {0: {"shm_bytes": free}})) == []


def test_dockers_own_shared_memory_is_too_little_for_four_ranks_and_enough_for_two() -> None:
    free = {0: {"shm_bytes": 64 * MIB}}
    assert judged(plan_of(2, 1), ranks_of(plan_of(2, 1), free)) == []
    one(judged(plan_of(4, 1), ranks_of(plan_of(4, 1), free)), "preflight.shared-memory")


def test_memory_that_may_not_be_locked_matters_over_infiniband_between_nodes() -> None:
    plan = plan_of()
    bound = {"memlock_bytes": 8 * MIB, "rdma": ("mlx5_0",)}
    found = one(judged(plan, ranks_of(plan, {1: bound})), "preflight.locked-memory")
    assert (found.hosts, found.mendable) == (("node1",), True)
    assert str(8 * MIB) in found.problem.message
    assert judged(plan, ranks_of(plan, {1: {**bound, "rdma": ()}})) == []
    assert judged(plan, ranks_of(plan, {1: {**bound, "memlock_bytes": None}})) == []
    one(judged(plan, ranks_of(plan, {1: {**bound, "memlock_bytes": 0}})), found.problem.code)
    alone = plan_of(2, 1)
    assert judged(alone, ranks_of(alone, {0: bound})) == []


def test_versions_that_differ_between_nodes_are_named_with_the_node() -> None:
    plan = plan_of(1, 3)
    old = {"versions": {"python": "3.12.3", "torch": "2.8.0"}}
    found = one(judged(plan, ranks_of(plan, {2: old})), "preflight.versions")
    assert (found.hosts, found.mendable) == (("node2",), True)
    assert "torch missing on node0" in found.problem.message
    assert "torch 2.8.0 on node2" in found.problem.message
    assert "python" not in found.problem.message


def test_a_driver_of_its_own_is_not_blamed_on_the_image() -> None:
    plan = plan_of(1, 3)
    of_node = {
        n: {"versions": {"python": "3.12", "driver": "535.1" if n else "550.2"}} for n in range(3)
    }
    found = one(judged(plan, ranks_of(plan, of_node)), "preflight.versions")
    assert (found.hosts, found.problem.severity) == (("node0",), "warning")
    assert "image" not in str(found.problem.hint)


def test_drivers_do_not_hide_what_else_differs() -> None:
    plan = plan_of(1, 2)
    of_node = {n: {"versions": {"python": f"3.{n}", "driver": f"55{n}"}} for n in range(2)}
    first, second = judged(plan, ranks_of(plan, of_node))
    assert (first.problem.severity, second.problem.severity) == ("error", "warning")
    assert "driver" not in first.problem.message


# --- what the site says of GPUs and ports


H100 = NodeGpus(count=2, model="h100")


def test_gpus_of_another_kind_than_the_site_says_are_named() -> None:
    plan = plan_of(gpus=H100)
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB")
    found = one(judged(plan, ranks_of(plan, {1: {"gpu_names": names}})), "preflight.gpu-model")
    assert (found.hosts, found.mendable, found.part) == (("node1",), True, "GPU 1")
    assert "'NVIDIA A100-SXM4-80GB', and the site says h100" in found.problem.message


@pytest.mark.parametrize(
    ("site", "driver"),
    [
        ("gh200", "NVIDIA GH200 120GB"),
        ("gh200", "NVIDIA GH200 480GB"),
        ("rtx-4090", "NVIDIA GeForce RTX 4090"),
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
        ("rtx-a6000", "NVIDIA RTX A6000"),
        ("a6000", "NVIDIA RTX A6000"),
        ("rtx-6000-ada", "NVIDIA RTX 6000 Ada Generation"),
        ("quadro_rtx_8000", "Quadro RTX 8000"),
        ("gtx1080ti", "NVIDIA GeForce GTX 1080 Ti"),
        ("l40s", "NVIDIA L40S"),
        ("a30", "NVIDIA A30"),
        ("a100", "A100-SXM-64GB"),
        ("a100-80gb", "NVIDIA A100-SXM4-80GB"),
        ("a100_sxm4_40gb", "NVIDIA A100-SXM4-40GB"),
        ("A100-PCIe", "NVIDIA A100 80GB PCIe"),
        ("nvidia-v100-32gb", "Tesla V100-SXM2-32GB"),
        ("h100-sxm5", "NVIDIA H100 80GB HBM3"),
        ("h100sxm", "NVIDIA H100 80GB HBM3"),
        ("H100 NVL", "NVIDIA H100 NVL"),
        ("b200", "NVIDIA B200"),
        ("gb200-nvl72", "NVIDIA GB200"),
        ("hopper", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_the_sites_name_of_a_gpu_is_found_in_the_drivers(site: str, driver: str) -> None:
    assert of_models(site, driver, "NVIDIA T4") == []


# What the drivers of these sites' nodes are known to call them.
DRIVERS = {
    "a100": (
        *("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM-64GB"),
        *("NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe", "A100-SXM4-40GB"),
    ),
    "gh200": ("NVIDIA GH200 120GB", "NVIDIA GH200 480GB", "NVIDIA GH200 144G HBM3e"),
    "h100": (
        *("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"),
        *("NVIDIA H100 64GB HBM2", "NVIDIA H100"),
    ),
    "h200": ("NVIDIA H200", "NVIDIA H200 NVL"),
    "l40s": ("NVIDIA L40S",),
}
SHIPPED = sorted(
    (site.stem, name, partition["gpus"]["model"])
    for site in Path("site_configs").glob("*.yaml")
    for name, partition in (yaml.safe_load(site.read_text()).get("partitions") or {}).items()
    if partition and partition.get("gpus")
)


@pytest.mark.parametrize(("site", "partition", "model"), SHIPPED)
def test_no_shipped_site_calls_its_gpus_what_their_driver_does_not(
    site: str, partition: str, model: str
) -> None:
    assert [name for name in DRIVERS[model] if of_models(model, name, "NVIDIA T4")] == []
    assert of_models(model, "Tesla V100-SXM2-32GB", f"NVIDIA {model.upper()}"), (site, partition)


def test_shipped_sites_have_gpus() -> None:
    assert len(SHIPPED) > 20


def of_models(site: str, first: str, second: str) -> list[Finding]:
    """What is found where the first of two nodes has the one, the second the other."""
    plan = plan_of(gpus=NodeGpus(count=2, model=site))
    names = {n: {"gpu_names": (name, name)} for n, name in enumerate((first, second))}
    found = judged(plan, ranks_of(plan, names))
    assert {f.problem.code for f in found} <= {"preflight.gpu-model"}
    return [f for f in found if "node0" in f.hosts]


def test_where_all_gpus_are_of_one_other_kind_the_site_file_is_wrong_rather() -> None:
    plan = plan_of(gpus=H100)
    names = ("NVIDIA A100-SXM4-80GB",) * 2
    found = one(
        judged(plan, ranks_of(plan, everywhere(plan, gpu_names=names))), "preflight.gpu-model"
    )
    assert found.problem.severity == "warning"
    assert "of node0, node1 is" in found.problem.message


def test_a_gpu_that_the_job_does_not_use_may_be_any() -> None:
    plan = plan_of(gpus=H100)
    three = {
        "gpus": ("GPU-a", "GPU-b", "GPU-c"),
        "gpu_names": ("NVIDIA H100",) * 2 + ("NVIDIA T400",),
    }
    assert judged(plan, ranks_of(plan, {0: three})) == []
    by_name = ranks_of(plan, {0: three, 1: three | {"gpus": ("GPU-d", "GPU-e", "GPU-f")}})
    by_name[0] = dataclasses.replace(by_name[0], visible="GPU-a,GPU-c")
    found = judged(plan, by_name)
    assert [f.part for f in found if f.problem.code == "preflight.gpu-model"] == ["GPU 2"]


RAILS = Network(
    type="infiniband", rate=400, rails=tuple(Rail(hca=f"mlx5_{n}:1", gpus=(n,)) for n in (0, 1))
)


def port(number: int, **changes: Any) -> Port:
    well: dict[str, Any] = {
        "adapter": f"mlx5_{number}",
        "number": 1,
        "state": "Active",
        "physical": "LinkUp",
        "rate_gbps": 400.0,
        "link_layer": "InfiniBand",
    }
    return Port(**well | changes)


def with_ports(plan: Plan, *of_second: Port) -> list[Facts]:
    """Ranks of two nodes, of which the second has these ports."""
    first, rdma = (port(0), port(1)), ("mlx5_0", "mlx5_1")
    return ranks_of(
        plan, {0: {"ports": first, "rdma": rdma}, 1: {"ports": of_second, "rdma": rdma}}
    )


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ((port(0), port(1, state="Down", physical="Polling")), "is Down (Polling)"),
        ((port(0), port(1, state="Init")), "is Init (LinkUp)"),
        ((port(0), port(1, rate_gbps=200.0)), "runs at 200 Gbit/s, and the site says 400"),
        ((port(0), port(1, link_layer="Ethernet")), "is Ethernet, and the site says InfiniBand"),
        ((port(0),), "is a rail of the site and is not there"),
        ((port(0), port(1, state=None, physical=None)), "is mute (mute)"),
    ],
)
def test_a_rail_that_is_not_as_the_site_says_is_named_with_its_node(
    second: tuple[Port, ...], said: str
) -> None:
    plan = plan_of(network=RAILS)
    found = one(judged(plan, with_ports(plan, *second)), "preflight.port")
    assert found.problem.message == f"mlx5_1:1 of node1 {said}"
    assert (found.hosts, found.mendable, found.part) == (("node1",), True, "mlx5_1:1")
    assert found.problem.severity == "error"


def test_rails_that_no_node_has_as_the_site_says_are_the_sites_mistake() -> None:
    plan = plan_of(network=RAILS)
    half = {"ports": (port(0), port(1, rate_gbps=200.0)), "rdma": ("mlx5_0", "mlx5_1")}
    found = one(judged(plan, ranks_of(plan, everywhere(plan, **half))), "preflight.port")
    assert found.problem.severity == "warning"
    assert found.problem.message.startswith("mlx5_1:1 of node0, node1 runs at 200 Gbit/s")


def test_ports_are_judged_by_what_the_site_declares_alone() -> None:
    bad = (port(0), port(1, state="Down"), port(2, state="Down"))
    bare = plan_of(network=dataclasses.replace(RAILS, rails=()))
    assert judged(bare, with_ports(bare, *bad)) == []
    sockets = plan_of(network=dataclasses.replace(RAILS, sockets=True))
    assert judged(sockets, with_ports(sockets, *bad)) == []
    well = plan_of(network=RAILS)
    assert judged(well, with_ports(well, port(0), port(1), port(2, state="Down"))) == []
    faster = (port(0, rate_gbps=800.0), port(1))
    assert judged(well, with_ports(well, *faster)) == []
    # A container may show none of them.
    assert judged(well, ranks_of(well)) == []


# --- places


def test_a_rank_that_is_on_a_node_of_no_job_is_named_and_no_other_node_helps() -> None:
    plan = plan_of(1, 2)
    first, second = ranks_of(plan, job="7", nodes="node[0-1]")
    assert judged(plan, [first, second]) == []
    astray = dataclasses.replace(second, host="login1.cluster", job=None, nodes=None)
    found = one(judged(plan, [first, astray]), "preflight.wrong-node")
    assert (found.hosts, found.mendable) == (("login1.cluster",), False)
    # A launcher over ssh hands on no variables of the job; its nodes are right all the same.
    by_ssh = dataclasses.replace(second, host="node1.cluster", job=None, nodes=None)
    assert judged(plan, [first, by_ssh]) == []
    # Slurm may have names of its own for nodes.
    renamed = dataclasses.replace(first, nodes="gpu[0-1]")
    assert judged(plan, [renamed, dataclasses.replace(second, job=None, nodes=None)]) == []
    unknown = dataclasses.replace(first, nodes=None)
    assert judged(plan, [unknown, astray]) == []
    broken = dataclasses.replace(first, nodes="node[0-")
    assert judged(plan, [broken, astray]) == []


def test_a_world_of_another_size_is_told_before_ranks_are_looked_for() -> None:
    plan = plan_of()
    [problem] = check_world(plan, rank=0, world=1, local_rank=0, host="node0")
    assert problem.code == "run.world-mismatch"
    assert list(check_world(plan, rank=0, world=4, local_rank=0, host="node0")) == []
    [problem] = check_world(plan, rank=1, world=4, local_rank=0, host="node1")
    assert problem.code == "run.placement-mismatch"


# --- the checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("not a part of it")
    (folder / "a.safetensors").write_bytes(bytes(3 * MIB))
    return folder


def test_what_is_no_part_of_a_model_is_no_part_of_its_fingerprint(checkpoint: Path) -> None:
    before = fingerprint(checkpoint, ends=True)
    assert sorted(before.files) == ["a.safetensors", "config.json"]
    (checkpoint / "README.md").write_text("other")
    assert fingerprint(checkpoint, ends=True) == before


@given(at=st.sampled_from([0, MIB - 1, MIB, 3 * MIB // 2, 2 * MIB - 1, 2 * MIB, 3 * MIB - 1]))
def test_a_byte_at_either_end_of_the_weights_is_seen_and_one_within_is_not(
    tmp_path_factory: pytest.TempPathFactory, at: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    weights = bytearray(3 * MIB)
    (folder / "a.safetensors").write_bytes(weights)
    before = fingerprint(folder, ends=True)
    weights[at] = 1
    (folder / "a.safetensors").write_bytes(weights)
    after = fingerprint(folder, ends=True)
    assert (after.files != before.files) == (not MIB <= at < 2 * MIB)
    assert after.digest == before.digest


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB + 1])
def test_weights_of_any_size_have_ends(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(size))
    found = fingerprint(tmp_path, ends=True).files["a.safetensors"]
    assert found.startswith(f"{size} bytes ")


def test_size_and_content_of_small_files_are_the_digest(checkpoint: Path) -> None:
    before = fingerprint(checkpoint).digest
    (checkpoint / "config.json").write_text("{ }")
    changed = fingerprint(checkpoint).digest
    assert changed != before
    os.truncate(checkpoint / "a.safetensors", 2 * MIB)
    assert fingerprint(checkpoint).digest not in (before, changed)


# --- one rank


def program(folder: Path, name: str, script: str) -> dict[str, str]:
    """An environment in which ``name`` is this script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


LISTED = """cat <<END
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
  MIG 1g.10gb     Device  0: (UUID: MIG-cccc)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
END"""


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path) -> None:
    environ = program(tmp_path / "bin", "nvidia-smi", LISTED) | {"CUDA_VISIBLE_DEVICES": "1"}
    found = gather(plan_of(1, 1, model_path=None), 0, 0, environ)
    assert found.node is not None
    assert (found.node.gpus, found.node.gpu_error) == (("GPU-aaaa", "GPU-bbbb"), None)
    assert found.visible == "1"


def test_what_nvidia_smi_says_when_it_fails_is_kept(tmp_path: Path) -> None:
    environ = program(tmp_path / "bin", "nvidia-smi", "echo GPU is lost >&2; exit 15")
    found = gather(plan_of(1, 1, model_path=None), 0, 0, environ)
    assert found.node is not None
    assert (found.node.gpus, found.node.gpu_error) == (None, "GPU is lost")


def test_an_nvidia_smi_that_hangs_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts_module, "ANSWER_S", 0.2)
    environ = program(tmp_path / "bin", "nvidia-smi", "exec sleep 60")
    found = gather(plan_of(1, 1, model_path=None), 0, 0, environ)
    assert found.node is not None
    assert str(found.node.gpu_error).startswith("nvidia-smi did not answer")


def test_later_ranks_of_a_node_look_at_nothing_that_the_first_one_tells(tmp_path: Path) -> None:
    environ = program(tmp_path / "bin", "nvidia-smi", f"touch {tmp_path}/asked")
    assert gather(plan_of(2, 1), 1, 1, environ).node is None
    assert not (tmp_path / "asked").exists()


def test_nodes_without_gpus_are_asked_for_none(tmp_path: Path) -> None:
    environ = program(tmp_path / "bin", "nvidia-smi", f"touch {tmp_path}/asked")
    plan = plan_of(1, 1, gpus=False, model_path=None)
    found = gather(plan, 0, 0, environ | {"CUDA_VISIBLE_DEVICES": "0"})
    assert found.visible is None
    assert not (tmp_path / "asked").exists()


def test_a_directory_without_a_checkpoint_is_missing_too(tmp_path: Path) -> None:
    found = gather(plan_of(1, 1, model_path=str(tmp_path)), 0, 0, {})
    assert found.node is not None
    assert found.node.model is None
    assert found.node.model_error == f"No such file or directory: {tmp_path}/config.json"


def test_facts_survive_being_written(checkpoint: Path) -> None:
    plan = plan_of(1, 2, model_path=str(checkpoint))
    environ = {"PMIX_RANK": "0", "PATH": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = gather(plan, 0, 0, environ)
    assert Facts.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found
    later = gather(plan, 1, 1, environ)
    assert Facts.from_json(json.loads(json.dumps(dataclasses.asdict(later)))) == later
