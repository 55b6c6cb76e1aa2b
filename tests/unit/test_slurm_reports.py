"""Nodes, partitions, jobs and the cluster, from text, tables and JSON of Slurm 20.11 to 25.05."""

from __future__ import annotations

import math

import pytest
from captures import capture

from launcher.nodelist import expand
from launcher.parsers.slurm_blocks import read_blocks
from launcher.parsers.slurm_cluster import read_settings, read_topology
from launcher.parsers.slurm_jobs import read_job_rows, read_jobs, read_jobs_json
from launcher.parsers.slurm_json import json_number
from launcher.parsers.slurm_nodes import read_nodes, read_nodes_json, read_sinfo
from launcher.parsers.slurm_partitions import (
    read_associations,
    read_partitions,
    read_partitions_json,
    read_qos,
)
from launcher.parsers.slurm_tables import read_fixed, read_objects, read_rows
from launcher.parsers.slurm_values import Gres, NodeStates
from launcher.parsers.text import ParseError, write_ranges

MIB, GIB = 1024**2, 1024**3


def test_a_node_is_read_from_its_block() -> None:
    (node,) = read_nodes(capture("scontrol_show_node_cpu_23.11.txt")).nodes
    assert (node.name, node.arch, node.version) == ("cn-1001", "x86_64", "23.11.2")
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
    assert node.tres_used.cpus == 26


def test_a_node_that_is_down_says_why() -> None:
    (node,) = read_nodes(capture("scontrol_show_node_down_cloud_23.02.txt")).nodes
    assert node.states.base == "DOWN"
    assert node.states.flags == {"CLOUD", "FAIL", "NOT_RESPONDING"}
    assert node.reason == "Action:Replace : Not responding [slurm@2024-02-21T01:53:15]"
    assert node.partitions == ("dev",)
    assert not node.tres_used.entries


def test_several_nodes_are_read_whatever_their_indentation() -> None:
    found = read_nodes(capture("scontrol_show_node_gpu_20.11_mila.txt"))
    assert [node.name for node in found.nodes] == [
        "test-node",
        "test-node-2",
        "test-node-1",
        "test-node-2",
        "test-node-3",
        "test-node-4",
        "test-node-5",
    ]
    assert found.nodes[0].gres == (Gres("gpu", "rtx8000", 8, frozenset({0, 1})),)
    assert found.nodes[2].gres == ()
    assert found.nodes[4].gres == (Gres("gpu", "v100", 8),)
    assert found.nodes[6].gres == (Gres("justarandomfield", None, 1),)
    assert not found.unread


def test_a_node_on_one_line_is_read() -> None:
    (node,) = read_nodes(capture("scontrol_show_node_oneliner_b200.txt")).nodes
    assert node.name == "us-west-a2-gpu-011"
    assert node.gres == (Gres("gpu", None, 8, frozenset({0, 1})),)
    assert node.memory_bytes == 2043912 * MIB
    assert node.states.flags == {"DYNAMIC_NORM"}
    assert (node.tres.gpus, node.tres_used.cpus, node.cpus) == (8, 140, None)


def test_on_one_line_values_of_many_words_end_at_the_next_key() -> None:
    text = capture("scontrol_show_node_oneliner_reason_synthetic.txt")
    (node,) = read_nodes(text).nodes
    assert node.reason == "ECC=3 on gpu2, Ticket=77 [root@2026-01-02T03:04:05]"
    assert node.memory_bytes == 512000 * MIB
    assert (node.cpus, node.threads_per_core) == (64, 1)
    (record,) = read_blocks(text, "NodeName").records
    assert record["OS"].endswith("PREEMPT_DYNAMIC A=b Fri")
    assert record["Comment"] == "rack = 7, see Bob"


def test_a_reason_of_two_lines_is_one() -> None:
    text = "NodeName=a CPUTot=4\n   State=DOWN\n   Reason=fan\n          and disk=3 [root@x]\n\n"
    (node,) = read_nodes(text).nodes
    assert (node.cpus, node.reason) == (4, "fan and disk=3 [root@x]")


def test_the_last_value_of_a_capture_that_is_cut_is_not_believed() -> None:
    found = read_nodes("NodeName=a CPUTot=4\n   RealMemory=5120")
    assert (found.nodes[0].cpus, found.nodes[0].memory_bytes) == (4, None)
    assert found.unread == ("RealMemory=5120",)


def test_records_of_another_kind_are_refused() -> None:
    with pytest.raises(ParseError, match="records of PartitionName, not of NodeName"):
        read_nodes(capture("scontrol_show_partition_daic.txt"))
    with pytest.raises(ParseError, match="records of NodeName, not of JobId"):
        read_jobs(capture("scontrol_show_node_cpu_23.11.txt"))


