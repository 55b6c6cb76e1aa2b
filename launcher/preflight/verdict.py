"""Whether the ranks of a replica fit their plan and each other: pure, from what they have told.

Who is at fault is told by nodes: what is wrong with some of them, others may do better; what is
wrong with all is the job's, and would be so again. Where all are alike and only the site file has
it otherwise, that is wrong rather: a warning, and no end of the job.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.errors import Problem
from launcher.nodelist import expand
from launcher.plan.types import Network, Plan
from launcher.preflight.facts import Facts, NodeFacts
from launcher.preflight.speeds import Fault, Link, slow

__all__ = ["LOCKED_BYTES", "Finding", "check_world", "judge", "judge_links", "shared_bytes"]

# NCCL's segment for one connection of two ranks on a node, as in "failed to extend
# /dev/shm/nccl-… to 9637892 bytes" (kserve/kserve issue 3791). Without NVLink or PCIe peers it
# has at least two channels, so that four ranks are too many for Docker's 64 MB and two are not
# (NVIDIA/nccl issue 1518); its user guide wants 1 GB ("Runtime and MPI issues").
CONNECTION_BYTES = 9_637_888
_CHANNELS = 2
# Buffers of as many connections to the next node, each way, are registered with the network's
# device, which locks them; NCCL's user guide wants no limit at all.
_LOCKED_CONNECTIONS = 16
LOCKED_BYTES = 2 * _LOCKED_CONNECTIONS * CONNECTION_BYTES
# Of a single node nobody can say whether others are like it: in what a job brings along, they are.
_OF_A_NODE = {
    "preflight.gpu-twice",
    "preflight.gpus",
    "preflight.model-differs",
    "preflight.model-missing",
}
_ONE_IMAGE = "use one image, or one venv that all nodes share"
# What the site file says, and a job does not depend on.
_OF_THE_SITE = {"preflight.gpu-model", "preflight.port"}
# By what their own MPI_Get_library_version says.
_OPEN_MPI = "Open MPI"
_MAY_HAVE_PMI = re.compile(r"Open MPI v?[1-4]\.")
# By whether srun starts the ranks.
_FOR_OPEN_MPI = {
    True: "set launch.mpi: pmix in the site file; see `srun --mpi=list`",
    False: "set launch.mpi: openmpi4 or openmpi5, and have the mpirun of that library in PATH",
}
_FOR_OTHERS = {
    True: "use an image with Open MPI, which TensorRT-LLM's is, or set launch.mpi: pmi2",
    False: "use an image with Open MPI, which TensorRT-LLM's is, or set launch.mpi: hydra",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and the nodes on which it is.

    Attributes
    ----------
    problem
        A warning lets the replica go on.
    mendable
        Whether other nodes in their place may do better.
    part
        What of these nodes it is about, such as ``GPU 3`` or ``mlx5_1:1``.
    """

    problem: Problem
    hosts: tuple[str, ...]
    mendable: bool
    part: str = "node"


def shared_bytes(ranks: int) -> int:
    """What NCCL may need of ``/dev/shm`` for so many ranks on a node."""
    return ranks * _CHANNELS * CONNECTION_BYTES


def check_world(
    plan: Plan, *, rank: int, world: int, local_rank: int, host: str
) -> Iterator[Problem]:
    """What one rank sees to be wrong with its place: then it may not even know its number."""
    if world != plan.step.tasks:
        message = (
            f"rank {rank} on {host} is one of {world}, and the plan has {plan.step.tasks} ranks"
        )
        hint = "start script.sh as it was rendered; compare launch.mpi with `srun --mpi=list`"
        yield Problem("run.world-mismatch", message, hint=hint)
        return
    expected = rank % plan.step.tasks_per_node
    if local_rank != expected:
        message = (
            f"rank {rank} is number {local_rank} on {host}, and the plan has it as number "
            f"{expected} of its node"
        )
        hint = "ranks must fill the nodes block by block (--distribution=block:block)"
        yield Problem("run.placement-mismatch", message, hint=hint)


