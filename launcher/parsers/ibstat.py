"""``ibstat``: the ports of a node's RDMA adapters and which of them are up InfiniBand links.

Adapters come in the order of their names as text (``mlx5_10`` before ``mlx5_2``); rates are in
Gbit/s. Ethernet ports may be Active and LinkUp as well: only the link layer tells them apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from launcher.parsers.text import Lines, ParseError, natural, split_lines

__all__ = ["IbStat", "Port", "read_ibstat"]

_ADAPTER = re.compile(r"\s*CA\s+'([^']+)'\s*")
_PORT = re.compile(r"\s*Port\s+([0-9]{1,3}):\s*")
_FIELD = re.compile(r"\s*([A-Za-z][A-Za-z ]*?)\s*:\s*(.*?)\s*")
# Fields of an adapter: after a port they belong to another one, whose first line is missing.
_OF_ADAPTER = {
    "CA type",
    "Number of ports",
    "Firmware version",
    "Hardware version",
    "Node GUID",
    "System image GUID",
}
# Words that are whole even where the capture ends with them.
_WHOLE = {"InfiniBand", "Ethernet", "Active", "Down", "LinkUp", "Disabled", "Polling"}
_OTHERS = {
    "hca_id:": "ibv_devinfo",
    "Infiniband device": "ibstatus",
    "==>": "ibdev2netdev",
}


@dataclass(frozen=True, slots=True)
class Port:
    """One port; what was not read is None."""

    adapter: str
    number: int
    state: str | None = None
    physical: str | None = None
    rate_gbps: float | None = None
    link_layer: str | None = None

    @property
    def name(self) -> str:
        """As NCCL and UCX name it: ``mlx5_0:1``."""
        return f"{self.adapter}:{self.number}"

    @property
    def infiniband(self) -> bool | None:
        """Whether it is an InfiniBand link that is up; None where that is not told."""
        facts = (self.link_layer, self.state, self.physical)
        wanted = ("InfiniBand", "Active", "LinkUp")
        if any(fact not in (None, want) for fact, want in zip(facts, wanted, strict=True)):
            return False
        return True if facts == wanted else None


@dataclass(frozen=True, slots=True)
class IbStat:
    """The ports by number, and what could not be read."""

    ports: tuple[Port, ...]
    unread: tuple[str, ...]


@dataclass(slots=True)
class _Reading:
    adapter: str | None = None
    ports: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    port: dict[str, str] | None = None
    unread: list[str] = field(default_factory=list)


def read_ibstat(text: str) -> IbStat:
    """Read the output of ``ibstat``; of a block that stops early what it has.

    Raises
    ------
    ParseError
        It names no adapter, and is not empty.
    """
    lines = split_lines(text)
    reading = _Reading()
    for number, line in enumerate(lines.lines, 1):
        last = lines.cut and number == len(lines.lines)
        _read_line(reading, line, cut=last)
    if any(map(str.strip, lines.lines)) and not any(_ADAPTER.fullmatch(n) for n in lines.lines):
        raise ParseError(f"not the output of `ibstat`, but {_kind(lines)}")
    found = (_port(name, number, facts) for (name, number), facts in reading.ports.items())
    ports = sorted(found, key=lambda port: natural(port.name))
    return IbStat(tuple(ports), tuple(reading.unread))


def _read_line(reading: _Reading, line: str, *, cut: bool) -> None:
    if match := _ADAPTER.fullmatch(line):
        reading.adapter, reading.port = match[1], None
    elif match := _PORT.fullmatch(line):
        _open_port(reading, int(match[1]), line)
    elif (match := _FIELD.fullmatch(line)) is None:
        reading.unread += [line] * bool(line.strip())
    elif match[1] in _OF_ADAPTER:
        if reading.port is not None:
            reading.adapter = reading.port = None
    elif reading.port is None or match[1] in reading.port or (cut and match[2] not in _WHOLE):
        reading.unread.append(line)
        reading.port = None
    else:
        reading.port[match[1]] = match[2]


def _open_port(reading: _Reading, number: int, line: str) -> None:
    reading.port = None
    if reading.adapter is None or (reading.adapter, number) in reading.ports:
        reading.adapter = None
        reading.unread.append(line)
    else:
        reading.port = reading.ports.setdefault((reading.adapter, number), {})


def _port(adapter: str, number: int, facts: dict[str, str]) -> Port:
    rate = re.match(r"[0-9]{1,6}(?:\.[0-9]{1,3})?", facts.get("Rate", ""))
    return Port(
        adapter,
        number,
        state=facts.get("State"),
        physical=facts.get("Physical state"),
        rate_gbps=float(rate[0]) if rate else None,
        link_layer=facts.get("Link layer"),
    )


def _kind(lines: Lines) -> str:
    text = "\n".join(lines.lines)
    of = next((tool for mark, tool in _OTHERS.items() if mark in text), None)
    return f"that of `{of}`" if of else lines.looks_like()
