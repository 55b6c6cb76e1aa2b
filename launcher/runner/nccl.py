"""What a line of NCCL's log tells, for whoever knows what it should tell.

Lines are those of NVIDIA/nccl (``src/transport/net_ib``, ``net_socket.cc``, ``net.cc``,
``shm.cc``, ``src/init.cc``), with whatever prefix: a host, a process, the launcher's label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Kind", "classify"]

Kind = Literal["verbs", "sockets", "network", "no-gdr", "shared-memory"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one line says.

    Attributes
    ----------
    names
        ``verbs``: the ports, as ``mlx5_0:1/IB`` or ``mlx5_0:1/RoCE``; ``sockets``: interfaces,
        or none; ``network``: what NCCL calls it.
    """

    kind: Kind
    names: tuple[str, ...] = ()


_VERBS = re.compile(r"NET/IB : Using (.*)")
_PORT = re.compile(r"\[\d+\]\s*([^\s:{}]+:\d+/(?:IB|RoCE))")
_SOCKETS = re.compile(r"NET/\w*Socket : Using (.*)")
_INTERFACE = re.compile(r"\[\d+\]([^\s:]+):")
_NETWORK = re.compile(r"NCCL INFO Using network (\S[^\n]*)")
# Of a pair that is too far apart ("distance 9 > 4") the same is said where another is used.
_NO_GDR = re.compile(
    r"GPU Direct RDMA Disabled for HCA \d+ '|via NET/IB/\d+(?:\(\d+\))?(?!.*/GDRDMA)"
)


def classify(line: str) -> Finding | None:
    """What ``line`` says of the network; None where it says nothing of it."""
    if "NET/" not in line and "network " not in line and "Direct RDMA" not in line:
        return Finding("shared-memory") if " via SHM" in line else None
    if found := _VERBS.search(line):
        return Finding("verbs", tuple(_PORT.findall(found[1].partition("; OOB")[0])))
    if found := _SOCKETS.search(line):
        return Finding("sockets", tuple(_INTERFACE.findall(found[1])))
    if found := _NETWORK.search(line):
        name = found[1].strip()
        return Finding("sockets") if name == "Socket" else Finding("network", (name,))
    return Finding("no-gdr") if _NO_GDR.search(line) else None
