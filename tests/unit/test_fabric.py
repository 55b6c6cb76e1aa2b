"""What a site's fabric puts into the environment of ranks, and where each value is from."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pytest

from launcher.plan.fabric import settings
from launcher.plan.resolve import Facts, Resolution, resolve
from launcher.plan.types import Network, NodeGpus, Plan, Rail
from launcher.render.step import step_words
from launcher.spec.rules import read_job, read_site
from launcher.spec.site import Fabric
from launcher.spec.source import parse

JOB = """\
name: j
model: m
engine: vllm
input: {path: in.jsonl}
output: {path: out}
resources: {time: 1h}
"""
SITE = """\
name: here
scheduler: {type: slurm}
launch: {with: srun}
env: {NCCL_SOCKET_IFNAME: general, HERE: "1"}
partitions:
  gpu:
    cpus: {count: 8}
    gpus: {model: h100, per_node: 2, link: nvlink4, topology: all-to-all, cpus: [0-3, 4-7]}
"""
RAILS = (
    "[{hca: 'mlx5_2:1', gpus: [0]}, {hca: 'mlx5_bond_0:1', gpus: []}, {hca: 'mlx5_0:1', gpus: [1]}]"
)
TWO_NODES = "parallelism: {tp: 2, pp: 2}\n"
ONE_NODE = "parallelism: {tp: 2}\n"


def resolved(fabric: str, job: str = TWO_NODES) -> Resolution:
    return with_site(f"{SITE}    fabric: {{{fabric}}}\n", job)


def with_site(site: str, job: str) -> Resolution:
    job_source = parse("job.yaml", JOB + job)
    site_source = parse("site.yaml", site)
    return resolve(
        read_job(job_source),
        read_site(site_source),
        job_source=job_source,
        site_source=site_source,
        facts=Facts(),
    )


def set_by(fabric: str) -> dict[str, str]:
    """What the ranks get that the site does not give to all."""
    env = resolved(fabric).plan.env
    return {name: value for name, value in env.items() if name != "HERE"}


def test_infiniband_rails_are_one_exact_list_in_the_order_of_the_site_file() -> None:
    assert set_by(f"type: infiniband, interface: '=ib0', rails: {RAILS}") == {
        "NCCL_IB_HCA": "=mlx5_2:1,mlx5_0:1",
        "UCX_NET_DEVICES": "mlx5_2:1,mlx5_0:1",
        "NCCL_SOCKET_IFNAME": "=ib0",
        "GLOO_SOCKET_IFNAME": "ib0",
        "TP_SOCKET_IFNAME": "ib0",
    }


@pytest.mark.parametrize("interface", ["ib", "=ib0,ib1", "^docker", "^=eth0"])
def test_what_takes_one_whole_name_gets_no_prefix_and_no_list(interface: str) -> None:
    found = settings(Fabric(type="infiniband", interface=interface))
    assert found == {"NCCL_SOCKET_IFNAME": (interface, "interface")}


def test_ucx_is_told_of_ports_only_where_all_have_their_number() -> None:
    found = set_by(
        "type: infiniband, rails: [{hca: mlx5_0, gpus: [0]}, {hca: 'mlx5_1:1', gpus: [1]}]"
    )
    assert found == {"NCCL_IB_HCA": "=mlx5_0,mlx5_1:1", "NCCL_SOCKET_IFNAME": "general"}


@pytest.mark.parametrize("kind", ["slingshot", "omnipath"])
def test_of_a_port_that_is_not_reached_by_verbs_only_what_the_site_states_is_set(kind: str) -> None:
    rails = "[{hca: cxi0, gpus: [0, 1]}]"
    found = set_by(
        f"type: {kind}, interface: hsn, env: {{NCCL_NET: AWS Libfabric}}, rails: {rails}"
    )
    assert found == {"NCCL_SOCKET_IFNAME": "hsn", "NCCL_NET": "AWS Libfabric"}


def test_ethernet_ports_that_are_named_are_reached_by_verbs_and_others_not_at_all() -> None:
    assert set_by("type: ethernet") == {"NCCL_SOCKET_IFNAME": "general"}
    named = set_by("type: ethernet, rails: [{hca: 'mlx5_0:1', gpus: [0, 1]}]")
    assert named["NCCL_IB_HCA"] == "=mlx5_0:1"
    assert "NCCL_IB_GID_INDEX" not in named


def test_nothing_of_it_reaches_a_replica_on_one_node() -> None:
    fabric = f"type: infiniband, env: {{NCCL_NET: IB}}, srun: ['--network=x'], rails: {RAILS}"
    plan = resolved(fabric, ONE_NODE).plan
    assert plan.env == {"NCCL_SOCKET_IFNAME": "general", "HERE": "1"}
    assert plan.network is None
    assert "--network=x" not in step_words(plan, PurePosixPath("/r"))


def test_a_step_over_nodes_has_the_options_of_the_fabric() -> None:
    fabric = "type: slingshot, srun: ['--network=disable_rdzv_get,job_vni']"
    words = step_words(resolved(fabric).plan, PurePosixPath("/r"))
    assert "--network=disable_rdzv_get,job_vni" in words


def test_the_fabrics_own_values_win_over_derived_ones_and_the_jobs_over_all() -> None:
    fabric = f"type: infiniband, env: {{NCCL_IB_HCA: '=mlx5'}}, rails: {RAILS}"
    job = TWO_NODES + "env: {UCX_NET_DEVICES: all}\n"
    found = resolved(fabric, job)
    assert found.plan.env["NCCL_IB_HCA"] == "=mlx5"
    assert found.plan.env["UCX_NET_DEVICES"] == "all"
    (warning,) = found.warnings
    assert (warning.code, warning.severity) == ("plan.fabric-overridden", "warning")
    assert str(warning.where) == "job.yaml:8:7"
    assert "'mlx5_2:1,mlx5_0:1'" in warning.message


def test_a_job_that_says_the_same_is_not_warned() -> None:
    job = TWO_NODES + "env: {NCCL_SOCKET_IFNAME: ib}\n"
    assert resolved("type: infiniband, interface: ib", job).warnings == ()


def test_each_value_says_where_it_is_from() -> None:
    job = TWO_NODES + "env: {UCX_NET_DEVICES: all}\n"
    site = f"{SITE}    fabric:\n      type: infiniband\n      interface: ib\n"
    site += f"      env: {{A_B: x}}\n      rails: {RAILS}\n"
    found = {d.key: (d.value, d.source) for d in with_site(site, job).decisions}
    assert found["env.NCCL_IB_HCA"] == ("=mlx5_2:1,mlx5_0:1", "site.yaml:13")
    assert found["env.UCX_NET_DEVICES"] == ("all", "job.yaml:8")
    assert found["env.NCCL_SOCKET_IFNAME"] == ("ib", "site.yaml:11")
    assert found["env.A_B"] == ("x", "site.yaml:12")


def test_a_plan_holds_the_node_and_its_network_and_is_read_back() -> None:
    fabric = f"type: infiniband, rate: 400, srun: ['--network=x'], rails: {RAILS}"
    plan = resolved(fabric, TWO_NODES + "allow: [tcp-fallback]\n").plan
    assert plan.gpus == NodeGpus(
        count=2, link="nvlink4", domain=2, model="h100", cpus=("0-3", "4-7")
    )
    assert plan.network == Network(
        type="infiniband",
        rate=400,
        rails=(Rail(hca="mlx5_2:1", gpus=(0,)), Rail(hca="mlx5_0:1", gpus=(1,))),
        ports=2,
        srun=("--network=x",),
        variables=("NCCL_IB_HCA", "UCX_NET_DEVICES"),
        sockets=True,
    )
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_of_before_has_neither() -> None:
    data: dict[str, Any] = resolved("type: infiniband").plan.to_json()
    del data["gpus"], data["network"]
    read = Plan.from_json(data)
    assert (read.gpus, read.network) == (None, None)


def test_ports_without_names_are_counted_all_the_same() -> None:
    network = resolved("type: infiniband, nics: 4").plan.network
    assert network is not None
    assert (network.ports, network.rails) == (4, ())


@pytest.mark.parametrize(
    ("fabric", "more", "measured"),
    [
        ("type: infiniband, rate: 400", "", True),
        ("type: infiniband, rate: 400", "limits: {preflight: full}\n", True),
        ("type: infiniband, rate: 400", "limits: {preflight: quick}\n", False),
        ("type: infiniband, rate: 400", "allow: [tcp-fallback]\n", False),
        ("type: infiniband", "", False),
    ],
)
def test_links_are_measured_where_there_is_a_rate_to_compare_them_with(
    fabric: str, more: str, *, measured: bool
) -> None:
    assert resolved(fabric, TWO_NODES + more).plan.links is measured


def test_links_are_not_measured_on_one_node() -> None:
    assert not resolved("type: infiniband, rate: 400", ONE_NODE).plan.links
