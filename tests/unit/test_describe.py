"""Site files out of what a cluster's commands print. The sets of captures are synthetic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from captures import capture
from describing import ROOT, SETS, changed, found, of_set

from launcher.describe.captures import LOGIN
from launcher.describe.gpus import GpuName, read_gpu_name
from launcher.discover import Captured
from launcher.units import parse_bytes, parse_duration

# Where the set's partitions are called otherwise than the keys of the shipped file.
KEYS = {
    "tamia": {"gpubase_bynode_b1-h100": "h100", "gpubase_bynode_b1-h200": "h200"},
    "perlmutter": {"gpu_ss11-hbm40g": "gpu", "gpu_ss11-hbm80g": "gpu-hbm80g"},
}
# Places that no output tells: what people ask for instead of Slurm's names; sizes on a data sheet.
UNTOLD = {"nodes", "select", "memory", "gpus.request", "fabric.env", "limits.min_time"}
# What is said of the cluster as a whole; whether it wants mpirun no output tells.
WHOLE = {"scheduler", "launch", "container", "scratch", "internet"}
# Said by outputs, while the shipped file does not state the same: rails for nics, default units.
BESIDE = {"fabric.nics", "fabric.rails"}


def leaves(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{at}.{key}" if at else key)
    else:
        yield at, tree


def asked(request: str | None) -> tuple[str, str] | None:
    """Scope and type that an option asks GPUs for; --gres and --gpus-per-node mean the same."""
    if request is None:
        return None
    option, _, value = request.partition("=")
    words = value.removeprefix("gpu:").split(":")
    scope = "node" if option in ("--gres", "--gpus-per-node") else option
    return scope, words[0] if len(words) > 1 else ""


# --- the clusters whose files are written by hand


@pytest.mark.parametrize("name", [path.name for path in SETS])
def test_what_is_discovered_is_what_the_file_written_by_hand_says(name: str) -> None:
    described, _ = found(of_set(name))
    site = yaml.safe_load(described.text)
    shipped = yaml.safe_load((ROOT / f"site_configs/{name}.yaml").read_text())
    compared: set[str] = set()
    whole = dict(leaves({key: shipped[key] for key in WHOLE & set(shipped)}))
    for place, value in leaves({key: site[key] for key in WHOLE & set(site)}):
        if place in whole and place != "launch.with":
            assert value == whole[place], place
            compared.add(place)
    for key, partition in site["partitions"].items():
        own = shipped["partitions"].get(KEYS.get(name, {}).get(key, key), {})
        theirs = dict(leaves(own))
        for place, value in leaves(partition):
            wanted = theirs.get(place)
            if wanted is None or place.split(".")[0] in UNTOLD or place in UNTOLD | BESIDE:
                continue
            if place == "gpus.memory":  # GB of a data sheet may be GiB
                assert parse_bytes(value) == pytest.approx(parse_bytes(wanted), rel=0.08), key
            elif place.endswith("time_limit"):
                assert parse_duration(value) == parse_duration(wanted), f"{key}.{place}"
            else:
                assert value == wanted, f"{key}.{place}"
            compared.add(place)
    assert {"gpus.per_node", "gpus.model", "cpus.count", "scheduler.type"} <= compared


@pytest.mark.parametrize("name", [path.name for path in SETS])
def test_gpus_are_asked_for_in_the_way_of_the_file_written_by_hand(name: str) -> None:
    described, _ = found(of_set(name))
    site = yaml.safe_load(described.text)
    shipped = yaml.safe_load((ROOT / f"site_configs/{name}.yaml").read_text())
    for key, partition in site["partitions"].items():
        theirs = shipped["partitions"].get(KEYS.get(name, {}).get(key, key))
        if theirs is None or "gpus" not in partition:
            continue
        ours, own = (asked(p["gpus"].get("request")) for p in (partition, theirs))
        assert (ours is None) == (own is None), key
        # A type that the nodes have is as right as none.
        if ours and own and own[1] and ours[1]:
            assert ours == own


def test_a_node_with_a_port_for_each_gpu_has_its_rails_from_the_probe() -> None:
    _, site = found(of_set("juwels-booster"))
    fabric = site.partitions["booster"].fabric
    assert fabric is not None
    assert (fabric.type, fabric.rate) == ("infiniband", 200)
    rails = [(rail.hca, rail.gpus) for rail in fabric.rails]
    assert rails == [("mlx5_0:1", [1]), ("mlx5_1:1", [0]), ("mlx5_2:1", [3]), ("mlx5_3:1", [2])]


def test_two_types_of_gpu_make_two_partitions_of_one() -> None:
    _, site = found(of_set("tamia"))
    kinds = {key: (p.gpus.model, p.gpus.per_node) for key, p in site.partitions.items() if p.gpus}
    assert kinds == {"gpubase_bynode_b1-h100": ("h100", 4), "gpubase_bynode_b1-h200": ("h200", 8)}
    first = site.partitions["gpubase_bynode_b1-h100"]
    assert first.select.partition == "gpubase_bynode_b1"
    assert (first.nodes, first.limits.jobs_queued) == (3, 1000)  # one of four is down
    assert first.memory == 511500 * 2**20  # the least of them


def test_nodes_of_one_type_are_told_apart_by_a_feature() -> None:
    _, site = found(of_set("perlmutter"))
    wanted = {"gpu_ss11-hbm40g": "hbm40g", "gpu_ss11-hbm80g": "hbm80g"}
    assert {key: p.select.constraint for key, p in site.partitions.items()} == wanted
    # The probe was on a node of 40 GB: it does not speak for the others.
    memory = {key: p.gpus.memory for key, p in site.partitions.items() if p.gpus}
    assert memory == {"gpu_ss11-hbm40g": 40 * 10**9, "gpu_ss11-hbm80g": None}


def test_parts_of_gpus_and_partitions_for_others_are_left_out_and_told() -> None:
    described, site = found(of_set("roihu"))
    assert list(site.partitions) == ["gputest", "gpumedium", "gpularge"]
    assert any("gpuinteractive" in note and "MIG" in note for note in described.notes)
    described, site = found(of_set("delta"))
    assert "admin" not in site.partitions
    assert "partition 'admin' is left out: it is for other accounts" in described.notes


def test_partitions_without_gpus_are_there_when_asked_for() -> None:
    assert "cpu" not in found(of_set("delta"))[1].partitions
    assert found(of_set("delta"), with_cpus=True)[1].partitions["cpu"].gpus is None


def test_gpus_that_slurm_does_not_know_are_those_of_the_probe() -> None:
    alone = Captured(of_set("vista").login)
    assert all(partition.gpus is None for partition in found(alone)[1].partitions.values())
    gpus = found(of_set("vista"))[1].partitions["gh"].gpus
    assert gpus is not None
    assert (gpus.model, gpus.per_node, gpus.request, gpus.unit) == ("gh200", 1, None, "node")
    assert gpus.memory == 97871 * 2**20  # the 120GB of its name are the CPU's


# --- sources that disagree, lack, or are something else


def test_of_two_sources_that_disagree_neither_is_believed() -> None:
    captures = changed(of_set("tamia"), "sinfo.txt", "gpu:h200:8(S:0-1)", "gpu:h200:4(S:0-1)")
    described, site = found(captures)
    # Without its GPUs nothing asks for that kind of the partition's nodes.
    assert list(site.partitions) == ["gpubase_bynode_b1-h100"]
    claims = "Gres of scontrol show node and CfgTRES of scontrol show node says 8; sinfo says 4"
    key = "gpubase_bynode_b1-h200"
    asked_of = [(place, question) for place, question in described.questions if key in place]
    assert asked_of == [(f"partitions.{key}.gpus.per_node", f"{claims}: which is right?")]
    assert f"{key} is left out: without its GPUs nothing asks for those nodes" in described.notes
    limits = changed(of_set("tamia"), "sinfo.txt", "2|1-00:00:00|64", "2|2-00:00:00|64")
    assert found(limits)[1].partitions["gpubase_bynode_b1-h200"].time_limit is None


def test_a_probe_that_saw_only_some_gpus_says_nothing_of_them() -> None:
    whole = of_set("tamia")
    node = dict(whole.nodes[0])
    node["nvidia-smi.csv"] = "NVIDIA H100 80GB HBM3, 81559 MiB, Disabled\n"
    described, site = found(Captured(whole.login, (node,)))
    gpus = site.partitions["gpubase_bynode_b1-h100"].gpus
    assert gpus is not None
    assert (gpus.per_node, gpus.topology, gpus.memory) == (4, None, None)
    assert "gpubase_bynode_b1-h100: 1 of 4 GPUs were seen on tg10102" in described.notes


def test_more_gpus_than_slurm_counts_are_a_contradiction() -> None:
    whole = of_set("tamia")
    node = {**whole.nodes[0], "nvidia-smi.csv": "NVIDIA H100 80GB HBM3, 81559 MiB, Disabled\n" * 8}
    _, site = found(Captured(whole.login, (node,)))
    assert list(site.partitions) == ["gpubase_bynode_b1-h200"]
    whole = of_set("juwels-booster")
    node = {**whole.nodes[0], "nvidia-smi.csv": "NVIDIA A100-SXM4-40GB, 40960 MiB, Disabled\n" * 8}
    _, site = found(Captured(whole.login, (node,)))
    assert site.partitions["booster"].gpus is None


def test_a_kind_of_node_that_its_partition_has_beside_others_needs_a_way_to_ask_for_it() -> None:
    """The others are described only with --all: they are there all the same."""
    kind = "   Gres=gpu:h200:8(S:0-1)\n", "CfgTRES=cpu=64,mem=1024000M,billing=64,gres/gpu=8"
    captures = changed(of_set("tamia"), "scontrol-node.txt", kind[0], "   Gres=(null)\n")
    captures = changed(captures, "scontrol-node.txt", kind[1], "CfgTRES=cpu=64,mem=1024000M")
    captures = changed(captures, "sinfo.txt", "gpu:h200:8(S:0-1)", "(null)")
    _, site = found(Captured(captures.login))
    (gpus,) = [partition.gpus for partition in site.partitions.values()]
    assert gpus is not None
    assert gpus.request == "--gpus-per-node=h100:{n}"
    captures = changed(captures, "sinfo.txt", "gpu:h100:4(S:0-1)", "gpu:h100:3(S:0-1)")
    assert list(found(Captured(captures.login))[1].partitions) == ["default"]


@pytest.mark.parametrize(
    "type_", ["a100_3g.20gb", "a100-1g5gb", "1g.10gb", "a100-mig", "a100_20gb"]
)
def test_a_type_that_names_a_part_of_a_gpu_is_no_gpu(type_: str) -> None:
    captures = changed(of_set("tamia"), "scontrol-node.txt", "gpu:h200:8", f"gpu:{type_}:8")
    captures = Captured({**captures.login, "sinfo.txt": ""})
    models = {p.gpus.model for p in found(captures)[1].partitions.values() if p.gpus}
    assert models == {"h100"}


def test_gpus_that_the_probe_found_in_parts_are_not_those_that_slurm_counts() -> None:
    whole = of_set("juwels-booster")
    node = {**whole.nodes[0], "nvidia-smi.csv": "NVIDIA A100-SXM4-40GB, 40960 MiB, Enabled\n" * 4}
    described, site = found(Captured(whole.login, (node,)))
    assert site.partitions["booster"].gpus is None
    assert any("in parts (MIG)" in question for _, question in described.questions)


def test_untyped_requests_may_be_given_parts_of_gpus_on_other_nodes() -> None:
    captures = changed(of_set("juwels-booster"), "scontrol-node.txt", "mem512,", "")
    first = "Gres=gpu:4(S:1,3,5,7)"
    assert first in captures.login["scontrol-node.txt"]
    text = captures.login["scontrol-node.txt"].replace(first, "Gres=gpu:a100_3g.20gb:8", 1)
    _, site = found(Captured({**captures.login, "scontrol-node.txt": text, "sinfo.txt": ""}))
    assert "booster" not in site.partitions


def test_one_node_does_not_speak_for_others_with_other_cpus_or_features() -> None:
    whole = of_set("juwels-booster")
    told = changed(
        whole,
        "scontrol-node.txt",
        "NodeName=jwb0001 Arch=x86_64 CoresPerSocket=24",
        "NodeName=jwb0001 Arch=x86_64 CoresPerSocket=12",
    )
    described, site = found(told)
    assert site.partitions["booster"].fabric is None
    assert "booster: its nodes differ, so that jwb0003 does not speak for all" in described.notes
    nodes = whole.login["scontrol-node.txt"].replace("RealMemory=505600", "RealMemory=1024000", 1)
    _, site = found(Captured({**whole.login, "scontrol-node.txt": nodes}, whole.nodes))
    assert site.partitions["booster"].fabric is None
    text = whole.login["scontrol-node.txt"].replace("mem512,gpu,amd,booster", "mem512,titan", 2)
    _, site = found(Captured({**whole.login, "scontrol-node.txt": text}, whole.nodes))
    assert site.partitions["booster"].gpus is None


def test_outputs_of_a_node_that_the_cluster_does_not_have_say_nothing() -> None:
    whole = of_set("perlmutter")
    for told in ("was=", "host=other"):
        text = (
            whole.nodes[0]["node.txt"].replace("host=", told).replace("internet=no", "internet=yes")
        )
        described, site = found(Captured(whole.login, ({**whole.nodes[0], "node.txt": text},)))
        assert all(partition.fabric is None for partition in site.partitions.values())
        assert site.internet is None
        assert any("no node of this cluster" in note for note in described.notes)


def test_cpus_next_to_gpus_are_left_out_where_the_job_saw_only_its_own() -> None:
    whole = of_set("tamia")
    topo = whole.nodes[0]["nvidia-smi-topo.txt"]
    node = {**whole.nodes[0], "nvidia-smi-topo.txt": topo.replace("0-23", "0-5")}
    described, site = found(Captured(whole.login, (node,)))
    question = "nvidia-smi topo -m on tg10102 shows CPUs that are no whole NUMA nodes"
    assert ("partitions.gpubase_bynode_b1-h100.gpus.cpus", question) in described.questions
    gpus = site.partitions["gpubase_bynode_b1-h100"].gpus
    assert gpus is not None
    assert (gpus.cpus, gpus.topology) == ([], "all-to-all")


def test_cpus_next_to_gpus_need_the_output_of_lscpu() -> None:
    whole = of_set("tamia")
    node = {name: text for name, text in whole.nodes[0].items() if name != "lscpu.txt"}
    described, _ = found(Captured(whole.login, (node,)))
    question = "nvidia-smi topo -m on tg10102 needs lscpu beside it"
    assert ("partitions.gpubase_bynode_b1-h100.gpus.cpus", question) in described.questions


def test_gpus_that_slurm_does_not_know_on_shared_nodes_are_told_only() -> None:
    captures = of_set("vista")
    text = captures.login["scontrol-partition.txt"].replace(
        "OverSubscribe=EXCLUSIVE", "OverSubscribe=NO"
    )
    config = captures.login["scontrol-config.txt"].replace("select/linear", "select/cons_tres")
    login = {**captures.login, "scontrol-partition.txt": text, "scontrol-config.txt": config}
    described, site = found(Captured(login, captures.nodes))
    assert site.partitions["gh"].gpus is None
    assert any("which option asks for a whole node?" in note for note in described.notes)


@pytest.mark.parametrize(
    ("node", "ibstat"),
    [
        ("rdma=mlx5_0\ncxi=\nhsn=hsn0:100000", "Ethernet Active"),
        ("rdma=mlx5_0 mlx5_1\ncxi=\nhsn=", "Ethernet Active,InfiniBand Down"),
        ("rdma=none\ncxi=\nhsn=hsn0:100000", ""),
        ("rdma=efa_0\ncxi=\nhsn=", "Unspecified Active"),
        ("rdma=mlx5_0 mlx5_1\ncxi=\nhsn=", "InfiniBand Active,Ethernet Active 400"),
    ],
)
def test_a_network_that_may_be_another_is_asked_for(node: str, ibstat: str) -> None:
    whole = of_set("vista")
    ports = "".join(
        f"CA 'mlx5_{number}'\n\tPort 1:\n\t\tState: {state}\n\t\tPhysical state: LinkUp\n"
        f"\t\tRate: {''.join(rate) or 100}\n\t\tLink layer: {layer}\n"
        for number, (layer, state, *rate) in enumerate(
            map(str.split, filter(None, ibstat.split(",")))
        )
    )
    told = {"node.txt": f"partition=gh\nhost=c608-002\n{node}\n", "ibstat.txt": ports}
    _, site = found(Captured(whole.login, ({**whole.nodes[0], **told},)))
    assert site.partitions["gh"].fabric is None


def test_a_gpu_that_only_tells_of_a_fault_leaves_the_number_unknown() -> None:
    whole = of_set("vista")
    fault = "Unable to determine the device handle for GPU 0000:1B:00.0: Unknown Error\n"
    node = {**whole.nodes[0], "nvidia-smi.csv": whole.nodes[0]["nvidia-smi.csv"] + fault}
    described, site = found(Captured(whole.login, (node,)))
    assert site.partitions["gh"].gpus is None
    assert any("nvidia-smi.csv was not read" in note for note in described.notes)


def test_nodes_with_four_and_eight_gpus_that_nothing_tells_apart_are_left_out() -> None:
    captures = changed(of_set("tamia"), "scontrol-node.txt", "gpu:h200:8", "gpu:h100:8")
    captures = changed(captures, "scontrol-node.txt", "icelake,h200", "icelake,h100")
    described, site = found(Captured({**captures.login, "sinfo.txt": ""}, captures.nodes))
    assert all(partition.gpus is None for partition in site.partitions.values())
    assert sum("cannot be told from others" in note for note in described.notes) == 2


def test_a_type_that_names_no_gpu_leaves_the_gpus_to_the_probe() -> None:
    captures = Captured(of_set("juwels-booster").login)
    described, site = found(captures)
    assert site.partitions["booster"].gpus is None
    told = {key: q for keys, q in described.questions for key in keys.split(", ")}
    assert "--probe booster" in told["partitions.booster.gpus.model"]
    assert told["partitions.booster.gpus.request"].startswith("--gres=gpu:{n}, says Gres of ")


def test_sinfo_stands_in_for_nodes_that_scontrol_does_not_show() -> None:
    login = of_set("tamia").login
    _, site = found(Captured({"sinfo.txt": login["sinfo.txt"]}))
    h200 = site.partitions["gpubase_bynode_b1-h200"]
    assert h200.gpus is not None
    assert (h200.gpus.per_node, h200.time_limit, h200.nodes) == (8, 86400, 2)
    assert h200.cpus is not None
    assert (h200.cpus.count, h200.cpus.arch) == (64, None)


def test_a_cluster_that_tells_nothing_has_a_file_all_the_same() -> None:
    described, site = found(Captured({"scontrol-config.txt": "slurm_load_ctl_conf error\n"}))
    assert list(site.partitions) == ["default"]
    assert any("scontrol-config.txt was not read" in note for note in described.notes)


def test_an_empty_output_is_told_from_one_that_was_not_taken() -> None:
    whole = of_set("vista")
    login = {name: text for name, text in whole.login.items() if name != "scontrol-config.txt"}
    described, _ = found(Captured({**login, "sinfo.txt": "\n", "commands.txt": ""}, whole.nodes))
    notes = [note for note in described.notes if note.startswith(("scontrol", "sinfo", "commands"))]
    assert sorted(notes) == [
        "scontrol-config.txt was not taken: it has what `scontrol show config` prints",
        "scontrol-topology.txt was not taken: it has what `scontrol show topology` prints",
        f"sinfo.txt is empty: `{' '.join(LOGIN['sinfo.txt'])}` printed nothing, or failed",
    ]


def test_of_a_node_that_holds_too() -> None:
    whole = of_set("tamia")
    node = {**whole.nodes[0], "nvidia-smi.csv": "", "ibstat.txt": ""}
    described, _ = found(Captured(whole.login, (node,)))
    assert "nvidia-smi.csv is empty: its command printed nothing, or failed, on tg10102" in (
        described.notes
    )
    assert "gpubase_bynode_b1-h100: nvidia-smi told of no GPU on tg10102" in described.notes
    assert not any(note.startswith("ibstat.txt") for note in described.notes)
    del node["nvidia-smi.csv"]
    described, _ = found(Captured(whole.login, (node,)))
    assert "gpubase_bynode_b1-h100: nvidia-smi.csv was not taken on tg10102" in described.notes


def test_real_captures_are_described() -> None:
    login = {
        "scontrol-node.txt": capture("scontrol_show_node_gpu_20.11_mila.txt"),
        "scontrol-partition.txt": "PartitionName=main\n   State=UP\n",
    }
    _, site = found(Captured(login))
    gpus = {key: (p.gpus.model, p.gpus.per_node) for key, p in site.partitions.items() if p.gpus}
    assert gpus == {"main-rtx8000": ("rtx8000", 8), "main-v100": ("v100", 8)}


def test_captures_in_another_form_are_told_and_sinfo_stands_in() -> None:
    json = '{"nodes": [{"name": "n1", "gres": "gpu:h100:4"}]}\n'
    login = {**of_set("tamia").login, "scontrol-node.txt": json, "sacctmgr-qos.txt": "refused\n"}
    described, site = found(Captured(login))
    assert set(site.partitions) == {"gpubase_bynode_b1-h100", "gpubase_bynode_b1-h200"}
    unread = [note for note in described.notes if "was not read" in note]
    assert [note.partition(" ")[0] for note in unread] == ["scontrol-node.txt", "sacctmgr-qos.txt"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("h100", GpuName("h100", None, "nvlink4")),
        ("nvidia_h100_80gb_hbm3", GpuName("h100", 80 * 10**9, "nvlink4")),
        ("NVIDIA A100-SXM4-40GB", GpuName("a100", 40 * 10**9, "nvlink3")),
        ("nvidia_gh200_480gb", GpuName("gh200", None, "nvlink4")),
        ("NVIDIA GH200 120GB", GpuName("gh200", None, "nvlink4")),
        ("tesla_v100-sxm2-32gb", GpuName("v100", 32 * 10**9, "nvlink2")),
        ("h100_999gb", None),
        ("nvidia_l40s", GpuName("l40s", None, None)),
        ("tesla", None),
        ("v100l", None),
        ("a100_or_h100", None),
        ("", None),
    ],
)
def test_names_of_gpus(name: str, wanted: GpuName | None) -> None:
    assert read_gpu_name(name) == wanted


@pytest.mark.parametrize(
    ("default", "listed", "wanted"),
    [
        ("pmix", "pmix", "pmix"),
        ("none", "pmix", "pmix"),
        ("pmi2", "pmi2\n\tpmix", "pmix"),
        ("pmi2", "pmi2", "pmi2"),
        ("cray_shasta", "cray_shasta\n\tpmix", "cray_shasta"),
        ("pspmix", "pspmix", None),
        ("pmix", "pmi2", None),
    ],
)
def test_mpi_is_pmix_where_it_is_there(default: str, listed: str, wanted: str | None) -> None:
    login = {
        "scontrol-config.txt": f"ClusterName = c\nMpiDefault = {default}\n",
        "srun-mpi-list.txt": f"MPI plugin types are...\n\tnone\n\t{listed}\n",
    }
    assert found(Captured(login))[1].launch.mpi == wanted


def test_what_may_not_requeue_is_asked_for() -> None:
    described, site = found(of_set("delta"))
    assert site.scheduler.restart == "none"
    assert any("scheduler.restart" in keys for keys, _ in described.questions)
