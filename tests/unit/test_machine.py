"""Which GPU a site file means, and what joins those of a replica."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.plan.constants import GPUS, Gpu, find_gpu
from launcher.plan.machine import find_machine
from launcher.plan.types import Cut
from launcher.sites import load_site
from launcher.spec.leaves import Bytes
from launcher.spec.site import Fabric, Gpus, Rail

SITES = Path(__file__).resolve().parents[2] / "site_configs"
GB = 10**9
# Site files that do not say how much memory their GPUs have, or have some that are in no data
# sheet here: 96 GB of an H100.
UNKNOWN = {"isambard-ai", "snellius", "stampede3"}


@pytest.mark.parametrize(
    ("model", "memory", "link", "family", "bandwidth"),
    [
        ("h100", 80 * GB, None, "h100", 3350e9),
        ("H100", 85899345920, "nvlink4", "h100", 3350e9),
        ("h100", 80 * GB, "pcie", "h100", 2000e9),
        ("NVIDIA H100 80GB HBM3", None, None, "h100", 3350e9),
        ("NVIDIA H100 NVL", 94 * GB, None, "h100", 3900e9),
        ("h100", 64 * GB, None, "h100", 1600e9),
        ("a100-sxm4-40gb", None, None, "a100", 1555e9),
        ("a100", 40 * GB, "nvlink3", "a100", 1555e9),
        ("l40s", None, "pcie", "l40s", 864e9),
        ("L40", None, None, "l40", 864e9),
        ("h200", 143771 * 2**20, None, "h200", 4800e9),
        ("gh200", 96 * GB, None, "gh200", 4000e9),
        ("Tesla V100-SXM2-32GB", None, None, "v100", 900e9),
        ("NVIDIA GeForce RTX 4090", None, None, "rtx-4090", 1008e9),
    ],
)
def test_a_gpu_is_known_by_what_sites_call_it(
    model: str, memory: int | None, link: str | None, family: str, bandwidth: float
) -> None:
    found = find_gpu(model, memory, link)
    assert found is not None
    assert (found.family, found.hbm_bytes_s) == (family, bandwidth)


@pytest.mark.parametrize(
    ("model", "memory"),
    [
        ("a100", None),  # of 40, 64 or 80 GB
        ("h100", 120 * GB),
        ("h1000", None),
        ("mi250x", 64 * GB),
        ("", None),
    ],
)
def test_a_gpu_that_could_be_another_is_not_guessed(model: str, memory: int | None) -> None:
    assert find_gpu(model, memory) is None


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"{gpu.family}-{gpu.memory_gb}")
def test_fewer_bits_are_computed_faster_and_nvlink_beats_the_slot(gpu: Gpu) -> None:
    rates = [gpu.flops[name] for name in ("bf16", "fp8", "fp4") if name in gpu.flops]
    assert rates == sorted(rates)
    assert (gpu.nvlink_bytes_s or float("inf")) > gpu.pcie_bytes_s


@pytest.mark.parametrize("path", sorted(SITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_gpus_of_each_shipped_site_are_known(path: Path) -> None:
    partitions = load_site(str(path), "shipped").spec.partitions.values()
    known = [
        find_machine(partition.gpus, partition.fabric, Cut(), 1) is not None
        for partition in partitions
        if partition.gpus
    ]
    assert all(known) != (path.stem in UNKNOWN)


def gpus(**more: object) -> Gpus:
    return Gpus(**({"model": "a100", "per_node": 4, "memory": Bytes(40 * GB)} | more))  # type: ignore[arg-type]


def test_without_a_switch_two_gpus_have_but_the_links_between_them() -> None:
    mesh = gpus(link="nvlink3", links=4, topology="all-to-all")
    rates = [
        machine.links.gpu_bytes_s
        for tp in (2, 4)
        if (machine := find_machine(mesh, None, Cut(tp=tp), 1))
    ]
    assert rates == [100e9, 300e9]


def test_bridges_join_two_and_more_go_through_their_slots() -> None:
    bridged = gpus(model="a40", memory=Bytes(48 * GB), link="nvlink3", topology="pairs")
    found = [find_machine(bridged, None, Cut(tp=tp), 1) for tp in (2, 4)]
    assert [(m.links.nvlink, m.links.gpu_bytes_s) for m in found if m] == [
        (True, 56.25e9),
        (False, 31.5e9),
    ]


def test_a_node_sends_through_the_ports_near_to_its_gpus() -> None:
    rails = [Rail(hca="mlx5_0", gpus=[0, 1]), Rail(hca="mlx5_1", gpus=[2, 3])]
    storage = Rail(hca="mlx5_2", gpus=[])
    fabric = Fabric(type="infiniband", rate=200, rails=[*rails, storage])
    machine = find_machine(gpus(), fabric, Cut(tp=4, pp=2), 2)
    assert machine is not None
    assert (machine.links.node_bytes_s, machine.links.per_node) == (50e9, 4)


@pytest.mark.parametrize(
    "fabric",
    [None, Fabric(type="infiniband")],
    ids=["none", "no rate"],
)
def test_a_network_that_the_site_does_not_tell_of_stays_unknown(fabric: Fabric | None) -> None:
    machine = find_machine(gpus(), fabric, Cut(tp=4, pp=2), 2)
    assert machine is not None
    assert machine.links.node_bytes_s is None
