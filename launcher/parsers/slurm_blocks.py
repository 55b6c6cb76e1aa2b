"""``scontrol show``: records of ``Key=value``, over several lines or (``-o``) on one.

Some values hold blanks and equals signs: ``OS=``, ``Reason=``, ``Comment=``. Over several lines
these run to the end of theirs; on one line to the next key that Slurm is known to print there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from launcher.parsers.text import ParseError, split_lines

__all__ = ["read_blocks", "read_config"]

_KINDS = (
    "NodeName",
    "PartitionName",
    "JobId",
    "SwitchName",
    "BlockName",
    "AggregatedBlock",
    "ReservationName",
)
_START = re.compile(rf"\s*({'|'.join(_KINDS)})=\S")
_KEY = re.compile(r"(?:^|(?<=\s))([A-Z][\w/:.()-]*)=")
_SETTING = re.compile(r"([A-Za-z][\w/.()\[\]]*)\s*=\s?(.*?)\s*")
_FREE = {"Comment", "Extra", "OS", "Reason"}
# Keys that are printed behind a free one on the same line (`scontrol -o`), of all versions.
_BEHIND = re.compile(
    r"""
    RealMemory | AllocMem | FreeMem | Sockets | Boards | State | ThreadsPerCore | TmpDisk |
    Weight | Owner | MCS_label | Partitions | BootTime | SlurmdStartTime | LastBusyTime |
    ResumeAfterTime | CfgTRES | AllocTRES | CapWatts | CurrentWatts | AveWatts | LowestJoules
    | ConsumedJoules | ExtSensorsJoules | ExtSensorsWatts | ExtSensorsTemp | Reason | Comment
    | Extra | InstanceId | InstanceType | GresDrain | GresUsed | MemSpecLimit | CPUSpecList |
    CoreSpecCount
    """,
    re.VERBOSE,
)


def read_blocks(text: str, kind: str) -> tuple[Mapping[str, str], ...]:
    """The records that begin with ``kind``, such as ``NodeName``; lines of no record are left out.

    Raises
    ------
    ParseError
        There is something else, and no such record.
    """
    lines = split_lines(text)
    whole = (*lines.lines[:-1], _uncut(lines.lines[-1])) if lines.cut else lines.lines
    groups = list(_grouped(whole))
    kinds = [start[1] if (start := _START.match(group[0])) else None for group in groups]
    if groups and kind not in kinds:
        other = next(filter(None, kinds), None)
        found = f"records of {other}" if other else lines.looks_like()
        raise ParseError(f"not records of {kind}, but {found}")
    return tuple(_record(g) for g, of in zip(groups, kinds, strict=True) if of == kind)


def read_config(text: str) -> Mapping[str, str]:
    """Settings of ``scontrol show config``, by name; "(null)" where one is not set.

    Raises
    ------
    ParseError
        There is no setting in it.
    """
    lines = split_lines(text)
    found: dict[str, str] = {}
    for line in lines.lines[: -1 if lines.cut else None]:
        if match := _SETTING.fullmatch(line):
            found.setdefault(match[1], match[2])
    if not found and any(map(str.strip, lines.lines)):
        raise ParseError(f"not the output of `scontrol show config`, but {lines.looks_like()}")
    return found


def _grouped(lines: tuple[str, ...]) -> Iterator[list[str]]:
    """Lines from one first line of a record to the next; a blank line ends one as well."""
    group: list[str] = []
    for line in lines:
        if (_START.match(line) or not line.strip()) and group:
            yield group
            group = []
        if line.strip():
            group.append(line)
    if group:
        yield group


def _uncut(line: str) -> str:
    """Without its last value, which may be shortened."""
    keys = [match.start() for match in _KEY.finditer(line)]
    return line[: keys[-1]] if keys else ""


def _record(lines: list[str]) -> dict[str, str]:
    record: dict[str, str] = {}
    for line in lines:
        for key, value in _pairs(line, single=len(lines) == 1):
            record.setdefault(key, value)
    return record


def _pairs(line: str, *, single: bool) -> Iterator[tuple[str, str]]:
    """Keys and values of a line, in order."""
    kept: list[re.Match[str]] = []
    for match in _KEY.finditer(line):
        after_free = kept and kept[-1][1] in _FREE
        if not after_free or (single and _BEHIND.fullmatch(match[1])):
            kept.append(match)
    if not kept or line[: kept[0].start()].strip():
        return
    ends = [match.start() for match in kept[1:]] + [len(line)]
    for match, end in zip(kept, ends, strict=True):
        yield match[1], line[match.end() : end].strip()