def test_what_scontrol_says_instead_of_records_is_handed_back() -> None:
    found = read_nodes("Node x9 not found\n")
    assert (found.nodes, found.unread) == ((), ("Node x9 not found",))


def test_nodes_of_data_parser_0_0_40() -> None:
    found = read_nodes_json(capture("nodes_json_v0040_talapas_23.11.json"))
    assert len(found.nodes) == 12
    nodes = {node.name: node for node in found.nodes}
    h100 = nodes["n1000"]
    assert h100.gres == (Gres("gpu", "nvidia_h100_80gb_hbm3", 8, frozenset({0, 1})),)
    assert (h100.cpus, h100.sockets, h100.cores_per_socket) == (112, 2, 56)
    assert (h100.memory_bytes, h100.version) == (2052811 * MIB, "23.11.1")
    assert (h100.states.base, h100.partitions) == ("MIXED", ("kerngpu",))
    assert write_ranges(nodes["n0162"].gres_used[0].index or ()) == "0-3,5-9"
    assert nodes["n0162"].gres[0].mig
    assert not nodes["n0164"].states.usable
    assert nodes["n0164"].reason == "Kill task failed"
    assert nodes["dtn1"].states.flags == {"NOT_RESPONDING"}
    assert nodes["dtn1"].arch is None


def test_nodes_of_openapi_0_0_37() -> None:
    first, second = read_nodes_json(capture("sinfo_json_v0037_21.08_mila.json")).nodes
    assert first.states == NodeStates("DOWN", frozenset({"NOT_RESPONDING"}))
    assert (first.gres, first.features) == ((Gres("gpu", None, 1),), ("test_features",))
    assert second.states == NodeStates("DOWN", frozenset({"DRAIN"}))
    assert second.version == "1.11.01"
    assert second.tres_used.cpus == 1


def test_sinfo_of_23_02_and_later_gives_groups() -> None:
    (group,) = read_sinfo(capture("sinfo_json_v0041_synthetic.json"))
    assert (group.partition, group.default, group.count) == ("gpu", True, 12)
    assert expand(group.nodes or "")[-1] == "g12"
    assert (group.cpus, group.memory_bytes, group.time_limit_s) == (48, 1031000 * MIB, 86400)
    assert group.gres == (Gres("gpu", "h100", 4, frozenset({0, 1})),)
    assert group.states.flags == {"PLANNED"}


def test_sinfo_with_separators_gives_the_same_groups() -> None:
    drained, idle, long = read_sinfo(capture("sinfo_o_pipe_gpu_synthetic.txt"))
    assert (drained.partition, drained.default, drained.states.usable) == ("gpu", True, False)
    assert drained.memory_bytes == 1031000 * MIB  # "1031000+" is at least that
    assert [one.type for one in drained.gres] == ["a100", "a100_3g.20gb"]
    assert (idle.count, idle.nodes, idle.time_limit_s) == (5, "g[04-08]", 86400)
    assert (long.default, long.time_limit_s, long.gres) == (False, math.inf, ())


def test_sinfo_as_a_drawn_table_is_read() -> None:
    groups = read_sinfo(capture("sinfo_format_pipe_clariden.txt"))
    assert [(g.partition, g.count, g.time_limit_s) for g in groups] == [
        ("debug", 1384, 5400),
        ("normal", 1359, 43200),
        ("low", 1359, 86400),
        ("xfer", 2, 86400),
    ]


def test_sinfo_without_heads_takes_the_columns_that_were_asked_for() -> None:
    (group,) = read_sinfo("gpu*|infinite|gpu:4\n", ("PARTITION", "TIMELIMIT", "GRES"))
    assert (group.partition, group.time_limit_s, len(group.gres)) == ("gpu", math.inf, 1)


def test_json_of_another_command_is_refused_with_what_it_has() -> None:
    with pytest.raises(ParseError, match="JSON without sinfo, but with meta, errors, nodes"):
        read_sinfo(capture("sinfo_json_v0037_21.08_mila.json"))
    with pytest.raises(ParseError, match="no JSON, but 'sinfo: error: openapi"):
        read_nodes_json("sinfo: error: openapi plugin not found\n")
    with pytest.raises(ParseError, match="cannot be read"):
        read_nodes_json(capture("nodes_json_v0040_talapas_23.11.json")[:5000])


