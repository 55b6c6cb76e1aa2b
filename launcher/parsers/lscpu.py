"""``lscpu``: sockets, cores, threads and NUMA nodes, as text or JSON (``lscpu -J``)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.parsers.text import ParseError, read_ranges, split_lines

__all__ = ["Lscpu", "read_lscpu"]

_NUMA = re.compile(r"NUMA node([0-9]{1,4}) CPU\(s\)")


@dataclass(frozen=True, slots=True)
class Lscpu:
    """The CPUs of a node; what it did not say is None.

    Attributes
    ----------
    numa
        CPUs by NUMA node; nodes that are only memory (Grace-Hopper's) are left out.
    """

    arch: str | None
    cpus: int | None
    sockets: int | None
    cores_per_socket: int | None
    threads_per_core: int | None
    numa: dict[int, frozenset[int]]
    model: str | None


def read_lscpu(text: str) -> Lscpu:
    """Read what ``lscpu`` prints with ``LC_ALL=C``, or with ``-J``.

    Raises
    ------
    ParseError
        It says neither the architecture nor the number of CPUs.
    """
    fields = dict(_from_json(text) if text.lstrip().startswith("{") else _from_text(text))
    if "Architecture" not in fields and "CPU(s)" not in fields:
        raise ParseError(f"not the output of `lscpu`, but {split_lines(text).looks_like()}")
    nodes = ((_NUMA.fullmatch(key), read_ranges(value)) for key, value in fields.items())
    return Lscpu(
        arch=fields.get("Architecture"),
        cpus=_count(fields.get("CPU(s)")),
        sockets=_count(fields.get("Socket(s)")),
        cores_per_socket=_count(fields.get("Core(s) per socket")),
        threads_per_core=_count(fields.get("Thread(s) per core")),
        numa={int(match[1]): cpus for match, cpus in nodes if match and cpus},
        model=fields.get("Model name"),
    )


def _from_text(text: str) -> Iterator[tuple[str, str]]:
    lines = split_lines(text)
    for line in lines.lines[: -1 if lines.cut else None]:
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def _from_json(text: str) -> Iterator[tuple[str, str]]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ParseError(f"JSON that cannot be read: {exc}") from exc
    yield from _entries(whole.get("lscpu"))


def _entries(entries: Any) -> Iterator[tuple[str, str]]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            yield str(entry.get("field", "")).rstrip(":"), str(entry.get("data", ""))
            yield from _entries(entry.get("children"))


def _count(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,9}", text) else None
