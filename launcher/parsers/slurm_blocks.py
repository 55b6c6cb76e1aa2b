"""``scontrol show``: records of ``Key=value``, over several lines or (``-o``) on one.

Values may hold blanks and equals signs: ``OS=``, ``Reason=``, ``Comment=``, paths and names. Over
several lines these run to the end of theirs; on one line to the next key that Slurm is known to
print behind them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launcher.parsers.text import ParseError, split_lines

__all__ = ["Blocks", "read_blocks", "read_config"]

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
_FREE = {
    "AdminComment",
    "Command",
    "Comment",
    "Extra",
    "JobName",
    "OS",
    "Reason",
    "StdErr",
    "StdIn",
    "StdOut",
    "SubmitLine",
    "SystemComment",
    "WorkDir",
}
# Keys that are printed behind a free one on the same line (`scontrol -o`), of all versions.
_BEHIND = re.compile(
    r"""
    RealMemory | AllocMem | FreeMem | Sockets | Boards | State | ThreadsPerCore | TmpDisk |
    Weight | Owner | MCS_label | Partitions | BootTime | SlurmdStartTime | LastBusyTime |
    ResumeAfterTime | CfgTRES | AllocTRES | CapWatts | CurrentWatts | AveWatts | LowestJoules
    | ConsumedJoules | ExtSensorsJoules | ExtSensorsWatts | ExtSensorsTemp | Reason | Comment
    | Extra | InstanceId | InstanceType | GresDrain | GresUsed | MemSpecLimit | CPUSpecList |
    CoreSpecCount | UserId | GroupId | Priority | Nice | Account | QOS | WCKey | JobState |
    Dependency | Requeue | TimeLimit | StartTime | EndTime | Partition | NodeList | WorkDir |
    StdErr | StdIn | StdOut | Power | TresPerNode | TresPerJob | TresPerTask | TresBind |
    MailUser | MailType | SubmitLine | BatchScript | AdminComment | SystemComment | Command |
    CpusPerTres | MemPerTres | NtasksPerTRES | ReqTRES
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Records of one kind, each with its kind as the first key, and lines that are in none."""

    kind: str | None
    records: tuple[Mapping[str, str], ...]
    unread: tuple[str, ...]


def read_blocks(text: str, kind: str) -> Blocks:
    """Read the records that begin with ``kind``, such as ``NodeName``.

    Raises
    ------
    ParseError
        The records are of another kind.
    """
    lines = split_lines(text)
    records: list[dict[str, str]] = []
    unread: list[str] = []
    kinds: list[str] = []
    for lines_of in _grouped(lines.lines):
        start = _START.match(lines_of[0])
        if start is None:
            unread += lines_of
        elif start[1] != kind:
            kinds.append(start[1])
            unread += lines_of
        else:
            records.append(_record(lines_of, unread))
    if lines.cut and records and unread[-1:] != [lines.lines[-1]]:
        _drop_last(records[-1], unread)
    if not records and kinds:
        raise ParseError(f"records of {kinds[0]}, not of {kind}")
    return Blocks(kind if records else None, tuple(records), tuple(unread))


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


def _record(lines: list[str], unread: list[str]) -> dict[str, str]:
    record: dict[str, str] = {}
    single = len(lines) == 1
    free: str | None = None
    for line in lines:
        pairs = list(_pairs(line, single=single))
        if not pairs and free is not None:
            record[free] += f" {line.strip()}"
        elif not pairs:
            unread.append(line)
        for key, value in pairs:
            record.setdefault(key, value)
            free = key if key in _FREE else None
    return record


def _pairs(line: str, *, single: bool) -> Iterator[tuple[str, str]]:
    """Keys and values of a line, in order."""
    keys = list(_KEY.finditer(line))
    kept: list[re.Match[str]] = []
    for match in keys:
        after_free = kept and _runs_on(kept, single=single)
        if not after_free or (single and _BEHIND.fullmatch(match[1])):
            kept.append(match)
    if not kept or line[: kept[0].start()].strip():
        return
    ends = [match.start() for match in kept[1:]] + [len(line)]
    for match, end in zip(kept, ends, strict=True):
        yield match[1], line[match.end() : end].strip()


def _runs_on(kept: list[re.Match[str]], *, single: bool) -> bool:
    """Whether the last key's value may hold more words.

    A job's Reason is one word among others on its line; a node's has a line of its own.
    """
    key = kept[-1][1]
    among_others = not single and len(kept) > 1 and key == "Reason"
    return key in _FREE and not among_others


def _drop_last(record: dict[str, str], unread: list[str]) -> None:
    """Of a capture that ends inside of a line the last value may be shortened."""
    if len(record) > 1:
        key, value = record.popitem()
        unread.append(f"{key}={value}")
