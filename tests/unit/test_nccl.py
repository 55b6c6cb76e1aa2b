"""What NCCL's log says of the network, line by line and judged by what the plan expects."""

from __future__ import annotations

import pytest
from captures import CAPTURES, capture
from hypothesis import given
from hypothesis import strategies as st

from launcher.parsers.nccl import Expected, Finding, NcclReader, classify

RAILS = tuple(f"mlx5_{n}:1" for n in range(8))


def cases(name: str) -> dict[str, list[str]]:
    """Lines by the "## " line above them."""
    found: dict[str, list[str]] = {}
    for line in (CAPTURES / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            found[line[3:].split()[0]] = []
        elif not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


REAL = cases("nccl_log_ib_ok_and_bad.txt")
MORE = cases("nccl_log_more_synthetic.txt")


@pytest.mark.parametrize(
    ("case", "kinds"),
    [
        ("ok_ib", [("infiniband", True)]),
        ("extra_roce_bond", [("roce", False)]),
        ("wrong_plugin_fastsocket", [("plugin", False)]),
        ("tcp_fallback", [("sockets", False)]),
        ("slingshot_ok", [("plugin", True)]),
        ("slingshot_plugin_missing", [("plugin-missing", False), ("network-missing", False)]),
        ("snellius_a100_mixed_ib_roce", [("roce", False)]),
        ("dgxh100_only_roce_found", [("roce", False)]),
        ("no_libibverbs_socket_over_ipoib", [("no-verbs", False), ("sockets", False)]),
        ("hpcx_plugin_ok", [("infiniband", True), ("network", True)]),
        ("merged_ports_roce", [("roce", False), ("network", True)]),
        (
            "slingshot_gdr_on_one_node_alone",
            [("provider", True), ("plugin", True), ("gdr", True), ("no-gdr", False)],
        ),
    ],
)
def test_captured_lines_are_judged(case: str, kinds: list[tuple[str, bool]]) -> None:
    found = [classify(line) for line in REAL[case]]
    assert [(one.kind, one.good) for one in found if one] == kinds


@pytest.mark.parametrize(
    ("case", "kind", "good"),
    [
        ("rank_by_srun_label", "gdr", True),
        ("rank_by_mpirun_tag", "p2p", True),
        ("engine_prefix_and_time", "interface", False),
        ("no_port", "no-port", False),
        ("no_interface", "no-interface", False),
        ("no_gdr", "no-gdr", False),
        ("host_bounce", "no-gdr", False),
        ("shm", "shm", True),
        ("retry", "retry-exceeded", False),
        ("retry_old", "retry-exceeded", False),
        ("protection", "protection", False),
        ("mixed", "mixed-links", False),
        ("no_transport", "no-transport", False),
        ("versions", "version-mismatch", False),
        ("no_route", "no-route", False),
        ("gdr_over_pci", "gdr", True),
        ("gdr_over_libfabric", "gdr", True),
        ("libfabric_host_bounce", "no-gdr", False),
        ("libfabric_over_tcp", "provider", False),
        ("libfabric_over_slingshot", "provider", True),
        ("libfabric_gave_up", "completion", False),
        ("no_network", "network-missing", False),
        ("rdma_plugin", "network", True),
        ("rdma_plugin_gdr", "gdr", True),
        ("assigned", "sockets", False),
    ],
)
def test_lines_of_other_faults_are_judged(case: str, kind: str, good: object) -> None:
    (line,) = MORE[case]
    found = classify(line)
    assert found is not None
    assert (found.kind, found.good) == (kind, good)
    assert found.host in {"h1", "h2"}
    assert "{" not in found.message + (found.hint or "")


@pytest.mark.parametrize(
    "case",
    [
        "plain_plugin",
        "internal_plugin",
        "initialised_only",
        "no_port_at_all",
        "not_about_the_network",
    ],
)
def test_lines_that_say_nothing_of_the_network_are_passed_over(case: str) -> None:
    assert [classify(line) for line in MORE[case]] == [None]


def test_the_rank_is_that_of_the_launchers_label() -> None:
    assert one(MORE["rank_by_srun_label"]).rank == 3
    assert one(MORE["rank_by_mpirun_tag"]).rank == 5
    assert one(MORE["no_gdr"]).rank is None


def test_a_peer_that_is_lost_is_named() -> None:
    found = one(MORE["retry"])
    assert found.values == ("10.1.0.7",)
    assert "10.1.0.7 does not answer" in found.message


def test_devices_are_those_of_the_line() -> None:
    assert one(REAL["ok_ib"]).values == RAILS
    assert one(REAL["extra_roce_bond"]).values == ("mlx5_bond_0:1",)
    assert one(REAL["tcp_fallback"]).values == ("eth0",)
    assert one(REAL["merged_ports_roce"]).values == tuple(f"mlx5_{n}:1" for n in (2, 3, 0, 1))


def one(lines: list[str], expected: Expected | None = None) -> Finding:
    found = classify(lines[0], expected or Expected())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("case", "expected", "kind", "good"),
    [
        ("ok_ib", Expected("infiniband", RAILS), "infiniband", True),
        ("ok_ib", Expected("infiniband", RAILS[:4]), "extra-port", False),
        ("ok_ib", Expected("infiniband", (*RAILS, "mlx5_9:1")), "rail-missing", False),
        ("tcp_fallback", Expected("infiniband"), "sockets", False),
        ("tcp_fallback", Expected("slingshot"), "sockets", False),
        ("tcp_fallback", Expected("ethernet"), "sockets", True),
        ("tcp_fallback", Expected("infiniband", over_nodes=False), "sockets", True),
        ("slingshot_ok", Expected("slingshot"), "plugin", True),
        ("slingshot_ok", Expected("infiniband"), "plugin", False),
        ("dgxh100_only_roce_found", Expected("ethernet"), "infiniband", True),
        ("merged_ports_roce", Expected("infiniband", RAILS[:4]), "roce", False),
    ],
)
def test_the_verdict_is_that_of_the_fabric(
    case: str, expected: Expected, kind: str, good: object
) -> None:
    found = one(REAL[case], expected)
    assert (found.kind, found.good) == (kind, good)


