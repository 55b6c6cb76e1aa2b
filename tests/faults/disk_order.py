"""What reached the disk before what, told from a log of strace.

The log is from ``strace -f -y -s 400`` over `TRACED`. A call begins at its line, and ends there or
at the line where its thread resumed it; of two calls one comes before the other only if it ended
before the other began.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath as Path

__all__ = ["TRACED", "Call", "calls", "violations"]

TRACED = (
    "trace=write,pwrite64,writev,ftruncate,fsync,fdatasync,?link,linkat,"
    "?rename,?renameat,renameat2,?unlink,unlinkat,sync_file_range"
)
# Worth nothing after a crash of the machine.
_EXEMPT = ("leases", "workers")

_LINE = re.compile(r"(?P<thread>\d+) +(?P<rest>.*)")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(?P<rest>.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<given>.*)\) += (?P<result>-?\d+)(?P<error> E\w+)?")
_DESCRIPTOR = re.compile(r"(?:\d+|AT_FDCWD)<(?P<path>[^>]*)>")
_TEXT = re.compile(r'"(?P<path>[^"]*)"')
_UNIT = re.compile(r"u(\d{6})\.")
_NOTED = re.compile(r'unit\\": (\d+).*?overlay\\": (\d+)')


@dataclass(frozen=True)
class Call:
    """A system call that ended; ``paths`` are those of its descriptor or its names."""

    name: str
    paths: tuple[Path, ...]
    given: str
    ok: bool
    error: str
    began: int
    ended: int


def calls(lines: Iterable[str], run: Path) -> Iterator[Call]:
    """The calls below ``run``, in the order in which they ended."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        matched = _LINE.match(line)
        if matched is None:
            continue
        thread, rest = matched["thread"], matched["rest"]
        began = number
        if rest.endswith(_UNFINISHED):
            begun[thread] = (number, rest.removesuffix(_UNFINISHED))
            continue
        resumed = _RESUMED.match(rest)
        if resumed is not None:
            began, before = begun.pop(thread)
            rest = before + resumed["rest"]
        call = _CALL.match(rest)
        if call is None:
            continue
        paths = tuple(_paths(call["name"], call["given"], run))
        if paths:
            error = (call["error"] or "").strip()
            ok = int(call["result"]) >= 0
            yield Call(call["name"], paths, call["given"], ok, error, began, number)


def _paths(name: str, given: str, run: Path) -> Iterator[Path]:
    if name.startswith(("link", "rename", "unlink")):
        found = [m["path"] for m in _TEXT.finditer(given)]
    else:
        found = [m["path"] for m in _DESCRIPTOR.finditer(given)][:1]
    for text in found:
        path = Path(text)
        if run in path.parents or path == run:
            yield path.relative_to(run)


def violations(found: Iterable[Call]) -> list[str]:
    """What is out of order; empty for a log of a worker that does all as it should."""
    log = list(found)
    return [
        *_named_before_synced(log),
        *_told_before_named(log),
        *_logs_gone_too_soon(log),
        *_logs_without_names(log),
        *_logs_before_leases(log),
    ]


def _exempt(path: Path) -> bool:
    return path.parts[0] in _EXEMPT or "leases" in path.parts or path.suffix == ".now"


def _names(log: list[Call]) -> Iterator[Call]:
    """The calls that give a published file its name."""
    for call in log:
        if call.name.startswith(("link", "rename")) and call.ok and not _exempt(call.paths[1]):
            yield call


def _named_before_synced(log: list[Call]) -> Iterator[str]:
    for named in _names(log):
        scratch = named.paths[0]
        own = [c for c in log if c.paths == (scratch,) and c.ok]
        changes = [c for c in own if c.name in ("write", "pwrite64", "writev", "ftruncate")]
        last = max((c.ended for c in changes), default=-1)
        synced = [c for c in own if c.name in ("fsync", "fdatasync")]
        if not any(last < c.began and c.ended < named.began for c in synced):
            yield f"{named.paths[1]} was named before its content was on disk"


def _synced(log: list[Call], directory: Path, since: int, before: int) -> bool:
    return any(
        c.name == "fsync"
        and c.ok
        and c.paths == (directory,)
        and since < c.began
        and c.ended < before
        for c in log
    )


def _told_before_named(log: list[Call]) -> Iterator[str]:
    """A worker says that a part is out, or how it ended, after that is on disk."""
    for named in _names(log):
        final = named.paths[1]
        told = [c.began for c in log if c.name == "write" and _tells_of(c, final)]
        if not _synced(log, final.parent, named.ended, min(told, default=1 << 60)):
            yield f"{final} was told of before its name was on disk"


def _tells_of(call: Call, part: Path) -> bool:
    if call.paths[0].parts[0] != "metrics" or call.paths[0].suffix != ".jsonl":
        return False
    unit, noted = _UNIT.match(part.name), _NOTED.search(call.given)
    if "answer_p95_s" in call.given:  # how long answers took: of no part
        return False
    assert noted is not None, call.given
    overlay = int(part.parts[1]) if part.parts[0] == "overlays" else 0
    return unit is not None and (int(unit[1]), overlay) == (int(noted[1]), int(noted[2]))


def _logs_gone_too_soon(log: list[Call]) -> Iterator[str]:
    for gone in log:
        if not (gone.name.startswith("unlink") and gone.paths[0].suffix == ".wal" and gone.ok):
            continue
        wal = gone.paths[0]
        unit = _UNIT.match(wal.name)
        assert unit is not None
        part = wal.parent.parent / "parts" / f"u{unit[1]}.jsonl"
        if not _on_disk(log, part, gone.began) and not _on_disk(log, Path("DONE"), gone.began):
            yield f"{wal} was removed before {part} was on disk"


def _on_disk(log: list[Call], final: Path, before: int) -> bool:
    """Whether ``final`` was named, here or by somebody else, and its directory synced since."""
    made = (c for c in log if c.name.startswith(("link", "rename")) and c.paths[1:] == (final,))
    stands = [c for c in made if c.ok or c.error == "EEXIST"]
    return any(_synced(log, final.parent, c.ended, before) for c in stands)


def _logs_without_names(log: list[Call]) -> Iterator[str]:
    """A log whose records are had on disk is to be found there."""
    synced = {c.paths[0]: c.ended for c in reversed(log) if c.name == "fdatasync" and c.ok}
    for wal, since in synced.items():
        if wal.suffix == ".wal" and not _synced(log, wal.parent, since, 1 << 60):
            yield f"the name of {wal} was never on disk"


def _logs_before_leases(log: list[Call]) -> Iterator[str]:
    """A log outlives no lease: whoever took the unit anew would take the log's name with it."""
    begun = {c.paths[0]: c.began for c in reversed(log) if c.name == "write"}
    for leased in log:
        if not (leased.name.startswith("link") and leased.ok and "leases" in leased.paths[1].parts):
            continue
        lease = leased.paths[1]
        wal = lease.parent.parent / "wal" / f"{lease.name}.wal"
        if wal in begun and not _synced(log, lease.parent, leased.ended, begun[wal]):
            yield f"{wal} was begun before {lease} was on disk"
