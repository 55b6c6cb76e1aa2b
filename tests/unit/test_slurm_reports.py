"""Nodes, partitions and the cluster, from records and tables of Slurm 20.11 to 23.11."""

from __future__ import annotations

import math

import pytest
from captures import capture

from launcher.nodelist import expand
from launcher.parsers.slurm_blocks import read_blocks
from launcher.parsers.slurm_cluster import read_settings, read_topology
from launcher.parsers.slurm_nodes import read_nodes, read_sinfo
from launcher.parsers.slurm_partitions import read_associations, read_partitions, read_qos
from launcher.parsers.slurm_tables import read_rows
from launcher.parsers.slurm_values import Gres
from launcher.parsers.text import ParseError

MIB = 1024**2


def test_a_node_is_read_from_its_block() -> None:
    (node,) = read_nodes(capture("scontrol_show_node_cpu_23.11.txt"))
    assert (node.name, node.arch) == ("cn-1001", "x86_64")
    assert (node.cpus, node.sockets, node.cores_per_socket, node.threads_per_core) == (
        192,
        2,
        96,
        1,
    )
    assert node.memory_bytes == 1547000 * MIB
    assert (node.gres, node.tres.gpus) == ((), None)
    assert node.features == ("gen5", "amd", "avx512")
    assert (node.states.base, node.states.usable) == ("MIXED", True)


def test_a_node_that_is_down_has_its_flags() -> None:
    (node,) = read_nodes(capture("scontrol_show_node_down_cloud_23.02.txt"))
    assert node.states.base == "DOWN"
    assert node.states.flags == {"CLOUD", "FAIL", "NOT_RESPONDING"}
    assert node.partitions == ("dev",)


def test_several_nodes_are_read_whatever_their_indentation() -> None:
    found = read_nodes(capture("scontrol_show_node_gpu_20.11_mila.txt"))
    assert [node.name for node in found] == [
        "test-node",
        "test-node-2",
        "test-node-1",
        "test-node-2",
        "test-node-3",
        "test-node-4",
        "test-node-5",
    ]
    assert found[0].gres == (Gres("gpu", "rtx8000", 8),)
    assert found[2].gres == ()
    assert found[4].gres == (Gres("gpu", "v100", 8),)
    assert found[6].gres == (Gres("justarandomfield", None, 1),)


def test_a_node_on_one_line_is_read() -> None:
    (node,) = read_nodes(capture("scontrol_show_node_oneliner_b200.txt"))
    assert node.name == "us-west-a2-gpu-011"
    assert node.gres == (Gres("gpu", None, 8),)
    assert node.memory_bytes == 2043912 * MIB
    assert node.states.flags == {"DYNAMIC_NORM"}
    assert (node.tres.gpus, node.cpus) == (8, None)


def test_on_one_line_values_of_many_words_end_at_the_next_key() -> None:
    text = capture("scontrol_show_node_oneliner_reason_synthetic.txt")
    (node,) = read_nodes(text)
    assert node.memory_bytes == 512000 * MIB
    assert (node.cpus, node.threads_per_core) == (64, 1)
    (record,) = read_blocks(text, "NodeName")
    assert record["Reason"] == "ECC=3 on gpu2, Ticket=77 [root@2026-01-02T03:04:05]"
    assert record["OS"].endswith("PREEMPT_DYNAMIC A=b Fri")
    assert record["Comment"] == "rack = 7, see Bob"


def test_a_reason_of_two_lines_changes_nothing_else() -> None:
    text = (
        "NodeName=a CPUTot=4\n   State=DOWN\n   Reason=fan\n          and State=IDLE [root@x]\n\n"
    )
    (node,) = read_nodes(text)
    assert (node.cpus, node.states.base) == (4, "DOWN")


def test_the_last_value_of_a_capture_that_is_cut_is_not_believed() -> None:
    (node,) = read_nodes("NodeName=a CPUTot=4\n   RealMemory=5120")
    assert (node.cpus, node.memory_bytes) == (4, None)
    (node,) = read_nodes("NodeName=a CPUTot=4\n\nNodeName=b1")
    assert node.name == "a"


def test_records_of_another_kind_are_refused() -> None:
    with pytest.raises(ParseError, match="not records of NodeName, but records of PartitionName"):
        read_nodes(capture("scontrol_show_partition_daic.txt"))
    with pytest.raises(ParseError, match="not records of PartitionName, but records of JobId"):
        read_partitions("JobId=1 JobName=sh\n   Partition=gpu\n")


@pytest.mark.parametrize("said", ["Node x9 not found", '{"nodes": [{"name": "x9"}]}'])
def test_what_is_there_instead_of_records_is_said(said: str) -> None:
    with pytest.raises(ParseError) as caught:
        read_nodes(f"{said}\n")
    assert said in str(caught.value)


def test_records_are_read_among_other_lines() -> None:
    (node,) = read_nodes("slurm: warning: x\n\nNodeName=a CPUTot=4\n\nNode x9 not found\n")
    assert (node.name, node.cpus) == ("a", 4)


def test_sinfo_gives_groups_of_nodes_that_are_alike() -> None:
    drained, idle, long = read_sinfo(capture("sinfo_o_pipe_gpu_synthetic.txt"))
    assert (drained.partition, drained.states.usable) == ("gpu", False)
    assert drained.memory_bytes == 1031000 * MIB  # "1031000+" is at least that
    assert [one.type for one in drained.gres] == ["a100", "a100_3g.20gb"]
    assert (idle.nodes, idle.time_limit_s) == ("g[04-08]", 86400)
    assert (long.time_limit_s, long.gres) == (math.inf, ())


