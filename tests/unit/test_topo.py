"""``nvidia-smi topo -m`` of many drivers and machines; expected values are read off by eye."""

from __future__ import annotations

import pytest
from captures import capture

from launcher.parsers.text import ParseError, write_ranges
from launcher.parsers.topo import Cell, Distance, Topo, read_topo

TABLES = [
    # file, GPUs, NICs, links of GPU0-GPU1, CPUs of the first and the last GPU, their NUMA nodes
    ("topo_consumer_nv2_pair.txt", 2, 0, 2, ("0-23", "0-23"), None),
    ("topo_delta_a100x4_affinity.tsv", 4, 1, 4, ("48-63", "0-15"), ("3", "0")),
    ("topo_delta_a100x8_affinity.tsv", 8, 1, 12, ("48-63", "80-95"), ("3", "5")),
    ("topo_gh200_4gpu_cray_ex.txt", 4, 0, 6, ("0-71", "216-287"), ("0,5-11", "3,29-35")),
    ("topo_h200_2gpu_vm_escapes.txt", 2, 0, 18, ("0-31", "0-31"), ("0", "0")),
    (
        "topo_hgx_a100_8gpu_10nic_tabs.txt",
        8,
        10,
        12,
        ("0-63,128-191", "64-127,192-254"),
        ("0", "1"),
    ),
    ("topo_hgx_a100_8gpu_nonic.txt", 8, 0, 12, ("0-23", "24-47"), ("0", "1")),
    (
        "topo_hgx_h100_8gpu_10nic_gpurows.txt",
        8,
        10,
        18,
        ("0-55,112-167", "56-111,168-223"),
        ("0", "1"),
    ),
    ("topo_v100_sxm2_4gpu_2nic.txt", 4, 2, 2, ("0-23", "24-47"), ("0", "1")),
    ("topo_vm_pcie_4gpu_phb.txt", 4, 0, 0, ("0-47", "0-47"), ("0", "0")),
    (
        "topo_b200_8gpu_12nic_synthetic.txt",
        8,
        12,
        18,
        ("0-55,112-167", "56-111,168-223"),
        ("0", "1"),
    ),
    ("topo_h100_8gpu_2rails_synthetic.txt", 8, 2, 18, ("0-23", "24-47"), ("0", "1")),
    ("topo_a40_4gpu_nv4_pairs_synthetic.txt", 4, 0, 4, ("0-31,64-95", "32-63,96-127"), ("0", "1")),
]


@pytest.mark.parametrize(("name", "gpus", "nics", "links", "cpus", "numa"), TABLES)
def test_a_table_gives_its_gpus_adapters_links_and_cpus(
    name: str,
    gpus: int,
    nics: int,
    links: int,
    cpus: tuple[str, str],
    numa: tuple[str, str] | None,
) -> None:
    topo = read_topo(capture(name))
    assert topo.gpus == tuple(range(gpus))
    assert len(topo.nics) == nics
    wanted = Cell(Distance.NV, links) if links else Cell(Distance.PHB)
    assert topo.gpu_link(0, 1) == topo.gpu_link(1, 0) == wanted
    assert (write_ranges(topo.cpus[0]), write_ranges(topo.cpus[gpus - 1])) == cpus
    if numa is None:
        assert not topo.numa
    else:
        assert (write_ranges(topo.numa[0]), write_ranges(topo.numa[gpus - 1])) == numa


def test_the_legend_names_the_adapters() -> None:
    topo = read_topo(capture("topo_hgx_a100_8gpu_10nic_tabs.txt"))
    assert [nic.device for nic in topo.nics] == [f"mlx5_{n}" for n in range(10)]
    assert topo.between("GPU0", "NIC2") == topo.between("NIC2", "GPU0") == Cell(Distance.PXB)
    assert topo.between("GPU0", "NIC6") == Cell(Distance.SYS)
    assert topo.between("NIC6", "NIC7") == Cell(Distance.PIX)
    assert not topo.unread


def test_a_legend_without_its_heading_counts() -> None:
    topo = read_topo(capture("topo_v100_sxm2_4gpu_2nic.txt"))
    assert [nic.device for nic in topo.nics] == ["mlx5_0", "mlx5_1"]


def test_without_a_legend_numbered_adapters_have_no_name() -> None:
    topo = read_topo(capture("topo_hgx_h100_8gpu_10nic_gpurows.txt"))
    assert [nic.head for nic in topo.nics] == [f"NIC{n}" for n in range(10)]
    assert {nic.device for nic in topo.nics} == {None}
    pix = {g: [n.head for n in topo.nics if near(topo, g, n.head)] for g in topo.gpus}
    assert pix == {
        gpu: [f"NIC{nic}"] for gpu, nic in enumerate((0, 1, 2, 5, 6, 7, 8, 9))
    }  # NIC3 and NIC4 are near to none


def near(topo: Topo, gpu: int, nic: str) -> bool:
    cell = topo.between(f"GPU{gpu}", nic)
    return cell is not None and cell.distance is Distance.PIX


def test_old_drivers_head_adapters_by_name_and_have_no_numa_column() -> None:
    topo = read_topo(capture("topo_dgx2_16gpu_10mlx_partial.txt"))
    assert topo.gpus == tuple(range(16))
    assert [nic.device for nic in topo.nics] == [f"mlx5_{n}" for n in range(10)]
    assert set(topo.cpus) == {0, 1, 2, 3}
    assert write_ranges(topo.cpus[3]) == "0-23,48-71"
    assert topo.gpu_link(15, 0) == Cell(Distance.NV, 6)
    assert topo.gpu_link(4, 5) is None
    assert topo.between("GPU2", "mlx5_0") == Cell(Distance.PXB)


