"""``ibdev2netdev``: which network interface belongs to which RDMA port. For names only.

Its ``(Up)`` and ``(Down)`` are of the interface: where no IP runs over InfiniBand, the ports that
carry the traffic say Down. `launcher.parsers.ibstat` knows the links.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.parsers.text import natural, split_lines

__all__ = ["Netdev", "Netdevs", "read_ibdev2netdev"]

# With -v: "0000:18:00.0 mlx5_0 (MT4129 - …) … fw 28.41 port 1 (DOWN  ) ==> ib0 (Down)"; Lustre's
# networks stand behind it, as "(o2ib)".
_LINE = re.compile(
    r"\s*(?:(?P<pci>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])\s+)?"
    r"(?P<adapter>[A-Za-z]\w*)\s(?:.*\s)?port\s+(?P<port>[0-9]{1,3})\s+(?:\(\w+ *\)\s+)?==>\s+"
    r"(?P<netdev>\S+)\s+\((?:Up|Down)\)\s*(?:\(\w+\)\s*)?(?:#.*)?"
)


@dataclass(frozen=True, slots=True)
class Netdev:
    """One port (``mlx5_0:1``), its interface if it has one, and its PCI address with ``-v``."""

    port: str
    netdev: str | None
    pci: str | None = None


@dataclass(frozen=True, slots=True)
class Netdevs:
    """The ports by number, and lines that are none."""

    ports: tuple[Netdev, ...]
    unread: tuple[str, ...]


def read_ibdev2netdev(text: str) -> Netdevs:
    """Read all lines of the form ``mlx5_0 port 1 ==> ib0 (Up)``."""
    found: list[Netdev] = []
    unread: list[str] = []
    for line in split_lines(text).lines:
        if match := _LINE.fullmatch(line):
            name = f"{match['adapter']}:{match['port']}"
            netdev = None if match["netdev"] == "N/A" else match["netdev"]
            found.append(Netdev(name, netdev, match["pci"]))
        elif line.strip():
            unread.append(line)
    return Netdevs(tuple(sorted(found, key=lambda n: natural(n.port))), tuple(unread))
