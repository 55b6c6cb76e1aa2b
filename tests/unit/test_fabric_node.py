"""Rails, NVLink groups and CPUs of a node; expected values are worked out by hand."""

from __future__ import annotations

import pytest
from captures import capture, ibstat_of

from launcher.fabric.node import NodeTopology, nearest, node_topology
from launcher.parsers.ibdev2netdev import read_ibdev2netdev
from launcher.parsers.ibstat import read_ibstat
from launcher.parsers.text import write_ranges
from launcher.parsers.topo import Distance, read_topo


def node(name: str, ibstat: str | None = None) -> NodeTopology:
    return node_topology(read_topo(capture(name)), None if ibstat is None else read_ibstat(ibstat))


def rails(found: NodeTopology) -> dict[str, tuple[int, ...]] | None:
    return None if found.rails is None else {rail.port: rail.gpus for rail in found.rails}


def mlx(*numbers: int, rate: int = 400, layer: str = "InfiniBand") -> str:
    return ibstat_of((f"mlx5_{n}" for n in numbers), rate=rate, layer=layer)


def test_ethernet_ports_that_are_down_are_no_rails_though_they_are_nearest() -> None:
    found = node("topo_hopper_8gpu_12nic_synthetic.txt", capture("ibstat_hgx_8xcx7_ndr400.txt"))
    numbers = (0, 3, 4, 5, 6, 9, 10, 11)
    assert rails(found) == {f"mlx5_{n}:1": (gpu,) for gpu, n in enumerate(numbers)}
    assert [rail.port for rail in found.rails or ()][-2:] == ["mlx5_10:1", "mlx5_11:1"]
    assert found.rate_gbps == 400
    assert found.left_out["mlx5_1:1"] == "Ethernet, Down, Disabled"
    assert found.left_out["mlx5_7:1"] == "Ethernet, Active, LinkUp"
    assert not found.unknown


def test_one_to_one_where_two_gpus_and_two_ports_share_a_switch() -> None:
    found = node("topo_hgx_a100_8gpu_10nic_tabs.txt", mlx(*range(10), rate=200))
    assert rails(found) == {
        "mlx5_0:1": (2,),
        "mlx5_1:1": (3,),
        "mlx5_2:1": (0,),
        "mlx5_3:1": (1,),
        "mlx5_4:1": (6,),
        "mlx5_5:1": (7,),
        "mlx5_8:1": (4,),
        "mlx5_9:1": (5,),
    }
    assert set(found.left_out) == {"mlx5_6:1", "mlx5_7:1"}  # storage: no GPU is near
    assert [rail.port for rail in found.rails or ()] == [
        f"mlx5_{n}:1" for n in (0, 1, 2, 3, 4, 5, 8, 9)
    ]


def test_six_rails_serve_eight_gpus_and_storage_none() -> None:
    found = node("topo_h100_8gpu_6rails_synthetic.txt", mlx(0, 1, 2, 5, 6, 7, 8))
    assert rails(found) == {
        "mlx5_0:1": (0, 3),
        "mlx5_1:1": (1,),
        "mlx5_2:1": (2,),
        "mlx5_5:1": (4, 7),
        "mlx5_6:1": (5,),
        "mlx5_7:1": (6,),
    }
    assert set(found.left_out) == {"mlx5_8:1"}


def test_two_rails_serve_the_gpus_of_their_sockets() -> None:
    found = node("topo_h100_8gpu_2rails_synthetic.txt", mlx(0, 3, rate=200))
    assert rails(found) == {"mlx5_0:1": (0, 1, 2, 3), "mlx5_3:1": (4, 5, 6, 7)}
    assert found.rate_gbps == 200


def test_one_rail_serves_all_gpus_and_cpus_come_in_the_order_of_the_gpus() -> None:
    found = node("topo_a100_4gpu_nps4_synthetic.txt", mlx(0, rate=200))
    assert rails(found) == {"mlx5_0:1": (0, 1, 2, 3)}
    cpus = [write_ranges(found.cpus[gpu]) for gpu in found.gpus]
    assert cpus == ["48-63", "32-47", "16-31", "0-15"]


def test_two_gpus_share_the_port_behind_their_switch() -> None:
    found = node("topo_a100_4gpu_shared_pxb_synthetic.txt", mlx(0, 1, rate=200))
    assert rails(found) == {"mlx5_0:1": (0, 1), "mlx5_1:1": (2, 3)}


def test_one_grace_hopper_has_one_rail() -> None:
    found = node("topo_gh200_1gpu_synthetic.txt", mlx(0))
    assert rails(found) == {"mlx5_0:1": (0,)}
    assert found.nvlink is not None
    assert (found.nvlink.topology, found.nvlink.domain) == ("none", 1)


def test_in_a_virtual_machine_gpus_and_ports_are_paired_by_number_and_that_is_said() -> None:
    found = node("topo_vm_8gpu_8nic_phb_synthetic.txt", mlx(*range(8)))
    assert rails(found) == {f"mlx5_{n}:1": (n,) for n in range(8)}
    assert "paired by number" in found.unknown["gpus"]


