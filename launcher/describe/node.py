"""What one node of a kind tells, from a job on it: GPUs, links, rails, network, scratch."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.describe.captures import ON_NODE, read_pairs
from launcher.describe.cluster import container_facts
from launcher.describe.facts import Facts, Place
from launcher.describe.gpus import GpuName, read_gpu_name
from launcher.describe.kinds import Nodes
from launcher.fabric.node import NodeTopology, node_topology
from launcher.parsers.ibdev2netdev import read_ibdev2netdev
from launcher.parsers.ibstat import IbStat, Port, read_ibstat
from launcher.parsers.lscpu import read_lscpu
from launcher.parsers.text import ParseError, write_ranges
from launcher.parsers.topo import read_topo

__all__ = ["node_facts"]

# File systems that are the node's own, by `df --output=fstype`.
_LOCAL = {"btrfs", "ext2", "ext3", "ext4", "tmpfs", "xfs", "zfs"}
_LEAST_LOCKED_KIB = 1 << 20
_CELLS = 3
# A node may well have no port, and no command that starts images.
_NEVER_EMPTY = tuple(name for name in ON_NODE if name not in ("ibstat.txt", "commands.txt"))


@dataclass(frozen=True, slots=True)
class _Gpus:
    """As ``nvidia-smi --query-gpu=name,memory.total,mig.mode.current`` has them."""

    names: tuple[str, ...]
    memory_mib: int | None
    parts: bool


def node_facts(facts: Facts, captures: Mapping[str, str], partitions: Mapping[str, Nodes]) -> None:
    """Say what the captures of one node tell of its kinds, and of all nodes; they name its host."""
    told = read_pairs(captures.get("node.txt", ""))
    host = told["host"]
    where = f"on {host}"
    _site_facts(facts, told, where)
    container_facts(facts, captures, where)
    _empty(facts, captures, where)
    gpus = facts.read(captures, "nvidia-smi.csv", _read_gpus)
    for key, nodes in partitions.items():
        kind = nodes.kind
        if host not in {node.name for node in kind.nodes}:
            continue
        at = ("partitions", key)
        if gpus and gpus.parts and kind.gpus:
            parts = f"{len(gpus.names)} GPUs, some of them in parts (MIG)"
            facts.say((*at, "gpus", "per_node"), parts, f"nvidia-smi {where}")
        if not kind.alike:
            facts.notes.append(f"{key}: its nodes differ, so that {host} does not speak for all")
            continue
        _cpu_facts(facts, (*at, "cpus"), captures, where)
        ibstat = facts.read(captures, "ibstat.txt", read_ibstat)
        _fabric_type(facts, (*at, "fabric"), ibstat, told, where)
        if gpus and not gpus.parts and (kind.gpus or nodes.whole):
            _gpu_facts(facts, at, gpus, captures, ibstat, where)
            if nodes.whole:
                facts.say((*at, "gpus", "unit"), "node", nodes.whole)
        elif gpus and not kind.gpus:
            why = "which Slurm gives to nobody by itself: which option asks for a whole node?"
            facts.notes.append(f"{key}: {len(gpus.names)} GPUs {where}, {why}")
        elif not gpus and kind.gpus:
            taken = "nvidia-smi.csv" in captures
            why = "nvidia-smi told of no GPU" if taken else "nvidia-smi.csv was not taken"
            facts.notes.append(f"{key}: {why} {where}")


def _empty(facts: Facts, captures: Mapping[str, str], where: str) -> None:
    for name in _NEVER_EMPTY:
        if not captures.get(name, "more").strip():
            facts.notes.append(f"{name} is empty: its command printed nothing, or failed, {where}")


def _site_facts(facts: Facts, told: Mapping[str, str], where: str) -> None:
    for name, fstype in (("SLURM_TMPDIR", "slurm_tmpdir_fs"), ("TMPDIR", "tmpdir_fs")):
        # A TMPDIR that came along from the login node says nothing.
        own = told.get(name.lower(), "") not in ("", "/tmp", told.get("login_tmpdir"))  # noqa: S108 - not used
        if own and told.get(fstype) in _LOCAL:
            facts.say(("scratch", "node_local"), f"${name}", f"{name} {where}, on {told[fstype]}")
            break
    if told.get("internet") == "yes":
        facts.say(("internet",), True, f"a connection to port 443 {where}")
    elif told.get("internet") == "no" and not told.get("proxy"):
        facts.say(("internet",), False, f"no connection to port 443 {where}")
    elif told.get("proxy"):
        facts.ask(("internet",), f"only by a proxy {where}?")
    locked = told.get("memlock_kib", "")
    if locked.isdecimal() and int(locked) < _LEAST_LOCKED_KIB:
        facts.notes.append(f"{where} only {locked} KiB can be locked: too little for InfiniBand")


def _cpu_facts(facts: Facts, at: Place, captures: Mapping[str, str], where: str) -> None:
    lscpu = facts.read(captures, "lscpu.txt", read_lscpu)
    if lscpu and lscpu.arch in ("x86_64", "aarch64"):
        facts.say((*at, "arch"), lscpu.arch, f"lscpu {where}")


def _gpu_facts(
    facts: Facts,
    at: Place,
    gpus: _Gpus,
    captures: Mapping[str, str],
    ibstat: IbStat | None,
    where: str,
) -> None:
    place, source = (*at, "gpus"), f"nvidia-smi {where}"
    stated = facts.value((*place, "per_node"))
    if stated is not None and len(gpus.names) < stated:
        facts.notes.append(f"{at[1]}: {len(gpus.names)} of {stated} GPUs were seen {where}")
        return
    facts.say((*place, "per_node"), len(gpus.names), source)
    named = read_gpu_name(gpus.names[0]) if len(set(gpus.names)) == 1 else None
    if named:
        facts.say((*place, "model"), named.model, source)
        _memory(facts, (*place, "memory"), gpus, named, source)
    topo = facts.read(captures, "nvidia-smi-topo.txt", read_topo)
    if topo is None or topo.gpus != tuple(range(len(gpus.names))):
        facts.ask((*place, "topology"), f"nvidia-smi topo -m {where} does not show all GPUs")
        return
    netdevs = facts.read(captures, "ibdev2netdev.txt", read_ibdev2netdev)
    node = node_topology(topo, ibstat, netdevs)
    _near_cpus(facts, (*place, "cpus"), node, captures, where)
    _links(facts, place, node, named, where)
    if facts.value((*at, "fabric", "type")) == "infiniband":
        _rails(facts, (*at, "fabric"), node, where)


def _memory(facts: Facts, at: Place, gpus: _Gpus, named: GpuName, source: str) -> None:
    """Nominal where the name has it and what is there fits that; else what is there."""
    total = None if gpus.memory_mib is None else gpus.memory_mib << 20
    stated = facts.value(at)
    nominal = named.memory_bytes or stated
    if total is not None and nominal is not None and 0.9 < total / nominal < 1.1:  # noqa: PLR2004 - ECC, GiB for GB
        facts.say(at, nominal, source)
    elif total is not None:
        facts.say(at, total, source)


def _near_cpus(
    facts: Facts, at: Place, node: NodeTopology, captures: Mapping[str, str], where: str
) -> None:
    """Say them where they are whole NUMA nodes: a job may have seen only its own CPUs."""
    lscpu = facts.read(captures, "lscpu.txt", read_lscpu)
    numa = lscpu.numa.values() if lscpu else ()
    whole = all(
        cpus == frozenset().union(*(of for of in numa if of & cpus)) for cpus in node.cpus.values()
    )
    if whole and len(node.cpus) == len(node.gpus):
        cpus = [write_ranges(node.cpus[gpu]) for gpu in node.gpus]
        facts.say(at, cpus, f"nvidia-smi topo -m and lscpu {where}")
    elif node.cpus and not whole:
        why = "shows CPUs that are no whole NUMA nodes" if numa else "needs lscpu beside it"
        facts.ask(at, f"nvidia-smi topo -m {where} {why}")


def _links(facts: Facts, at: Place, node: NodeTopology, named: GpuName | None, where: str) -> None:
    source = f"nvidia-smi topo -m {where}"
    if node.nvlink is None or len(node.gpus) == 1:
        return
    topology = node.nvlink.topology
    if topology in ("all-to-all", "pairs", "none"):
        facts.say((*at, "topology"), topology, source)
    else:
        facts.notes.append(
            f"{at[1]}: NVLink joins GPUs in a way that site files do not know {where}"
        )
    if topology == "none":
        facts.say((*at, "link"), "pcie", source)
        return
    facts.say((*at, "links"), node.nvlink.links, source)
    facts.say((*at, "link"), named and named.nvlink, f"{source}; the model's generation")


def _fabric_type(
    facts: Facts, at: Place, ibstat: IbStat | None, told: Mapping[str, str], where: str
) -> None:
    """Say which network it is, as far as devices tell; Omni-Path looks like InfiniBand."""
    ports = ibstat.ports if ibstat else ()
    fabrics = [port for port in ports if port.infiniband]
    ethernet = [p for p in ports if p.link_layer == "Ethernet" and p.state == "Active"]
    slingshot = told.get("cxi", "").split()
    if slingshot:
        facts.say((*at, "type"), "slingshot", f"/sys/class/cxi {where}")
        facts.say((*at, "nics"), len(slingshot), f"/sys/class/cxi {where}")
        _hsn(facts, at, told, where)
    elif fabrics and _fastest(ethernet) > _fastest(fabrics):
        facts.ask((*at, "type"), f"Ethernet is faster than InfiniBand {where}: which is for GPUs?")
    elif any(port.adapter.startswith(("hfi", "opa")) for port in fabrics):
        facts.say((*at, "type"), "omnipath", f"ibstat {where}")
    elif fabrics:
        facts.say((*at, "type"), "infiniband", f"ibstat {where}")
    elif not told.get("hsn") and (
        all(port.link_layer == "Ethernet" for port in ports)
        if ports
        else told.get("rdma") == "none"
    ):
        facts.say((*at, "type"), "ethernet", f"no other network device {where}")
    else:
        facts.ask((*at, "type"), f"neither ibstat nor a Slingshot device {where}")


def _fastest(ports: Sequence[Port]) -> float:
    return max((port.rate_gbps or 0 for port in ports), default=0)


def _hsn(facts: Facts, at: Place, told: Mapping[str, str], where: str) -> None:
    """``hsn=hsn0:200000 hsn1:200000``: interfaces and their speed in Mbit/s."""
    found = [word.partition(":") for word in told.get("hsn", "").split()]
    if found:
        facts.say((*at, "interface"), "hsn", f"/sys/class/net {where}")
    speeds = {speed for _, _, speed in found}
    if len(speeds) == 1 and (speed := speeds.pop()).isdecimal() and int(speed) >= 1000:  # noqa: PLR2004 - Mbit/s
        facts.say((*at, "rate"), int(speed) // 1000, f"/sys/class/net {where}")


def _rails(facts: Facts, at: Place, node: NodeTopology, where: str) -> None:
    source = f"ibstat and nvidia-smi topo -m {where}"
    if node.rate_gbps and node.rate_gbps == int(node.rate_gbps):
        facts.say((*at, "rate"), int(node.rate_gbps), f"ibstat {where}")
    if not node.rails:
        facts.ask((*at, "rails"), node.unknown.get("rails", f"ibstat has none {where}"))
        return
    if down := [port for port, told in node.left_out.items() if told.startswith("InfiniBand")]:
        facts.notes.append(f"{at[1]}: no rails, as they are down {where}: {', '.join(down)}")
    if why := node.unknown.get("gpus"):
        facts.notes.append(f"{at[1]}: rails {where}: {why}")
    rails = [{"hca": rail.port, "gpus": list(rail.gpus)} for rail in node.rails]
    facts.say((*at, "rails"), rails, source)


def _read_gpus(text: str) -> _Gpus | None:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    rows = list(csv.reader(lines, skipinitialspace=True))
    for line, row in zip(lines, rows, strict=True):
        # Of a GPU that is broken only its fault is told: the others are not all of them.
        if len(row) != _CELLS or not re.fullmatch(r"[0-9]{1,7} MiB|\[.*\]", row[1].strip()):
            raise ParseError(f"not a GPU: {line[:60]!r}")
    if not rows:
        return None
    sizes = {row[1].strip().removesuffix(" MiB") for row in rows}
    size = sizes.pop() if len(sizes) == 1 else ""
    parts = any(row[2].strip() == "Enabled" for row in rows)
    names = tuple(row[0].strip() for row in rows)
    return _Gpus(names, int(size) if size.isdecimal() else None, parts)