def judge(plan: Plan, replica: int, ranks: Sequence[Facts], digest: str | None) -> list[Finding]:
    """All that is wrong.

    Parameters
    ----------
    ranks
        Of one replica, in their order.
    digest
        The checkpoint's that the run began with (`launcher.plan.types.ModelRef`), where known.
    """
    court = _Court(plan, replica, ranks)
    found = [
        *court.places(),
        *court.models(digest),
        *court.libraries(),
        *court.gpus(),
        *court.gpu_models(),
        *court.ports(),
        *court.limits(),
        *court.versions(),
    ]
    return [court.finding(*one) for one in found]


_Severity = Literal["error", "warning"]
# Code, message, hint, and the first ranks of the nodes on which it is so; the part of these nodes;
# how bad it is.
_Found = (
    tuple[str, str, str, Sequence[Facts]]
    | tuple[str, str, str, Sequence[Facts], str]
    | tuple[str, str, str, Sequence[Facts], str, _Severity]
)


def judge_links(
    plan: Plan, links: Sequence[Link], faults: Sequence[Fault], hosts: Sequence[str]
) -> Iterator[Finding]:
    """What is wrong with the links between ranks, or with the GPUs that were to measure them.

    Parameters
    ----------
    hosts
        The nodes of the replica, in their order.
    """
    each = plan.layout.cut.ranks // plan.step.nodes
    ill = {fault.host for fault in faults if fault.gpu}
    for fault in faults:
        if fault.gpu:
            message = f"rank {fault.rank} on {fault.host} cannot use its GPU: {fault.error}"
            hint = "tell whoever runs the cluster; the job leaves this node out where it can"
            problem = Problem("preflight.gpus", message, hint=hint)
            mendable = len(hosts) == 1 or ill != set(hosts)  # else torch and driver do not fit
            yield Finding(problem, (fault.host,), mendable, f"GPU {fault.rank % each}")
    for found in slow(plan, links):
        link, where = found.link, found.link.ranks
        most = "" if link.finished else "less than "
        message = (
            f"{link.kind} of {' and '.join(_ends(where, hosts, each))} has "
            f"{most}{_gb(link.bytes_per_s)} GB/s, and the site declares {_gb(found.rate)} GB/s"
        )
        hint = "tell whoever runs the cluster; the job leaves this node out where it can"
        if not found.odd:
            hint = "compare fabric and gpus.links of the site file with what NCCL_DEBUG=INFO says"
        severity: _Severity = "error" if found.odd else "warning"
        problem = Problem("preflight.slow-link", message, hint=hint, severity=severity)
        at = tuple(dict.fromkeys(hosts[rank // each] for rank in found.blamed))
        yield Finding(problem, at, mendable=True, part=f"link {where[0]}-{where[-1]}")


def _ends(ranks: Sequence[int], hosts: Sequence[str], each: int) -> list[str]:
    """The ranks by node: each of two, or the first and last of a group on each."""
    found = []
    for node in dict.fromkeys(rank // each for rank in ranks):
        own = [rank for rank in ranks if rank // each == node]
        name = f"rank {own[0]}" if len(own) == 1 else f"ranks {own[0]}-{own[-1]}"
        found.append(f"{name} on {hosts[node]}")
    return found


def _gb(rate: float) -> str:
    return f"{rate / 1e9:.3g}"


class _Court:
    def __init__(self, plan: Plan, replica: int, ranks: Sequence[Facts]) -> None:
        self._plan, self._replica, self._ranks = plan, replica, ranks
        self._nodes = [(rank, rank.node) for rank in ranks if rank.node is not None]

    def finding(
        self,
        code: str,
        message: str,
        hint: str,
        at: Sequence[Facts],
        part: str = "node",
        severity: _Severity = "error",
    ) -> Finding:
        hosts = tuple(dict.fromkeys(rank.host for rank in at))
        everywhere = len(at) == len(self._nodes)
        if everywhere and code in _OF_THE_SITE:
            severity = "warning"
        alone = len(self._nodes) == 1 and code in _OF_A_NODE
        mendable = code != "preflight.wrong-node" and (not everywhere or alone)
        problem = Problem(code, message, hint=hint, severity=severity)
        return Finding(problem, hosts, mendable, part)

    def places(self) -> Iterator[_Found]:
        """Ranks that a launcher has put where the job is not."""
        first = self._ranks[0]
        try:
            nodes = expand(first.nodes or "")
        except ValueError:
            return
        wrong = [
            rank for rank in self._ranks if rank.job != first.job and _short(rank.host) not in nodes
        ]
        # Else Slurm's names of nodes are not what these call themselves.
        if wrong and _short(first.host) in nodes:
            message = f"job {first.job} has the nodes {first.nodes}, and not that of {_who(wrong)}"
            hint = "start script.sh as it was rendered, without a hostfile of your own"
            yield "preflight.wrong-node", message, hint, wrong

    def models(self, digest: str | None) -> Iterator[_Found]:
        plan = self._plan
        if plan.model_path is None:
            if plan.engine != "echo":
                message = f"the plan has no checkpoint of {plan.model}, only its shape"
                hint = "submit again with the checkpoint's directory, or the hub id of a cached one"
                yield "model.not-cached", message, hint, [rank for rank, _ in self._nodes]
            return
        if missing := [rank for rank, node in self._nodes if node.model is None]:
            why = _listed(f"{r.who}: {n.model_error}" for r, n in self._nodes if r in missing)
            hint = "is that directory on a file system that these nodes mount?"
            yield "preflight.model-missing", f"there is no checkpoint: {why}", hint, missing
        there = [(rank, node.model) for rank, node in self._nodes if node.model is not None]
        same = [(rank, model) for rank, model in there if digest in (None, model.digest)]
        if other := [pair for pair in there if pair not in same]:
            names = _unlike([model.files for _, model in (*same[:1], *other)])
            files = f" in {_listed(names)}" if names else ""
            at = [rank for rank, _ in other]
            message = f"{plan.model_path} is not what the run began with{files}: {_who(at)}"
            hint = "copy the checkpoint there anew, or start a new run with another output.path"
            yield "preflight.model-differs", message, hint, at
        odd, names = _odd([(rank, model.files) for rank, model in same])
        if odd:
            message = f"{plan.model_path} differs in {_listed(names)}: {_who(odd)}"
            hint = "copy the checkpoint there anew, or keep it on a file system that nodes share"
            yield "preflight.model-differs", message, hint, odd

    def libraries(self) -> Iterator[_Found]:
        """MPI worlds that would be of one rank each."""
        if self._plan.step.kind == "leader":
            found = [(rank, self._library(rank, node)) for rank, node in self._nodes]
            if wrong := [(rank, told) for rank, told in found if told is not None]:
                rank, (message, hint) = wrong[0]
                yield "preflight.mpi", f"{rank.who}: {message}", hint, [rank for rank, _ in wrong]

    def _library(self, rank: Facts, node: NodeFacts) -> tuple[str, str] | None:
        """What is wrong with the MPI of one node, and what to do."""
        launch = f"{self._plan.launcher}, launch.mpi {self._plan.mpi or 'unset'}"
        if node.mpi_error is not None:
            hint = "load Open MPI's module, or take NVIDIA's image of the release"
            return f"mpi4py does not start its MPI library: {node.mpi_error}", hint
        if node.mpi is None:
            return None
        by_srun, pmix = self._plan.launcher == "srun", "PMIX_RANK" in rank.pmi
        pmi = any(name.startswith("PMI_") for name in rank.pmi)
        if node.mpi.startswith(_OPEN_MPI):
            # Open MPI 4 may have been built with Slurm's PMI-1 and 2, of which 5 only says that it
            # has met them (ompi/runtime/help-mpi-runtime.txt); mpirun has PMIx alone.
            if pmix or (pmi and by_srun and _MAY_HAVE_PMI.match(node.mpi)):
                return None
            message = f"{node.mpi} would be alone, as the launcher ({launch}) offers no PMIx"
            return message, _FOR_OPEN_MPI[by_srun]
        if pmi or not pmix:
            return None
        message = f"{node.mpi} would be alone, as the launcher ({launch}) offers PMIx only"
        return message, _FOR_OTHERS[by_srun]

    def gpus(self) -> Iterator[_Found]:
        seen: dict[str, Facts] = {}
        for rank in self._ranks:
            node = self._node_of(rank)
            if rank.node is not None and node.gpu_error is not None:
                hint = "tell whoever runs the cluster; the job leaves this node out where it can"
                message = f"{rank.who}: nvidia-smi failed: {node.gpu_error}"
                yield "preflight.gpus", message, hint, [rank]
            if node.gpus is None or rank.visible is None:
                continue
            devices, count = rank.visible.split(","), len(node.gpus)
            absent = [d for d in devices if d.isdigit() and int(d) >= count]
            if absent and rank.node is not None:
                message = f"{rank.who} is to use GPU {_listed(absent)}, and sees {count} GPUs"
                hint = "compare gpus.per_node of the site file with `nvidia-smi -L` there"
                yield "preflight.gpus", message, hint, [rank], f"GPU {absent[0]}"
            for device in () if absent else self._own(rank, devices):
                uuid = node.gpus[int(device)] if device.isdigit() else device
                if uuid in seen:
                    message = f"{seen[uuid].who} and {rank.who} would use the same GPU, {uuid}"
                    hint = "start script.sh as it was rendered: every rank has a GPU of its own"
                    yield "preflight.gpu-twice", message, hint, [rank], f"GPU {device}"
                seen.setdefault(uuid, rank)

    def _node_of(self, rank: Facts) -> NodeFacts:
        """What the first rank of its node has told; ranks fill nodes one after another."""
        return self._nodes[rank.rank // self._plan.step.tasks_per_node][1]

    def _own(self, rank: Facts, devices: Sequence[str]) -> Sequence[str]:
        placements = self._plan.task(self._replica, rank.rank)
        return [devices[p.local_rank] for p in placements if p.local_rank < len(devices)]

    def gpu_models(self) -> Iterator[_Found]:
        """GPUs of another kind than the site says, of those that are the job's."""
        wanted = self._plan.gpus.model if self._plan.gpus else None
        if wanted is None:
            return
        found: dict[tuple[tuple[int, ...], str], list[Facts]] = {}
        for rank, node in self._nodes:
            used = _used(rank, node)
            names = [(n, name) for n, name in enumerate(node.gpu_names) if n in used]
            other = [n for n, name in names if not _is_model(wanted, name)]
            if other:
                found.setdefault((tuple(other), node.gpu_names[other[0]]), []).append(rank)
        for (numbers, name), at in found.items():
            message = f"GPU {_listed(map(str, numbers))} of {_hosts(at)} is {name!r}"
            hint = "correct gpus.model of the site file, or ask for nodes of one kind"
            message = f"{message}, and the site says {wanted}"
            yield "preflight.gpu-model", message, hint, at, f"GPU {numbers[0]}"

    def ports(self) -> Iterator[_Found]:
        """Rails that are down, slow or missing.

        Where no node shows any device, a container may hide them: NCCL's log tells, then.
        """
        network = self._plan.network
        if network is None or network.type == "slingshot" or network.sockets:
            return
        if not any(node.rdma for _, node in self._nodes):
            return
        found: dict[tuple[str, str], list[Facts]] = {}
        for rank, node in self._nodes:
            for bad in _bad_ports(network, node):
                found.setdefault(bad, []).append(rank)
        for (hca, wrong), at in found.items():
            message = f"{hca} of {_hosts(at)} {wrong}"
            hint = "tell whoever runs the cluster, or correct fabric of the site file"
            yield "preflight.port", message, hint, at, hca

    def limits(self) -> Iterator[_Found]:
        plan, nodes = self._plan, self._plan.step.nodes
        if plan.layout.allocation.gpus_per_node == 0:
            return
        ranks = plan.layout.cut.ranks // nodes
        least = shared_bytes(ranks)
        small = [rank for rank, node in self._nodes if _below(node.shm_bytes, least)]
        if small and ranks > 1 and plan.env.get("NCCL_SHM_DISABLE") != "1":
            free = min(n.shm_bytes or 0 for r, n in self._nodes if r in small)
            message = f"{free} bytes of shared memory are free, and {ranks} ranks need {least}"
            hint = "give the container --shm-size=1g or more, or set NCCL_SHM_DISABLE: '1' in env"
            yield "preflight.shared-memory", f"{message}: {_who(small)}", hint, small
        bound = [r for r, n in self._nodes if n.rdma and _below(n.memlock_bytes, LOCKED_BYTES)]
        if bound and nodes > 1 and plan.env.get("NCCL_IB_DISABLE") != "1":
            limits = _listed(sorted({str(n.memlock_bytes) for r, n in self._nodes if r in bound}))
            message = (
                f"{limits} bytes may be locked (ulimit -l), and InfiniBand needs {LOCKED_BYTES}"
            )
            hint = "run `ulimit -l unlimited` before sbatch, which hands limits on, or ask the site"
            yield "preflight.locked-memory", f"{message}: {_who(bound)}", hint, bound

    def versions(self) -> Iterator[_Found]:
        told = [(rank, dict(node.versions)) for rank, node in self._nodes]
        drivers = [(rank, {"driver": own.pop("driver")}) for rank, own in told if "driver" in own]
        if found := _differ(told):
            yield "preflight.versions", *found[:1], _ONE_IMAGE, found[1]
        if found := _differ(drivers):  # as while a cluster is brought up to date, node by node
            hint = "leave nodes out by resources.exclude if the engine fails on them"
            yield "preflight.versions", *found[:1], hint, found[1], "node", "warning"


def _is_model(wanted: str, name: str) -> bool:
    """Whether the driver's name of a GPU has the chip's in it that the site gives it.

    A site may add memory or socket, which drivers write in many ways: ``a100-sxm4-80gb`` is
    ``NVIDIA A100-SXM4-80GB``, ``h100-sxm5`` is ``NVIDIA H100 80GB HBM3``.
    """
    chips = re.findall(r"[a-z]+\d+|\d{4}", "-".join(_words(wanted)))
    return not chips or any(chip in "".join(_words(name)) for chip in chips)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _used(rank: Facts, node: NodeFacts) -> list[int]:
    """Which of a node's GPUs the job uses: a machine may have others, to show pictures."""
    wanted = (rank.visible or "").split(",")
    uuids = enumerate(node.gpus or ())
    return [n for n, uuid in uuids if str(n) in wanted or uuid in wanted]


def _short(host: str) -> str:
    return host.partition(".")[0]


def _hosts(ranks: Iterable[Facts]) -> str:
    return _listed(dict.fromkeys(rank.host for rank in ranks))


def _bad_ports(network: Network, node: NodeFacts) -> Iterator[tuple[str, str]]:
    """Rails of the site, and what is wrong with them on a node."""
    for rail in network.rails:
        adapter, _, number = rail.hca.partition(":")
        seen = [p for p in node.ports if p.adapter == adapter and number in ("", str(p.number))]
        if not seen:
            yield rail.hca, "is a rail of the site and is not there"
        for port in seen:
            if (port.state, port.physical) != ("Active", "LinkUp"):
                yield rail.hca, f"is {port.state or 'mute'} ({port.physical or 'mute'})"
            elif network.rate and port.rate_gbps is not None and port.rate_gbps < network.rate:
                found = f"{port.rate_gbps:g} Gbit/s"
                yield rail.hca, f"runs at {found}, and the site says {network.rate}"
            elif network.type == "infiniband" and port.link_layer not in (None, "InfiniBand"):
                yield rail.hca, f"is {port.link_layer}, and the site says InfiniBand"


def _below(value: int | None, least: int) -> bool:
    return value is not None and value < least


def _differ(told: Sequence[tuple[Facts, Mapping[str, str]]]) -> tuple[str, list[Facts]] | None:
    """What differs between nodes, in words, and on which of them it is unlike the others."""
    odd, names = _odd(told)
    if not odd:
        return None
    seen = ((r.host, name, own.get(name, "missing")) for r, own in told for name in names)
    listed = _listed(f"{name} {version} on {host}" for host, name, version in seen)
    return f"nodes have different software ({listed}): {_who(odd)}", odd


def _odd(told: Sequence[tuple[Facts, Mapping[str, str]]]) -> tuple[list[Facts], list[str]]:
    """Who is unlike most of the others, and in which names; all where there is no majority."""
    kinds = Counter(frozenset(values.items()) for _, values in told)
    if len(kinds) <= 1:
        return [], []
    (first, most), (_, next_most) = kinds.most_common(2)
    odd = [r for r, values in told if most == next_most or frozenset(values.items()) != first]
    return odd, _unlike([values for _, values in told])


def _unlike(told: Sequence[Mapping[str, str]]) -> list[str]:
    """Names that do not have the same value everywhere."""
    names = sorted({name for values in told for name in values})
    return [name for name in names if len({values.get(name) for values in told}) > 1]


def _who(ranks: Iterable[Facts]) -> str:
    return _listed(rank.who for rank in ranks)


def _listed(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