def test_hopper_memory_is_a_numa_node_of_its_own() -> None:
    topo = read_topo(capture("topo_gh200_4gpu_cray_ex.txt"))
    assert topo.gpu_numa == {0: 4, 1: 12, 2: 20, 3: 28}
    assert not read_topo(capture("topo_h200_2gpu_vm_escapes.txt")).gpu_numa


def test_what_follows_the_table_is_not_read_as_rows() -> None:
    topo = read_topo(capture("topo_h200_2gpu_vm_escapes.txt"))
    assert len(topo.cells) == 4
    assert topo.unread[0] == "---"
    assert any("Link 0" in line for line in topo.unread)


def test_columns_that_ran_into_each_other_are_taken_apart() -> None:
    topo = read_topo(capture("topo_merged_columns_synthetic.txt"))
    cpus = {gpu: write_ranges(found) for gpu, found in topo.cpus.items()}
    assert cpus == {0: "0-31,64-95", 1: "0-31,64-95", 2: "32-63,96-127", 3: "32-63,96-127"}
    assert set(topo.numa) == {3}


@pytest.mark.parametrize("word", ["0-310", "0-15", "7", "0-31,64-95"])
def test_a_short_row_is_not_taken_apart_on_a_guess(word: str) -> None:
    text = (
        f"\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\nGPU0\t X \tSYS\t{word}\nGPU1\tSYS\t X \t\n\n"
    )
    topo = read_topo(text)
    assert not topo.cpus
    assert topo.gpu_link(0, 1) == Cell(Distance.SYS)


def test_a_table_of_peer_access_is_refused_as_such() -> None:
    with pytest.raises(ParseError, match="topo -p2p"):
        read_topo(capture("topo_p2p_r_8xh100.txt"))


def test_a_table_of_peer_access_beside_it_does_no_harm() -> None:
    text = capture("topo_2gpu_node_then_p2p.txt")
    table, access = text.split("\n\n          GPU0 GPU1\n")
    for both in (text, f"          GPU0 GPU1\n{access}\n{table}\n"):
        topo = read_topo(both)
        assert topo.gpu_link(0, 1) == Cell(Distance.NODE)
        assert write_ranges(topo.cpus[1]) == "0-15"
    alone = "\tGPU0\tCPU Affinity\nGPU0\t X \t0-7\n\tGPU0\nGPU0\tX\n  OK   = Status Ok\n"
    assert write_ranges(read_topo(alone).cpus[0]) == "0-7"


def test_cpus_that_the_tool_itself_has_cut_off_are_unknown() -> None:
    topo = read_topo(capture("topo_v100_pcie_2gpu_clipped_cpus.txt"))
    assert not topo.cpus
    assert topo.numa == {0: frozenset({0}), 1: frozenset({1})}
    short = "\tGPU0\tCPU Affinity\tNUMA Affinity\nGPU0\t X \t0,2,4,6\t0\n"
    assert topo.gpu_link(0, 1) == Cell(Distance.SYS)
    assert write_ranges(read_topo(short).cpus[0]) == "0,2,4,6"


def test_the_table_of_amd_is_refused() -> None:
    with pytest.raises(ParseError, match="no distances"):
        read_topo("       GPU0   GPU1\nGPU0   0      XGMI\nGPU1   XGMI   0\n")


@pytest.mark.parametrize("text", ["", "\n", "bash: nvidia-smi: command not found\n", "GPU 0: H100"])
def test_no_table_is_an_error_that_says_what_there_is(text: str) -> None:
    with pytest.raises(ParseError, match=r"not the table of `nvidia-smi topo -m`, but "):
        read_topo(text)


@pytest.mark.parametrize(
    "escape", ["\x1b[4m{}\x1b[0m", "[4m{}[0m", "^[[4m{}^[[0m", "\\033[4m{}\\e[0m"]
)
def test_escapes_are_dropped_in_every_spelling(escape: str) -> None:
    head = escape.format("GPU0\tGPU1\tCPU Affinity\tNUMA Affinity")
    topo = read_topo(f"\t{head}\nGPU0\t X \tNV4\t0-3\t0\nGPU1\tNV4\t X \t4-7\t1\n")
    assert topo.gpu_link(0, 1) == Cell(Distance.NV, 4)
    assert topo.cpus == {0: frozenset(range(4)), 1: frozenset(range(4, 8))}


def test_pairs_that_contradict_each_other_are_not_believed() -> None:
    topo = read_topo("\tGPU0\tGPU1\nGPU0\t X \tNV12\nGPU1\tNV1\t X \n")
    assert topo.gpu_link(0, 1) is None
    assert "GPU0 GPU1: NV12 NV1" in topo.unread


def test_a_row_with_a_column_too_many_is_not_read() -> None:
    topo = read_topo(
        "\tGPU0\tGPU1\tNIC0\tCPU Affinity\n"
        "GPU0\t X \tNV4\tPIX\tSYS\t0-3\nGPU1\tNV4\t X \tSYS\t4-7\n"
    )
    assert topo.between("GPU0", "NIC0") is None
    assert topo.cpus == {1: frozenset(range(4, 8))}
    assert len(topo.unread) == 1


def test_the_end_of_a_cut_capture_is_not_believed() -> None:
    topo = read_topo("\tGPU0\tCPU Affinity\nGPU0\t X \t0-71"[:-1])
    assert not topo.cpus
    assert topo.gpus == (0,)


def test_a_lone_gpu_whose_row_is_cut_is_still_a_gpu() -> None:
    assert read_topo("\tGPU0\nGPU0\t X").gpus == (0,)