def test_warnings_before_json_do_no_harm() -> None:
    text = "slurm: warning: x\n" + capture("sinfo_json_v0037_21.08_mila.json")
    assert len(read_nodes_json(text).nodes) == 2


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ({"set": True, "infinite": False, "number": 7}, 7),
        ({"set": False, "infinite": False, "number": 0}, None),
        ({"set": False, "infinite": True, "number": 0}, math.inf),
        ({"set": True, "infinite": True, "number": 0}, math.inf),
        (7, 7),
        (1.5, 1.5),
        ("25", 25),
        (4294967294, None),
        (-2, None),
        (18446744073709551614, None),
        (-9223372036854771712, None),
        (4294967295, math.inf),
        (18446744073709551615, math.inf),
        (-1, math.inf),
        (math.nan, None),
        (10**400, None),
        (True, None),
        (None, None),
        ("", None),
        ([], None),
    ],
)
def test_a_number_of_any_data_parser_is_read(value: object, number: float | None) -> None:
    assert json_number(value) == number


def test_partitions_are_read_from_their_blocks() -> None:
    first, second = read_partitions(
        capture("scontrol_show_partition_multiline_crc_htc.txt")
    ).partitions
    assert (first.name, first.default, first.up) == ("htc", True, True)
    assert (first.time_limit_s, first.default_time_s, first.max_nodes) == (math.inf, None, 1)
    assert (first.total_nodes, len(expand(first.nodes or ""))) == (30, 30)
    assert first.allow_qos is not None
    assert first.allow_qos[:3] == ("short", "normal", "long")
    assert first.allow_accounts is None
    assert first.tres.memory_bytes == 19587200 * MIB
    assert (second.name, second.default, second.tres.cpus) == ("scavenger", False, 384)


def test_a_partition_may_deny_a_qos_and_have_no_tres() -> None:
    (found,) = read_partitions(capture("scontrol_show_partition_daic.txt")).partitions
    assert (found.deny_qos, found.allow_qos) == (("influence",), None)
    assert (found.default_time_s, found.max_cpus_per_node) == (60, math.inf)
    assert expand(found.nodes or "")[:3] == ("3dgi1", "3dgi2", "100plus")
    assert found.tres.gpus is None


def test_partitions_of_data_parser_0_0_40() -> None:
    found = read_partitions_json(capture("partitions_json_v0040_talapas_23.11.json")).partitions
    partitions = {one.name: one for one in found}
    gpu = partitions["gpu"]
    assert (gpu.up, gpu.qos, gpu.total_nodes) == (True, "gpu", 23)
    assert len(expand(gpu.nodes or "")) == 23
    assert (gpu.time_limit_s, gpu.max_nodes, gpu.min_nodes) == (86400, math.inf, 1)
    assert (gpu.tres.gpus, gpu.memory_per_node_bytes) == (155, None)
    assert partitions["preempt"].max_nodes == 48
    assert partitions["memorylong"].time_limit_s == 14 * 86400
    assert len(expand(partitions["preempt"].nodes or "")) == 345


def test_partitions_of_openapi_0_0_37() -> None:
    (gpu,) = read_partitions_json(capture("partitions_json_v0037_synthetic.json")).partitions
    assert (gpu.nodes, gpu.total_nodes, gpu.default, gpu.up) == ("g[01-08]", 8, True, True)
    assert (gpu.time_limit_s, gpu.default_time_s, gpu.max_nodes) == (172800, math.inf, math.inf)
    assert (gpu.allow_qos, gpu.allow_accounts) == (("normal", "debug"), None)
    assert gpu.tres.gpus == 32


def test_a_qos_has_its_limits_and_an_empty_column_is_none() -> None:
    normal, debug = read_qos(capture("sacctmgr_show_qos_P_synthetic.txt"))
    assert (normal.time_limit_s, normal.jobs_per_user, normal.queued_per_user) == (172800, 20, 40)
    assert normal.max_tres.gpus is None
    assert (debug.time_limit_s, debug.max_tres.gpus, debug.max_tres.nodes) == (3600, 8, 2)
    assert (debug.max_tres_per_user.gpus, debug.min_tres.gpus) == (8, 1)
    assert debug.flags == ("DenyOnLimit", "OverPartQOS")


def test_associations_name_accounts_partitions_and_qos() -> None:
    first, second = read_associations(capture("sacctmgr_show_assoc_P_synthetic.txt"))
    assert (first.account, first.partition, first.qos) == ("proj42_g", None, ("debug", "normal"))
    assert (first.default_qos, first.queued, first.jobs) == ("normal", 1000, None)
    assert (second.partition, second.jobs, second.time_limit_s) == ("gpu", 2, 43200)
    assert second.max_tres.gpus == 16


