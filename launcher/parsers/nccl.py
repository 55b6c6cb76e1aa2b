"""What NCCL's log says about the network that it found, line by line.

Reads ``NCCL_DEBUG=INFO`` (subsystems INIT, NET and ENV are enough) and the warnings that are always
on, whatever a launcher or an engine has put before them. The wordings are those of NCCL 2.18 to
2.30 (src/transport/net_ib.cc, net_socket.cc, p2p.cc, shm.cc, src/bootstrap.cc, src/plugin/net.cc).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

__all__ = ["Expected", "Finding", "NcclReader", "classify"]

_MOST_SEEN = 4096  # findings of one process that are told apart; a log has a few
_PREFIX = re.compile(
    r"(?:(?P<host>[\w.-]+):(?P<pid>[0-9]+):[0-9]+ )?(?:\[[0-9]+\] )?(?:\S+:[0-9]+ )?"
    r"NCCL (?:INFO|WARN|TRACE|VERSION) (?P<rest>.*)"
)
# srun --label, and mpirun --tag-output of Open MPI 4 and 5.
_LABEL = re.compile(r"\s*(?:([0-9]{1,6}): |\[[^\[\]]*,([0-9]{1,6})\]<std(?:out|err)>)")
_COMM = re.compile(r"comm 0x[0-9a-f]+ rank ([0-9]+) n[rR]anks [0-9]+")
_USING = re.compile(r"NET/(?P<net>[\w ]+?) ?: Using (?P<devices>\[[0-9].*?)(?:; OOB .*)?$")
# Adapters that NCCL puts together: "[0]={[0] mlx5_2:1/IB, [1] mlx5_3:1/IB}".
_DEVICE = re.compile(r"\[[0-9]+\] ?([\w.+-]+?(?::[0-9]+)?)/(IB|RoCE)\b")
_CHANNEL = re.compile(r"Channel \S+ ?: .*\bvia (NET/[^/]+\S*|\S+)")
_GDR = re.compile(r"/GDRDMA\b")
# The plugin of HPC-X, which NVIDIA's images have, is verbs too (NVIDIA/nccl issue 1120); its name
# is IBext_v8, or "NCCL RDMA Plugin v10" in later ones (Mellanox/nccl-rdma-sharp-plugins).
_VERBS = re.compile(r"IB(?:ext\w*)?|NCCL RDMA Plugin.*")
# aws-ofi-nccl, by the names that it has given itself.
_LIBFABRIC = ("AWS Libfabric", "Libfabric", "OFI")
_PROVIDER = re.compile(r"NET/OFI Selected [Pp]rovider is ([\w;.-]+)")
# From 2.27 on several are initialised, and one is assigned (src/plugin/net.cc).
_NETWORK = re.compile(r"(?:Using network|Assigned NET plugin) (\S.*?)(?: to comm| version.*)?\s*$")
_BOOTSTRAP = re.compile(r"Bootstrap ?: Using (?:\[[0-9]+\])?([\w.@-]+):")
_VIRTUAL = re.compile(r"lo$|docker|virbr|veth|br-|cni|podman")
_PEER = re.compile(r"from peer (\S+?)(?:<[0-9]+>)? with (?:status=(?:\w+\()?|error )([0-9]+)")


@dataclass(frozen=True, slots=True)
class Expected:
    """What the plan expects; nothing known is judged as InfiniBand over nodes would be.

    Attributes
    ----------
    fabric
        ``infiniband``, ``slingshot``, ``ethernet`` or ``omnipath``.
    rails
        Ports such as ``mlx5_0:1`` that are to be used, all of them and no other.
    nvlink
        Whether the ranks of a node are joined by NVLink.
    interface
        What ``NCCL_SOCKET_IFNAME`` says.
    over_nodes
        Whether the ranks are on several nodes; on one node the network is not used.
    """

    fabric: str | None = None
    rails: tuple[str, ...] = ()
    nvlink: bool | None = None
    interface: str | None = None
    over_nodes: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """What one line says.

    Attributes
    ----------
    kind
        Stable name, such as ``sockets``.
    good
        As it should be.
    values
        Devices, an interface, a peer: what the line is about.
    """

    kind: str
    good: bool
    message: str
    hint: str | None = None
    values: tuple[str, ...] = ()
    host: str | None = None
    rank: int | None = None


# Lines that say what is wrong by themselves: kind, pattern, message, hint.
_WRONG: tuple[tuple[str, re.Pattern[str], str, str | None], ...] = tuple(
    (kind, re.compile(pattern), message, hint)
    for kind, pattern, message, hint in (
        (
            "no-port",
            r"NET/IB : No device found",
            "NCCL finds no InfiniBand port",
            "see that /dev/infiniband and libibverbs are in the container and ibstat says Active",
        ),
        (
            "no-verbs",
            r"Failed to open libibverbs\.so",
            "NCCL finds no libibverbs, which InfiniBand needs",
            "install rdma-core in the image, or mount the host's",
        ),
        (
            "no-interface",
            r"[Bb]ootstrap ?: no socket interface found",
            "no network interface has the name that NCCL_SOCKET_IFNAME gives",
            "set fabric.interface of the site file to one that all nodes have",
        ),
        (
            "plugin-missing",
            r"Could not find: ?(?=.*libnccl-net-)(?P<what>.*?)\.?(?: Using internal.*)?$",
            "NCCL's network plugin is not there: {what}",
            "make the plugin's directory part of LD_LIBRARY_PATH in the image",
        ),
        (
            "network-missing",
            r"network (?P<what>\S.*?) not found",
            "NCCL has no network called {what}, which NCCL_NET asks for",
            "make its plugin visible in the image, or unset NCCL_NET",
        ),
        (
            "network-missing",
            r"Failed to initialize any NET plugin",
            "NCCL has no network: it finds none of that which NCCL_NET asks for",
            "make its plugin visible in the image, or unset NCCL_NET",
        ),
        (
            "completion",
            r"NET/OFI Request .*completed with error\. (?P<what>RC: .*?)(?:\. Completed .*)?$",
            "libfabric gave up a message: {what}",
            "see what the other ranks of the step say",
        ),
        (
            "no-gdr",
            r"GPU Direct RDMA [Dd]isabled(?: for HCA [0-9]+)?(?P<what>.*)",
            "GPUs' memory does not reach the network by itself: {what}",
            "load nvidia_peermem on the node, or use a kernel with dma-buf",
        ),
        (
            "mixed-links",
            r"Attempted to connect incompatible devices",
            "InfiniBand on one node meets RoCE on another",
            "name the rails of the partition in the site file, so that all nodes use the same",
        ),
        (
            "no-transport",
            r"No transport found for rank (?P<what>\S+)",
            "no way from rank {what} to its peer: GPUs are hidden from each other",
            "ask for GPUs by node, not by task",
        ),
        (
            "version-mismatch",
            r"Mismatched NCCL version detected(?P<what>.*)",
            "ranks have different versions of NCCL: {what}",
            "use one image on all nodes",
        ),
        (
            "no-route",
            r"ibv_modify_qp failed(?P<what>.*)",
            "a port reaches no port of its peer: {what}",
            "name only ports of one subnet as rails, in one order on all nodes",
        ),
    )
)
_BY_STATUS: Mapping[str, tuple[str, str, str]] = {
    "12": (
        "retry-exceeded",
        "{peer} does not answer on InfiniBand any more: its process, its node or a link is lost",
        "see whether that node is up; if it is, raise NCCL_IB_TIMEOUT",
    ),
    "4": (
        "protection",
        "the memory of a GPU may not be read by the adapter (peer {peer})",
        "have PCIe ACS and the IOMMU turned off on the node",
    ),
}


def classify(line: str, expected: Expected = Expected()) -> Finding | None:
    """What one line says; None for one that is not NCCL's, or says nothing of the network.

    Costs two searches for a word where the line is not NCCL's.
    """
    if "NCCL" not in line and "ibv_" not in line:
        return None
    match = _PREFIX.search(line)
    rest = match["rest"] if match else line
    found = _told(rest, expected)
    if found is None:
        return None
    label = _LABEL.match(line)
    rank = int(label[1] or label[2]) if label else None
    return replace(found, host=match["host"] if match else None, rank=rank)


class NcclReader:
    """Reads the log of one or more ranks and gives each thing once for each process.

    Ranks of lines without a label are learnt from what NCCL says at its start.
    """

    def __init__(self, expected: Expected | None = None) -> None:
        self._expected = expected or Expected()
        self._ranks: dict[tuple[str, str], int] = {}
        self._seen: set[Finding] = set()

    def feed(self, line: str) -> Finding | None:
        """What is new in ``line``."""
        if "NCCL" not in line and "ibv_" not in line:
            return None
        process = self._process(line)
        found = classify(line, self._expected)
        if found is None:
            return None
        if found.rank is None and process is not None:
            found = replace(found, rank=self._ranks.get(process))
        if found in self._seen:
            return None
        if len(self._seen) < _MOST_SEEN:
            self._seen.add(found)
        return found

    def _process(self, line: str) -> tuple[str, str] | None:
        match = _PREFIX.search(line)
        if match is None or match["host"] is None:
            return None
        process = match["host"], match["pid"]
        if comm := _COMM.search(line):
            self._ranks.setdefault(process, int(comm[1]))
        return process


def _told(text: str, expected: Expected) -> Finding | None:
    if using := _USING.search(text):
        return _using(using["net"], using["devices"], expected)
    if channel := _CHANNEL.search(text):
        return _channel(channel[1], expected)
    if network := _NETWORK.search(text):
        return _network(network[1], (), expected)
    if provider := _PROVIDER.search(text):
        return _provider(provider[1], expected)
    if bootstrap := _BOOTSTRAP.search(text):
        return _bootstrap(bootstrap[1], expected)
    if peer := _PEER.search(text):
        return _lost(peer[1], peer[2])
    for kind, pattern, message, hint in _WRONG:
        if match := pattern.search(text):
            what = (match.groupdict().get("what") or "").strip(" :,")
            good = kind in _OF_NETWORK and not expected.over_nodes
            said = message.format(what=what).rstrip(" :")
            return Finding(kind, good, said, hint, (what,) if what else ())
    return None


# What does not matter on one node.
_OF_NETWORK = {"no-port", "no-verbs", "plugin-missing", "no-gdr"}


def _using(net: str, devices: str, expected: Expected) -> Finding:
    ports = _DEVICE.findall(devices)
    if net != "IB":
        names = tuple(re.findall(r"\[[0-9]+\]([\w.@-]+)", devices))
        return _network(net, names, expected)
    names = tuple(name for name, _ in ports)
    roce = tuple(name for name, layer in ports if layer == "RoCE")
    if not expected.over_nodes or expected.fabric == "ethernet":
        return Finding("infiniband", good=True, message=f"ports {_list(names)}", values=names)
    if roce:
        message = f"NCCL uses RoCE: {_list(roce)}, beside {len(names) - len(roce)} InfiniBand ports"
        return Finding("roce", good=False, message=message, hint=_NAME_RAILS, values=roce)
    return _rails(names, expected)


_NAME_RAILS = "name the rails of the partition in the site file"


def _rails(names: tuple[str, ...], expected: Expected) -> Finding:
    wanted = set(expected.rails)
    extra = tuple(name for name in names if wanted and name not in wanted)
    missing = tuple(name for name in expected.rails if name not in names)
    if extra:
        message = f"NCCL uses ports that are no rails: {_list(extra)}"
        return Finding("extra-port", good=False, message=message, hint=_NAME_RAILS, values=extra)
    if missing:
        message = f"NCCL lacks {len(missing)} of {len(wanted)} rails: {_list(missing)}"
        hint = "see ibstat on that node: the port is down, or has another name"
        return Finding("rail-missing", good=False, message=message, hint=hint, values=missing)
    message = f"InfiniBand, {len(names)} ports: {_list(names)}"
    return Finding("infiniband", good=True, message=message, values=names)


def _network(net: str, devices: tuple[str, ...], expected: Expected) -> Finding:
    """A network by its name alone, or one whose devices have no link layer."""
    through = f" through {_list(devices)}" if devices else ""
    if _VERBS.fullmatch(net):
        return Finding("network", good=True, message="NCCL uses InfiniBand verbs", values=(net,))
    if net == "Socket":
        good = not expected.over_nodes or expected.fabric == "ethernet"
        message = f"NCCL uses TCP sockets{through}"
        hint = None if good else "see the lines above it: no port, no libibverbs, or no plugin"
        return Finding("sockets", good=good, message=message, hint=hint, values=devices)
    good = not expected.over_nodes or expected.fabric not in (None, "infiniband")
    if net in _LIBFABRIC and expected.fabric is None:
        good = True
    message = f"NCCL uses its plugin {net}{through}"
    hint = None if good else "unset NCCL_NET, or set NCCL_NET_PLUGIN=none"
    return Finding("plugin", good=good, message=message, hint=hint, values=(net, *devices))


def _provider(name: str, expected: Expected) -> Finding:
    """What is below ``AWS Libfabric``, which says nothing of that: without a device it is TCP."""
    slow = name.split(";", maxsplit=1)[0] in ("net", "sockets", "tcp", "udp")
    good = not (slow and expected.over_nodes) or expected.fabric == "ethernet"
    message = f"libfabric uses its provider {name}"
    hint = None if good else "see that libfabric and the devices (/dev/cxi*) are in the container"
    return Finding("provider", good=good, message=message, hint=hint, values=(name,))


def _channel(via: str, expected: Expected) -> Finding | None:
    way, _, rest = via.partition("/")
    if way == "P2P":
        return Finding("p2p", good=True, message="GPUs of a node reach each other", values=(way,))
    if way == "SHM":
        good = expected.nvlink is not True
        hint = None if good else "ask for GPUs by node, not by task; see PCIe ACS on the node"
        message = "GPUs of a node talk through its memory" + ("" if good else ", not NVLink")
        return Finding("shm", good=good, message=message, hint=hint, values=(way,))
    if way != "NET":
        return None
    net = rest.split("/")[0]
    if net == "Socket":
        return _network(net, (), expected)
    if _GDR.search(rest):
        return Finding("gdr", good=True, message="GPUs' memory goes to the network by itself")
    good = not expected.over_nodes or expected.fabric in ("ethernet", "omnipath")
    hint = None if good else "load nvidia_peermem on the node, or see NCCL_NET_GDR_LEVEL"
    message = f"what goes over {net} is copied through the memory of the node"
    return Finding("no-gdr", good=good, message=message, hint=hint, values=(net,))


def _bootstrap(name: str, expected: Expected) -> Finding:
    wrong = _VIRTUAL.match(name) is not None and expected.over_nodes
    if wrong or not _named(name, expected.interface):
        asked = f", not {expected.interface}" if expected.interface else ""
        message = f"NCCL meets its peers on {name}{asked}"
        hint = "set fabric.interface of the site file"
        return Finding("interface", good=False, message=message, hint=hint, values=(name,))
    return Finding("interface", good=True, message=f"peers meet on {name}", values=(name,))


def _named(name: str, asked: str | None) -> bool:
    """Whether ``NCCL_SOCKET_IFNAME=asked`` takes ``name``: prefixes, ``=`` exact, ``^`` not."""
    if not asked:
        return True
    words = asked.lstrip("^=").split(",")
    exact = asked.lstrip("^").startswith("=")
    hit = any(name == word if exact else name.startswith(word) for word in words)
    return hit != asked.startswith("^")


def _lost(peer: str, status: str) -> Finding:
    other = ("completion", f"InfiniBand gave up with status {status} (peer {{peer}})", None)
    kind, message, hint = _BY_STATUS.get(status, other)
    return Finding(kind, good=False, message=message.format(peer=peer), hint=hint, values=(peer,))


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")  # noqa: PLR2004
