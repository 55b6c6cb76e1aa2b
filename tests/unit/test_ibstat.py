"""``ibstat``, ``ibdev2netdev``, ``lscpu`` and ``srun --mpi=list``."""

from __future__ import annotations

import pytest
from captures import capture

from launcher.parsers.ibdev2netdev import Netdev, read_ibdev2netdev
from launcher.parsers.ibstat import Port, read_ibstat
from launcher.parsers.lscpu import read_lscpu
from launcher.parsers.mpi_list import read_mpi_list
from launcher.parsers.text import ParseError, write_ranges


def test_ports_come_by_number_with_their_state() -> None:
    found = read_ibstat(capture("ibstat_hgx_8xcx7_ndr400.txt"))
    assert [port.name for port in found.ports] == [f"mlx5_{n}:1" for n in range(12)]
    assert found.ports[10] == Port("mlx5_10", 1, "Active", "LinkUp", 400, "InfiniBand")
    assert found.ports[1] == Port("mlx5_1", 1, "Down", "Disabled", 40, "Ethernet")
    assert found.ports[7] == Port("mlx5_7", 1, "Active", "LinkUp", 100, "Ethernet")
    infiniband = [port.adapter for port in found.ports if port.infiniband]
    assert infiniband == [f"mlx5_{n}" for n in (0, 3, 4, 5, 6, 9, 10, 11)]
    assert not found.unread


def test_ports_of_all_states_are_told_apart() -> None:
    found = read_ibstat(capture("ibstat_dual_port_and_storage_synthetic.txt"))
    assert {port.name: port.infiniband for port in found.ports} == {
        "mlx5_0:1": True,
        "mlx5_0:2": True,
        "mlx5_2:1": False,  # Initializing
        "mlx5_10:1": True,
        "mlx5_11:1": None,  # cut off
        "mlx5_bond_0:1": False,
    }


def test_a_number_at_which_the_capture_ends_is_not_believed() -> None:
    found = read_ibstat(capture("ibstat_dual_port_and_storage_synthetic.txt"))
    cut = next(port for port in found.ports if port.adapter == "mlx5_11")
    assert (cut.state, cut.rate_gbps, cut.link_layer) == ("Active", None, None)
    assert found.unread == ("\t\tRate: 20",)


@pytest.mark.parametrize("lost", ["CA 'mlx5_1'", "CA 'mlx5_10'", "CA 'mlx5_7'"])
def test_ports_of_an_adapter_whose_name_is_lost_go_to_no_other(lost: str) -> None:
    whole = capture("ibstat_hgx_8xcx7_ndr400.txt")
    found = read_ibstat(whole.replace(f"{lost}\n", ""))
    kept = [port for port in read_ibstat(whole).ports if f"'{port.adapter}'" not in lost]
    assert list(found.ports) == kept
    assert found.unread


@pytest.mark.parametrize(
    ("text", "of"),
    [
        ("hca_id:\tmlx5_0\n\ttransport:\tInfiniBand (0)\n", "ibv_devinfo"),
        ("Infiniband device 'mlx5_0' port 1 status:\n\tstate: 4: ACTIVE\n", "ibstatus"),
        ("mlx5_0 port 1 ==> ib0 (Up)\n", "ibdev2netdev"),
        ("ibpanic: [12] main: can't open UMAD\n", "ibpanic"),
    ],
)
def test_the_output_of_other_tools_is_refused_by_name(text: str, of: str) -> None:
    with pytest.raises(ParseError, match=of):
        read_ibstat(text)


def test_nothing_is_no_port() -> None:
    assert read_ibstat("").ports == ()


def test_a_panic_behind_the_ports_is_reported() -> None:
    panic = "ibpanic: [12] main: stat of IB device failed"
    found = read_ibstat(f"{capture('ibstat_hgx_8xcx7_ndr400.txt')}{panic}\n")
    assert len(found.ports) == 12
    assert found.unread == (panic,)


