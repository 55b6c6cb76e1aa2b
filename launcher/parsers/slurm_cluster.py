"""The cluster as a whole: ``scontrol show config`` and ``scontrol show topology``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from launcher.parsers.slurm_blocks import read_blocks, read_config
from launcher.parsers.slurm_values import read_text
from launcher.parsers.text import ParseError, split_lines

__all__ = ["Config", "Group", "Topology", "read_settings", "read_topology"]


@dataclass(frozen=True, slots=True)
class Config:
    """What of slurm.conf(5) a submission depends on; ``settings`` has all of it."""

    version: str | None
    cluster: str | None
    max_array_size: int | None
    requeue: bool | None
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """A switch or a block: its nodes as text, and the switches below it."""

    name: str
    level: int | None
    nodes: str | None
    below: str | None


@dataclass(frozen=True, slots=True)
class Topology:
    """Which nodes are near to each other; no groups where Slurm knows of none.

    ``leaves`` are those which hold nodes themselves: leaf switches, or the smallest blocks.
    """

    kind: Literal["tree", "block"] | None
    groups: tuple[Group, ...]

    @property
    def leaves(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if not group.below and not group.level)


def read_settings(text: str) -> Config:
    """Read ``scontrol show config``.

    Raises
    ------
    ParseError
        There is no setting in it.
    """
    found = read_config(text)
    version = re.match(r"[0-9]+\.[0-9]+(?:\.[0-9]+)?", found.get("SLURM_VERSION", ""))
    requeue = _count(found.get("JobRequeue"))
    return Config(
        version=version[0] if version else None,
        cluster=read_text(found.get("ClusterName")),
        max_array_size=_count(found.get("MaxArraySize")),
        requeue=None if requeue is None else bool(requeue),
        settings=found,
    )


def read_topology(text: str) -> Topology:
    """Read ``scontrol show topology``; without a topology plugin it says little or nothing.

    Raises
    ------
    ParseError
        They are records of something else.
    """
    for kind, head in (("tree", "SwitchName"), ("block", "BlockName")):
        if f"{head}=" in text:
            groups = tuple(_group(record, head) for record in read_blocks(text, head))
            return Topology("tree" if kind == "tree" else "block", groups)
    if re.search(r"^\s*[A-Z]\w*Name=", text, re.MULTILINE):
        raise ParseError(f"not a topology, but {split_lines(text).looks_like()}")
    return Topology(None, ())


def _group(record: Mapping[str, str], head: str) -> Group:
    return Group(
        name=record[head],
        level=_count(record.get("Level")),
        nodes=read_text(record.get("Nodes")),
        below=read_text(record.get("Switches")),
    )


def _count(text: str | None) -> int | None:
    match = re.match(r"[0-9]{1,12}", text or "")
    return int(match[0]) if match else None