def test_copies_through_the_node_matter_between_nodes_of_a_fast_fabric() -> None:
    (line,) = MORE["libfabric_host_bounce"]
    assert not one([line], Expected("slingshot")).good
    assert one([line], Expected("ethernet")).good
    assert one([line], Expected("slingshot", over_nodes=False)).good
    assert "AWS Libfabric" in one([line]).message


def test_libfabric_over_tcp_is_as_the_site_has_it_on_ethernet_alone() -> None:
    assert not one(MORE["libfabric_over_tcp"], Expected("slingshot")).good
    assert one(MORE["libfabric_over_tcp"], Expected("ethernet")).good


def test_memory_of_the_node_is_wrong_only_where_there_is_nvlink() -> None:
    assert not one(MORE["shm"], Expected(nvlink=True)).good
    assert one(MORE["shm"], Expected(nvlink=False)).good


@pytest.mark.parametrize(
    ("asked", "name", "good"),
    [
        ("ib", "ib0", True),
        ("ib", "eno1", False),
        ("=ib0", "ib0", True),
        ("=ib0", "ib01", False),
        ("eth,ib", "ib3", True),
        ("^docker,lo", "eno1", True),
        ("^eno", "eno1", False),
        (None, "eno1", True),
        (None, "docker0", False),
        (None, "lo", False),
        (None, "lom1", True),
    ],
)
def test_peers_meet_where_the_site_says(asked: str | None, name: str, good: object) -> None:
    line = f"n1:1:2 [0] NCCL INFO Bootstrap : Using {name}:10.0.0.1<0>"
    found = classify(line, Expected(interface=asked))
    assert found is not None
    assert (found.kind, found.good, found.values) == ("interface", good, (name,))


def test_a_reader_says_each_thing_once_for_each_process() -> None:
    reader = NcclReader()
    again = MORE["host_bounce"][0].replace("Channel 01/0", "Channel 02/0")
    other = again.replace("h1:", "h7:")
    found = [reader.feed(line) for line in (MORE["host_bounce"][0], again, other, other)]
    assert [one.host if one else None for one in found] == ["h1", None, "h7", None]


def test_a_reader_learns_ranks_from_the_start_of_nccl() -> None:
    reader = NcclReader()
    start = (
        "h1:12:30 [0] NCCL INFO ncclCommInitRank comm 0x55a1 rank 6 nranks 16 cudaDev 0 busId 1000"
    )
    assert reader.feed(start) is None
    found = reader.feed(MORE["no_gdr"][0])
    assert found is not None
    assert found.rank == 6


def test_a_reader_of_two_hosts_keeps_their_ranks_apart() -> None:
    reader = NcclReader()
    for host, rank in (("h1", 0), ("h2", 8)):
        reader.feed(f"{host}:12:30 [0] NCCL INFO Init COMPLETE comm 0x5 rank {rank} nRanks 16")
    line = MORE["no_port"][0]
    ranks = [reader.feed(text) for text in (line, line.replace("h1:", "h2:"))]
    assert [found.rank for found in ranks if found] == [0, 8]


@given(
    st.text(max_size=80), st.sampled_from(["NCCL INFO ", "NCCL WARN NET/IB : Using ", "ibv_", ""])
)
def test_any_line_is_read_without_an_error(text: str, start: str) -> None:
    found = NcclReader().feed(f"{start}{text}")
    assert found is None or found.message


def test_source_lines_of_the_captures_are_no_findings() -> None:
    assert [classify(line) for line in capture("topo_hgx_a100_8gpu_nonic.txt").splitlines()] == [
        None
    ] * 9
