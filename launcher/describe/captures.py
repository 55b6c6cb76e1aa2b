"""Which captures there are: the name of each file, and the command that fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.describe.facts import Facts
from launcher.nodelist import expand
from launcher.parsers.mpi_list import read_mpi_list
from launcher.parsers.slurm_cluster import Config, Topology, read_settings, read_topology
from launcher.parsers.slurm_nodes import Node, NodeGroup, read_nodes, read_sinfo
from launcher.parsers.slurm_partitions import (
    Association,
    Partition,
    Qos,
    read_associations,
    read_partitions,
    read_qos,
)
from launcher.parsers.slurm_values import read_tres

__all__ = ["LOGIN", "ON_NODE", "Slurm", "read_pairs", "read_slurm"]

_QOS = "Name,MaxWall,MaxTRES,MaxTRESPU,MaxJobsPU,MaxSubmitPU,MinTRES,GrpTRES,Flags"
# On a login node. Text and not JSON: all versions print these alike, and whether a partition gives
# whole nodes (OverSubscribe) is not in the JSON. {user} is who asks.
LOGIN: Mapping[str, tuple[str, ...]] = {
    "scontrol-config.txt": ("scontrol", "show", "config"),
    "scontrol-partition.txt": ("scontrol", "show", "partition"),
    "scontrol-node.txt": ("scontrol", "show", "node"),
    "sinfo.txt": ("sinfo", "--exact", "--format=%P|%D|%l|%c|%m|%G|%f|%T|%N"),
    "sacctmgr-qos.txt": ("sacctmgr", "-P", "show", "qos", f"format={_QOS}"),
    "sacctmgr-assoc.txt": (
        *("sacctmgr", "-P", "show", "assoc", "user={user}"),
        "format=Cluster,Account,User,Partition,QOS,DefaultQOS,MaxJobs,MaxSubmit,MaxWall,MaxTRES",
    ),
    "srun-mpi-list.txt": ("srun", "--mpi=list"),
    "srun-help.txt": ("srun", "--help"),
    "scontrol-topology.txt": ("scontrol", "show", "topology"),
    "commands.txt": ("bash", "-c", "type -P apptainer singularity enroot mpirun"),
}
# On a compute node, in a directory of their own; see `launcher.discover` for the script.
ON_NODE = (
    *("node.txt", "commands.txt", "nvidia-smi.csv", "nvidia-smi-topo.txt", "ibstat.txt"),
    *("ibdev2netdev.txt", "lscpu.txt"),
)


@dataclass(frozen=True, slots=True)
class Slurm:
    """What a login node tells; None for what it did not.

    Attributes
    ----------
    of_nodes, of_partitions
        Which command told them.
    """

    config: Config | None
    nodes: tuple[Node, ...]
    partitions: tuple[Partition, ...]
    groups: tuple[NodeGroup, ...]
    qos: Mapping[str, Qos] | None
    associations: tuple[Association, ...] | None
    mpi: tuple[str, ...] | None
    topology: Topology | None
    of_nodes: str
    of_partitions: str

    def setting(self, name: str) -> str:
        """A setting of slurm.conf in lower case; "" where it is not known."""
        return self.config.settings.get(name, "").lower() if self.config else ""


def read_slurm(facts: Facts, captures: Mapping[str, str]) -> Slurm:
    """Read the captures of a login node; ``sinfo`` stands in for a mute ``scontrol``."""
    nodes = facts.read(captures, "scontrol-node.txt", read_nodes) or ()
    partitions = facts.read(captures, "scontrol-partition.txt", read_partitions) or ()
    groups = facts.read(captures, "sinfo.txt", read_sinfo) or ()
    qos = facts.read(captures, "sacctmgr-qos.txt", read_qos)
    config = facts.read(captures, "scontrol-config.txt", read_settings)
    associations = facts.read(captures, "sacctmgr-assoc.txt", read_associations)
    return Slurm(
        config=config,
        nodes=tuple({node.name: node for node in nodes or _nodes_of(groups)}.values()),
        partitions=tuple({p.name: p for p in partitions or _partitions_of(groups)}.values()),
        groups=groups,
        qos={one.name: one for one in qos} if qos else None,
        associations=associations and _here(associations, config),
        mpi=facts.read(captures, "srun-mpi-list.txt", read_mpi_list),
        topology=facts.read(captures, "scontrol-topology.txt", read_topology),
        of_nodes="scontrol show node" if nodes else "sinfo",
        of_partitions="scontrol show partition" if partitions else "sinfo",
    )


def _here(
    associations: tuple[Association, ...], config: Config | None
) -> tuple[Association, ...] | None:
    """Those of this cluster: one database may serve several."""
    clusters = {one.cluster for one in associations} - {None}
    own = (config.cluster or "").lower() if config else ""
    if len(clusters) > 1 and not own:
        return None
    return tuple(one for one in associations if not own or (one.cluster or own).lower() == own)


def read_pairs(text: str) -> dict[str, str]:
    """Lines ``name=value``."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals and value}


def _nodes_of(groups: tuple[NodeGroup, ...]) -> tuple[Node, ...]:
    found: dict[str, Node] = {}
    for group in groups:
        try:
            names = expand(group.nodes or "")
        except ValueError:
            names = ()
        for name in names:
            known = found.get(name)
            of = (*(known.partitions if known else ()), *filter(None, [group.partition]))
            found[name] = _node_of(name, group, of)
    return tuple(found.values())


def _node_of(name: str, group: NodeGroup, partitions: tuple[str, ...]) -> Node:
    return Node(
        name=name,
        arch=None,
        cpus=group.cpus,
        cpus_for_jobs=None,
        sockets=None,
        cores_per_socket=None,
        threads_per_core=None,
        memory_bytes=group.memory_bytes,
        memory_reserved_bytes=None,
        gres=group.gres,
        tres=read_tres(""),
        features=group.features,
        partitions=partitions,
        states=group.states,
    )


def _partitions_of(groups: tuple[NodeGroup, ...]) -> tuple[Partition, ...]:
    names = dict.fromkeys(group.partition for group in groups if group.partition)
    # Of a partition sinfo says what the records of scontrol say under these names.
    text = "".join(f"PartitionName={name}\n\n" for name in names)
    return read_partitions(text)