def test_interfaces_are_read_in_all_layouts() -> None:
    found = read_ibdev2netdev(capture("ibdev2netdev_hgx_h100_pure_ib_column.txt"))
    assert [n.port for n in found.ports] == [f"mlx5_{n}:1" for n in range(12)]
    assert found.ports[10] == Netdev("mlx5_10:1", "ibp204s0")
    assert found.ports[1] == Netdev("mlx5_1:1", "enp27s0f0np0")
    assert not found.unread
    four = read_ibdev2netdev(capture("ibdev2netdev_dgx_4ib_up.txt"))
    assert [n.netdev for n in four.ports] == ["ib0", "ib1", "ib2", "ib3"]
    roce = read_ibdev2netdev(capture("ibdev2netdev_roce_4port.txt"))
    assert [n.netdev for n in roce.ports] == ["eth2", "eth3", "eth4", "eth5"]
    long = read_ibdev2netdev(capture("ibdev2netdev_v_connectx4_5_6.txt"))
    assert not long.unread
    assert [(n.port, n.netdev, n.pci) for n in long.ports] == [
        ("mlx5_0:1", "ens4f0", "0000:31:00.0"),
        ("mlx5_2:1", "ens6", "0000:4b:00.0"),
        ("mlx5_3:1", "ib2", "0000:02:00.5"),
        ("mlx5_13:1", "ib4", "0000:b8:00.1"),
    ]
    two = read_ibdev2netdev(capture("ibdev2netdev_two_ports.txt"))
    assert two.ports == (Netdev("mlx5_0:1", "ib0"), Netdev("mlx5_1:1", "ib1"))


def test_the_long_form_has_pci_addresses_and_a_port_may_have_no_interface() -> None:
    found = read_ibdev2netdev(
        "0000:18:00.0 mlx5_0 (MT4129 - MCX75310AAS-NEAT) ConnectX-7 single-port OSFP fw 28.41.1000"
        " port 1 (ACTIVE) ==> ibp24s0 (Down)\r\nmlx5_9 port 1 ==> N/A (Down)\r\nmlx5_3 port 1 ==>\n"
    )
    assert found.ports == (
        Netdev("mlx5_0:1", "ibp24s0", "0000:18:00.0"),
        Netdev("mlx5_9:1", None),
    )
    assert found.unread == ("mlx5_3 port 1 ==>",)


@pytest.mark.parametrize(
    ("name", "arch", "counts", "numa"),
    [
        (
            "lscpu_epyc_nps4_synthetic.txt",
            "x86_64",
            (64, 1, 64, 1),
            {0: "0-15", 1: "16-31", 2: "32-47", 3: "48-63"},
        ),
        ("lscpu_grace_synthetic.txt", "aarch64", (72, 1, 72, 1), {0: "0-71"}),
        (
            "lscpu_json_2socket_synthetic.json",
            "x86_64",
            (96, 2, 24, 2),
            {0: "0-23,48-71", 1: "24-47,72-95"},
        ),
    ],
)
def test_lscpu_tells_sockets_cores_threads_and_numa_nodes(
    name: str, arch: str, counts: tuple[int, ...], numa: dict[int, str]
) -> None:
    found = read_lscpu(capture(name))
    assert found.arch == arch
    assert counts == (
        found.cpus,
        found.sockets,
        found.cores_per_socket,
        found.threads_per_core,
    )
    assert {node: write_ranges(cpus) for node, cpus in found.numa.items()} == numa


def test_what_lscpu_leaves_open_is_unknown_and_a_cut_line_is_not_read() -> None:
    found = read_lscpu("Architecture: aarch64\nCPU(s): 288\nSocket(s): -\nNUMA node0 CPU(s): 0-7")
    assert (found.cpus, found.sockets, found.numa) == (288, None, {})


@pytest.mark.parametrize("text", ["", "lscpu: not found\n", "{}", '{"lscpu": [', '{"lscpu": 3}'])
def test_what_is_no_lscpu_is_refused(text: str) -> None:
    with pytest.raises(ParseError, match=r"lscpu|JSON"):
        read_lscpu(text)


def test_process_managers_are_read_from_the_listing_of_any_version() -> None:
    new = ("cray_shasta", "none", "pmi2", "pmix", "pmix_v3", "pmix_v4")
    assert read_mpi_list(capture("srun_mpi_list.txt")) == new
    old = "srun: MPI types are...\nsrun: none\nsrun: pmi2\nsrun: openmpi\n"
    assert read_mpi_list(old) == ("none", "openmpi", "pmi2")


def test_a_cut_name_is_no_process_manager() -> None:
    assert read_mpi_list(capture("srun_mpi_list.txt")[:-2])[-1] == "pmix_v3"


def test_a_refusal_of_srun_is_no_listing() -> None:
    with pytest.raises(ParseError, match="Unable to contact"):
        read_mpi_list("srun: error: Unable to contact slurm controller\n")