def test_jobs_are_read_from_their_blocks() -> None:
    first, second = read_jobs(capture("scontrol_show_job_multi_mila.txt")).jobs
    assert (first.id, first.name, first.state) == ("1", "sh", "PENDING")
    assert (first.reason, first.time_limit_s, first.nodes) == ("JobHeldAdmin", 604800, None)
    assert (first.requested.gpus, first.tres.gpus) == (1, None)
    assert second.reason == "ReqNodeNotAvail,_UnavailableNodes:node8,nodek4,nodep[1-2],nodex3"
    assert (second.restarts, second.exit_code, second.node_count) == (11, (0, 0), 1)


def test_a_task_of_an_array_has_the_id_that_commands_show() -> None:
    (job,) = read_jobs(
        "JobId=91 ArrayJobId=90 ArrayTaskId=3 JobName=a b=c d\n   JobState=RUNNING Reason=None\n"
    ).jobs
    assert (job.id, job.name, job.state, job.reason) == ("90_3", "a b=c d", "RUNNING", None)


def test_jobs_of_squeue_json() -> None:
    first, second = read_jobs_json(capture("squeue_json_rivos.json")).jobs
    assert (first.id, first.state, first.nodes) == ("26515966", "RUNNING", "cs75")
    assert (first.time_limit_s, first.tres.memory_bytes) == (30240 * 60, 62.5 * GIB)
    assert (second.id, second.state, second.reason) == ("58948420", "PENDING", "Dependency")
    assert (second.nodes, second.node_count, second.time_limit_s) == (None, 1, 1439 * 60)


def test_jobs_of_sacct_json() -> None:
    jobs = read_jobs_json(capture("sacct_json_v0043_25.05_synthetic.json")).jobs
    assert [job.state for job in jobs] == ["PENDING", "COMPLETED", "CANCELLED"]
    assert (jobs[0].nodes, jobs[0].reason, jobs[0].exit_code) == (None, "Resources", None)
    assert (jobs[0].requested.cpus, jobs[0].requested.memory_bytes) == (8, 32 * GIB)
    assert (jobs[1].tres.gpus, jobs[1].tres.gpu_types) == (1, {"l40s": 1})
    assert (jobs[1].nodes, jobs[1].exit_code) == ("rn-l002", (0, 0))


@pytest.mark.parametrize(
    ("record", "id_", "state", "flags", "exit_code"),
    [
        (
            '{"job_id": 5, "job_state": ["RUNNING", "COMPLETING"]}',
            "5",
            "RUNNING",
            {"COMPLETING"},
            None,
        ),
        (
            (
                '{"job_id": 7, "array_job_id": 6, "array_task_id": {"set": true, "number": 0},'
                ' "exit_code": 256}'
            ),
            "6_0",
            None,
            set(),
            (1, 0),
        ),
        (
            (
                '{"job_id": 8, "state": {"current": "FAILED"}, "exit_code": {"return_code":'
                ' {"set": true, "number": 0}, "signal": {"id": {"set": true, "number": 9}}}}'
            ),
            "8",
            "FAILED",
            set(),
            (0, 9),
        ),
    ],
)
def test_other_forms_of_the_same_fields_are_read(
    record: str, id_: str, state: str | None, flags: set[str], exit_code: tuple[int, int] | None
) -> None:
    (job,) = read_jobs_json(f'{{"jobs": [{record}]}}').jobs
    assert (job.id, job.state, set(job.flags), job.exit_code) == (id_, state, flags, exit_code)


def test_steps_do_not_count_the_gpus_of_their_job_again() -> None:
    jobs = read_job_rows(capture("sacct_P_jobid_alloctres_gpu.txt")).jobs
    assert [job.id for job in jobs] == ["8117657", "8117678"]
    assert [job.tres.gpus for job in jobs] == [1, 1]
    assert [dict(job.tres.gpu_types) for job in jobs] == [{"a100_3g.20gb": 1}, {"h100": 1}]


def test_raw_ids_are_ids_where_there_are_no_others() -> None:
    rows = ("JobIDRaw|AllocTRES|State", "123|cpu=8,gres/gpu=2|COMPLETED", "123.batch|cpu=8|FAILED")
    (job,) = read_job_rows("".join(f"{row}|\n" for row in rows)).jobs
    assert (job.id, job.tres.gpus) == ("123", 2)


def test_what_an_exclusive_job_was_given_is_in_alloctres() -> None:
    asked, given = capture("sacct_P_reqtres_vs_alloctres_exclusive.txt").splitlines()[1::2]
    (job,) = read_job_rows(f"1|{asked}|{given}\n", ("JobID", "ReqTRES", "AllocTRES")).jobs
    assert (job.requested.gpus, job.tres.gpus) == (None, 4)