def test_sinfo_as_a_drawn_table_is_read() -> None:
    groups = read_sinfo(capture("sinfo_format_pipe_clariden.txt"))
    assert [(g.partition, g.time_limit_s) for g in groups] == [
        ("debug", 5400),
        ("normal", 43200),
        ("low", 86400),
        ("xfer", 86400),
    ]


def test_partitions_are_read_from_their_blocks() -> None:
    first, second = read_partitions(capture("scontrol_show_partition_multiline_crc_htc.txt"))
    assert (first.name, first.up, first.root_only) == ("htc", True, False)
    assert (first.time_limit_s, first.max_nodes) == (math.inf, 1)
    assert (len(expand(first.nodes or "")), first.memory_per_node_bytes) == (30, math.inf)
    assert first.allow_qos is not None
    assert first.allow_qos[:3] == ("short", "normal", "long")
    assert first.allow_accounts is None
    assert second.name == "scavenger"


@pytest.mark.parametrize(
    ("text", "most"), [("512000", 512000 * MIB), ("UNLIMITED", math.inf), ("0", None), ("?", None)]
)
def test_the_memory_that_a_job_may_have_of_a_node_is_bytes(text: str, most: float | None) -> None:
    (found,) = read_partitions(f"PartitionName=a\n   MaxMemPerNode={text}\n")
    assert found.memory_per_node_bytes == most


def test_a_partition_may_deny_a_qos() -> None:
    (found,) = read_partitions(capture("scontrol_show_partition_daic.txt"))
    assert (found.deny_qos, found.allow_qos) == (("influence",), None)
    assert found.max_cpus_per_node == math.inf
    assert expand(found.nodes or "")[:3] == ("3dgi1", "3dgi2", "100plus")


def test_a_qos_has_its_limits_and_an_empty_column_is_none() -> None:
    normal, debug = read_qos(capture("sacctmgr_show_qos_P_synthetic.txt"))
    assert (normal.time_limit_s, normal.jobs_per_user, normal.queued_per_user) == (172800, 20, 40)
    assert normal.max_tres.gpus is None
    assert (debug.time_limit_s, debug.max_tres.gpus, debug.max_tres.nodes) == (3600, 8, 2)
    assert (debug.max_tres_per_user.gpus, debug.min_tres.gpus) == (8, 1)
    assert debug.flags == ("DenyOnLimit", "OverPartQOS")


def test_associations_name_accounts_and_qos() -> None:
    first, second = read_associations(capture("sacctmgr_show_assoc_P_synthetic.txt"))
    assert (first.account, first.qos) == ("proj42_g", ("debug", "normal"))
    assert (first.default_qos, second.default_qos) == ("normal", None)
    assert (second.account, second.qos) == ("proj7", ("normal",))


def test_a_row_with_too_many_or_too_few_cells_or_without_its_end_is_left_out() -> None:
    assert read_rows("hello\nA|Def b\n1|2|3\n4\n\n5| 6\n7|8") == ({"A": "5", "DEFB": "6"},)


@pytest.mark.parametrize("text", ["", " This cluster 'x' doesn't exist.\n", "A|B"])
def test_what_is_no_table_is_refused(text: str) -> None:
    for reader in (read_rows, read_sinfo, read_qos, read_associations):
        with pytest.raises(ParseError, match="not lines with separators"):
            reader(text)


def test_the_settings_of_the_cluster_are_read() -> None:
    found = read_settings(capture("scontrol_show_config_synthetic.txt"))
    assert (found.version, found.cluster, found.max_array_size) == ("23.11.10", "alpha", 1001)
    assert found.requeue is True
    assert found.settings["SlurmctldHost[0]"] == "ctl1(10.0.0.1)"
    assert found.settings["ConstrainDevices"] == "yes"


def test_what_the_settings_do_not_say_is_none() -> None:
    found = read_settings("SLURM_VERSION = 25.05.2-1\nMaxArraySize = (null)\n")
    assert (found.version, found.requeue, found.max_array_size) == ("25.05.2", None, None)
    with pytest.raises(ParseError, match="slurm_load_ctl_conf"):
        read_settings("slurm_load_ctl_conf error: Unable to contact slurm controller\n")


def test_leaves_of_a_tree_and_blocks_are_read() -> None:
    tree = read_topology(capture("scontrol_show_topology_tree_synthetic.txt"))
    assert (tree.kind, len(tree.groups)) == ("tree", 3)
    assert [(leaf.name, len(expand(leaf.nodes or ""))) for leaf in tree.leaves] == [
        ("leaf1", 24),
        ("leaf2", 24),
    ]
    block = read_topology(capture("scontrol_show_topology_block_synthetic.txt"))
    assert (block.kind, [leaf.name for leaf in block.leaves]) == ("block", ["b01", "b02"])
    cut = "BlockName=b1 BlockIndex=0 Nodes=t[1-9] BlockSize=9\nAggregatedBlock=b1 BlockIndex=1 Nod"
    assert [(leaf.name, leaf.nodes) for leaf in read_topology(cut).leaves] == [("b1", "t[1-9]")]
    assert read_topology("").kind is None
    with pytest.raises(ParseError, match="not a topology"):
        read_topology(capture("scontrol_show_partition_daic.txt"))
