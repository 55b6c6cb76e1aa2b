"""Captures that came through terminals, pastes and cut pipes: what is left of them is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from captures import CAPTURES, capture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.fabric.node import node_topology
from launcher.parsers.ibdev2netdev import read_ibdev2netdev
from launcher.parsers.ibstat import read_ibstat
from launcher.parsers.lscpu import read_lscpu
from launcher.parsers.mpi_list import read_mpi_list
from launcher.parsers.slurm_cluster import read_settings, read_topology
from launcher.parsers.slurm_nodes import read_nodes, read_sinfo
from launcher.parsers.slurm_partitions import read_associations, read_partitions, read_qos
from launcher.parsers.slurm_tables import read_rows
from launcher.parsers.slurm_values import (
    read_gres,
    read_job_rows,
    read_job_state,
    read_node_states,
    read_time,
    read_tres,
)
from launcher.parsers.text import ParseError, read_ranges
from launcher.parsers.topo import Topo, read_topo

LIGHT = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
TOPOS = sorted(
    path.name for path in CAPTURES.glob("topo_*") if "p2p" not in path.name
)  # captures and made-up ones
READERS: list[Callable[[str], object]] = [
    read_topo,
    read_ibstat,
    read_ibdev2netdev,
    read_lscpu,
    read_mpi_list,
    read_settings,
    read_topology,
    read_job_rows,
    read_nodes,
    read_sinfo,
    read_partitions,
    read_qos,
    read_associations,
    read_rows,
    read_gres,
    read_tres,
    read_time,
    read_node_states,
    read_job_state,
    read_ranges,
]


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """``text`` with lines lost, its end cut off, other line ends, blanks, escapes and columns."""
    lines = text.splitlines(keepends=True)
    for at in sorted(draw(st.sets(st.integers(0, len(lines) - 1), max_size=3)), reverse=True):
        del lines[at]
    found = "".join(lines)
    if draw(st.booleans()):
        found = found[: draw(st.integers(0, len(found)))]
    if draw(st.booleans()):
        found = found.expandtabs(8)
    if draw(st.booleans()):
        found = "".join(f"\x1b[1m{line}\x1b[0m" for line in found.splitlines(keepends=True))
    if draw(st.booleans()):
        found = found.replace("\n", "\r\n")
    return found


@st.composite
def widened(draw: st.DrawFn, text: str) -> str:
    """A column more behind or within the lines of a table that is apart by tabs."""
    head = next(line for line in text.splitlines() if "GPU0" in line).split("\t")
    inside = head.index("CPU Affinity") if "CPU Affinity" in head else len(head)
    at = draw(st.integers(1, inside) | st.just(99))
    extra = draw(st.sampled_from(["N/A", "7", "x", "SYS", "0-3"]))
    rows = []
    for line in text.splitlines():
        cells = line.split("\t")
        if len(cells) > 2 and draw(st.integers(0, 9)) < 8:
            cells.insert(at, extra)
        rows.append("\t".join(cells))
    return "\n".join(rows) + "\n"


def facts(topo: Topo) -> dict[Any, Any]:
    found: dict[Any, Any] = dict(topo.cells)
    found |= {("cpus", gpu): cpus for gpu, cpus in topo.cpus.items()}
    found |= {("numa", gpu): numa for gpu, numa in topo.numa.items()}
    found |= {("gpu_numa", gpu): numa for gpu, numa in topo.gpu_numa.items()}
    found |= {("name", nic.head): nic.device for nic in topo.nics if nic.device}
    return found | {("gpu", gpu): True for gpu in topo.gpus}


def wrong(found: Mapping[Any, Any], right: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in found.items() if right.get(key) != value}


@pytest.mark.parametrize("name", TOPOS)
@LIGHT
@given(data=st.data())
def test_of_a_damaged_table_what_is_read_is_right(name: str, data: st.DataObject) -> None:
    text = capture(name)
    right = facts(read_topo(text))
    try:
        topo = read_topo(data.draw(damaged(text)))
    except ParseError:
        return
    assert not wrong(facts(topo), right)
    assert node_topology(topo).rails is None


@pytest.mark.parametrize("name", [name for name in TOPOS if "\tGPU0" in capture(name)])
@LIGHT
@given(data=st.data())
def test_columns_that_only_some_lines_have_shift_no_fact(name: str, data: st.DataObject) -> None:
    text = capture(name)
    right = facts(read_topo(text))
    try:
        found = facts(read_topo(data.draw(widened(text))))
    except ParseError:
        return
    known = {key: value for key, value in found.items() if key in right}
    assert not wrong(known, right)


@LIGHT
@given(data=st.data())
def test_of_a_damaged_ibstat_what_is_read_is_right(data: st.DataObject) -> None:
    text = capture("ibstat_hgx_8xcx7_ndr400.txt")
    right = {port.name: port for port in read_ibstat(text).ports}
    try:
        found = read_ibstat(data.draw(damaged(text)))
    except ParseError:
        return
    for port in found.ports:
        for fact in ("state", "physical", "rate_gbps", "link_layer"):
            assert getattr(port, fact) in (None, getattr(right[port.name], fact))


@pytest.mark.parametrize(
    "name", ["scontrol_show_node_cpu_23.11.txt", "scontrol_show_node_oneliner_reason_synthetic.txt"]
)
@LIGHT
@given(data=st.data())
def test_of_a_damaged_node_what_is_read_is_right(name: str, data: st.DataObject) -> None:
    text = capture(name)
    (right,) = read_nodes(text)
    try:
        nodes = read_nodes(data.draw(damaged(text)))
    except ParseError:
        return
    for node in nodes:
        for fact in ("arch", "cpus", "sockets", "threads_per_core", "memory_bytes"):
            assert getattr(node, fact) in (None, getattr(right, fact))
        assert node.gres in ((), right.gres)
        assert node.features in ((), right.features)
        assert node.name == right.name


@pytest.mark.parametrize("name", sorted(path.name for path in CAPTURES.glob("*.[tj]*")))
@settings(LIGHT, max_examples=15)
@given(data=st.data())
def test_no_reader_fails_on_what_another_tool_printed(name: str, data: st.DataObject) -> None:
    text = data.draw(damaged(capture(name)))
    for reader in READERS:
        read(reader, text)


@pytest.mark.parametrize("reader", READERS)
@LIGHT
@given(
    text=st.text(
        alphabet=st.sampled_from("GPU01NIC NVSX\t\n=|:,()[]-{}\"'abMT+*\x1b[m"), max_size=120
    )
)
def test_no_reader_fails_on_any_text(reader: Callable[[str], object], text: str) -> None:
    read(reader, text)


def read(reader: Callable[[str], object], text: str) -> object:
    try:
        return reader(text)
    except ParseError as error:
        assert str(error)
        return None