def test_squeue_names_gpus_in_tres_alloc_only() -> None:
    _, gres, _, alloc = capture("squeue_b_vs_tres_alloc.txt").splitlines()
    columns = ("JOBID", "ACCOUNT", "STATE", "NODES", "CPUS", "TRES_ALLOC")
    (job,) = read_job_rows(f"{alloc}\n", columns).jobs
    assert (job.state, job.account, job.tres.gpus) == ("RUNNING", "myaccount", 1)
    assert gres.endswith("|N/A")


def test_a_separator_in_a_name_does_not_shift_the_other_columns() -> None:
    found = read_job_rows(capture("squeue_o_pipe_synthetic.txt"))
    waiting, running, named, bad = found.jobs
    assert (waiting.id, waiting.reason) == ("77_[4-9%2]", "QOSMaxJobsPerUserLimit")
    assert (running.id, running.nodes, running.time_limit_s) == ("77_3", "g[01-02]", 86400)
    assert (named.name, named.state, named.time_limit_s) == ("a|b", "COMPLETING", 1800)
    assert (bad.time_limit_s, bad.reason) == (None, "PartitionTimeLimit")
    assert not found.unread


def test_columns_of_fixed_width_are_read_and_wrapped_values_joined() -> None:
    (row,) = read_fixed(capture("sacct_format_fixedwidth_gpu.txt")).rows
    assert (row["JOBID"], row["STATE"], row["ELAPSED"]) == ("11551829", "COMPLETED", "00:00:11")
    assert row["ALLOCTRES"] == "billing=48,cpu=48,gres/gpu=4,mem=376000M,node=1"
    limits = read_fixed(capture("qlimits_tacc_vista.txt")).rows
    assert [(row["NAME"], row["MAXNODE"], row["MAXWALL"]) for row in limits] == [
        ("gg", "32", "2-00:00:00"),
        ("gh", "64", "2-00:00:00"),
        ("gh-dev", "8", "02:00:00"),
    ]


def test_empty_cells_of_fixed_width_stay_empty() -> None:
    found = read_fixed("A    B    C\n---- ---- ----\n1         3\nfour words and more\n")
    assert found.rows == ({"A": "1", "B": "", "C": "3"},)
    assert found.unread == ("four words and more",)


def test_lines_of_json_are_read_one_by_one() -> None:
    found = read_objects(capture("sinfo_fallback_rivos.txt") + '{"s": "mi\n')
    assert len(found.objects) == 8
    assert found.objects[0] == {
        "s": "completing",
        "mem": 770000,
        "n": "cs156",
        "l": "N/A",
        "p": "hw",
        "fmem": "N/A",
        "cstate": "56/8/0/64",
        "w": 1,
    }
    assert found.unread == ('{"s": "mi',)


def test_tables_of_one_column_and_with_a_separator_at_the_end_are_read() -> None:
    (submitted,) = read_rows(capture("sacct_parsable_submitline_delta.txt")).rows
    assert submitted["SUBMITLINE"] == "sbatch --dependency=after:2267583+5 testjob.slurm"
    (used,) = read_rows(capture("sacct_tresusage_parsable.txt")).rows
    assert used["TRESUSAGEINTOT"].startswith("cpu=00:00:22,")


def test_a_row_with_too_many_or_too_few_cells_is_handed_back() -> None:
    found = read_rows("A|B\n1|2|3\n4\n5|6\n7|8")
    assert found.rows == ({"A": "5", "B": "6"},)
    assert found.unread == ("1|2|3", "4", "7|8")


def test_the_settings_of_the_cluster_are_read() -> None:
    found = read_settings(capture("scontrol_show_config_synthetic.txt"))
    assert (found.version, found.cluster, found.max_array_size) == ("23.11.10", "alpha", 1001)
    assert (found.mpi, found.topology, found.min_job_age_s) == ("pmix", "topology/tree", 300)
    assert (found.requeue, found.accounting, found.gres) == (True, True, ("gpu", "shard"))
    assert found.settings["SlurmctldHost[0]"] == "ctl1(10.0.0.1)"
    assert found.settings["ConstrainDevices"] == "yes"


def test_without_accounting_it_is_said_so() -> None:
    found = read_settings("AccountingStorageType   = (null)\nSLURM_VERSION = 25.05.2-1\n")
    assert (found.accounting, found.version, found.requeue) == (False, "25.05.2", None)
    assert read_settings("AccountingStorageType = accounting_storage/none\n").accounting is False
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