def test_which_of_too_many_equally_far_ports_are_rails_is_not_guessed() -> None:
    text = (
        "\tGPU0\tNIC0\tNIC1\nGPU0\t X \tPHB\tPHB\n\nNIC Legend:\n  NIC0: mlx5_0\n  NIC1: mlx5_1\n"
    )
    found = node_topology(read_topo(text), read_ibstat(mlx(0, 1)))
    assert found.rails is None
    assert found.unknown["rails"] == "2 ports are equally far from 1 GPUs"


def test_ports_at_lower_rates_are_not_for_gpus() -> None:
    found = node("topo_v100_sxm2_4gpu_2nic.txt", mlx(0, rate=100) + mlx(1, rate=56))
    assert rails(found) == {"mlx5_0:1": (0, 1, 2, 3)}
    assert found.left_out["mlx5_1:1"] == "56 Gbit/s, others have 100"


def test_a_node_of_ethernet_ports_has_no_rails() -> None:
    found = node("topo_v100_sxm2_4gpu_2nic.txt", mlx(0, 1, layer="Ethernet"))
    assert rails(found) == {}
    assert found.rate_gbps is None


def test_without_a_legend_the_rails_of_several_ports_are_unknown() -> None:
    found = node("topo_hgx_h100_8gpu_10nic_gpurows.txt", mlx(*range(10)))
    assert found.rails is None
    assert "no distance from GPU0" in found.unknown["rails"]


def test_without_ibstat_rails_are_unknown_and_the_rest_is_not() -> None:
    found = node("topo_v100_sxm2_4gpu_2nic.txt")
    assert found.rails is None
    assert "ibstat" in found.unknown["rails"]
    assert write_ranges(found.cpus[2]) == "24-47"


def test_an_ibstat_that_stops_early_gives_no_rails() -> None:
    whole = mlx(0, 1, rate=100)
    found = node("topo_v100_sxm2_4gpu_2nic.txt", whole[: whole.rindex("\t\tLink")])
    assert found.rails is None
    assert found.unknown["rails"] == "ibstat does not say all of mlx5_1:1"


def test_interfaces_are_names_only_and_their_down_does_not_count() -> None:
    topo = read_topo(capture("topo_hopper_8gpu_12nic_synthetic.txt"))
    names = read_ibdev2netdev(capture("ibdev2netdev_hgx_h100_pure_ib_column.txt"))
    found = node_topology(topo, read_ibstat(mlx(0, 3, 4, 5, 6, 9, 10, 11)), names)
    assert [rail.netdev for rail in found.rails or ()] == [
        "ibp26s0",
        "ibp60s0",
        "ibp77s0",
        "ibp94s0",
        "ibp156s0",
        "ibp188s0",
        "ibp204s0",
        "ibp220s0",
    ]


@pytest.mark.parametrize(
    ("name", "topology", "groups", "links", "domain"),
    [
        ("topo_b200_8gpu_12nic_synthetic.txt", "all-to-all", 1, 18, 8),
        ("topo_hgx_a100_8gpu_nonic.txt", "all-to-all", 1, 12, 8),
        ("topo_gh200_4gpu_cray_ex.txt", "all-to-all", 1, 6, 4),
        ("topo_consumer_nv2_pair.txt", "all-to-all", 1, 2, 2),
        ("topo_a40_4gpu_nv4_pairs_synthetic.txt", "pairs", 2, 4, 2),
        ("topo_vm_pcie_4gpu_phb.txt", "none", 4, None, 1),
        ("topo_v100_8gpu_mesh_synthetic.txt", "partial", 0, None, 1),
    ],
)
def test_nvlink_joins(
    name: str, topology: str, groups: int, links: int | None, domain: int
) -> None:
    found = node(name).nvlink
    assert found is not None
    assert (found.topology, len(found.groups), found.links, found.domain) == (
        topology,
        groups,
        links,
        domain,
    )


def test_of_a_table_that_lacks_rows_nvlink_is_unknown() -> None:
    found = node("topo_dgx2_16gpu_10mlx_partial.txt")
    assert found.nvlink is None
    assert "GPU4" in found.unknown["cpus"]


def test_gpus_with_a_port_of_their_own_choose_before_those_without() -> None:
    far = {0: {"a0": Distance.NODE, "a1": Distance.NODE}, 1: {"a0": Distance.PIX}}
    assert nearest(far, ["a0", "a1"]) == {"a0": (1,), "a1": (0,)}


def test_ports_are_taken_by_number_not_by_text() -> None:
    far = {0: {"mlx5_10:1": Distance.SYS, "mlx5_2:1": Distance.SYS}}
    assert nearest(far, ["mlx5_10:1", "mlx5_2:1"]) == {"mlx5_2:1": (0,)}
