"""Paths as the user wrote them, to the frozen manifest of a run.

The manifest is decided once, on the login node: which files, in which order, how large and how
old. Nothing in the job looks for files again.
"""

from __future__ import annotations

import difflib
import glob
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

from launcher.data.formats import SUPPORTED, Format, format_of, is_streamed, packing_of
from launcher.data.readers import open_reader
from launcher.data.readers.streams import has_zstandard, unpacked_bytes
from launcher.errors import Location, Problem, RunError, SpecError
from launcher.plan.types import InputFile

__all__ = ["changed", "freeze", "missing_packages", "slow_starts", "total_bytes"]

T = TypeVar("T")
U = TypeVar("U")

_HINTS = {
    ".json": "write one object per line and name the file .jsonl (jq -c '.[]' does that to a list)",
    ".tar": "unpack it",
    ".zip": "unpack it",
}
# A slow file system's servers answer several at a time much sooner than one after another; where
# an answer takes microseconds, threads only hinder each other.
_THREADS = 8
_CHUNK = 256
_SLOW_S = 100e-6
# How much of compressed files is read for a guess of what is in them: of one, and of all.
_PROBE_BYTES = 1024**2
_PROBES_BYTES = 1024**3
_LEAST_PROBE_BYTES = 64 * 1024
_SLOW_BYTES = 10**9


def freeze(
    paths: Sequence[str], *, base: Path, where: Location | None = None, newlines: bool = True
) -> tuple[InputFile, ...]:
    """The input files that ``paths`` mean, sorted by path, each once.

    No more than the beginning, or the footer, of any file is read.

    Parameters
    ----------
    paths
        Files, globs (``**`` is recursive) and directories. A directory stands for the supported
        files anywhere under it; hidden ones are left out, as in globs.
    base
        The directory relative paths start at.
    where
        Place in the job file that errors point to.
    newlines
        Whether fields of CSV files may hold line breaks.

    Returns
    -------
    tuple of InputFile
        Absolute paths with links kept, because a link may lead elsewhere on a compute node. A
        file reached by several names is taken once, by the name that sorts first.

    Raises
    ------
    SpecError
        One problem per entry of ``paths``: ``input.missing`` (no such file, or a glob that
        matches nothing), ``input.unreadable``, ``input.format`` (see `launcher.data.formats`),
        ``input.empty`` (no supported file in a directory, or not one byte in all files). For the
        first file of which it is true: ``input.needs-pyarrow``, ``input.needs-zstandard``,
        ``input.damaged``, ``input.column-names``.
    """
    found: list[_Seen] = []
    problems: list[Problem] = []
    for name in paths:
        entries, refused = _look_up(name, base.absolute())
        found += entries
        problems += refused
    if not problems and not any(seen.entry.size for seen in found):
        files = f"the {len(found)} input files hold 0 bytes" if found else "there are no files"
        problems.append(Problem("input.empty", files, hint="give a file with one row per line"))
    inputs = _once(found)
    problems = problems or missing_packages(inputs)
    if problems:
        raise SpecError(replace(problem, where=where) for problem in problems)
    packed = sum(packing_of(entry.path) is not None for entry in inputs)
    probe = max(_LEAST_PROBE_BYTES, min(_PROBE_BYTES, _PROBES_BYTES // max(1, packed)))
    try:
        return tuple(_each(partial(_measured, probe=probe, newlines=newlines), inputs))
    except RunError as exc:
        raise SpecError(replace(problem, where=where) for problem in exc.problems) from exc


def total_bytes(inputs: Iterable[InputFile]) -> int:
    """Size of the virtual concatenation of ``inputs``."""
    return sum(entry.span for entry in inputs)


def changed(inputs: Sequence[InputFile]) -> list[str]:
    """What differs between the manifest and the files as they are now, a line per file.

    Returns
    -------
    list of str
        Empty when every file is there with its size and modification time.
    """
    differences = zip(inputs, _each(_difference, inputs), strict=True)
    return [f"{entry.path}: {what}" for entry, what in differences if what]


def missing_packages(inputs: Iterable[InputFile]) -> list[Problem]:
    """What this Python lacks to read ``inputs``; nothing is imported to find out.

    Returns
    -------
    list of Problem
        ``input.needs-pyarrow``, ``input.needs-zstandard``.
    """
    first: dict[str, str] = {}  # file that needs it
    for entry in inputs:
        if known := format_of(entry.path):
            first.setdefault(known.packing or known.kind, entry.path)
    problems = []
    if "parquet" in first and find_spec("pyarrow") is None:
        message = f"{first['parquet']} needs the package pyarrow, and {sys.executable} has none"
        hint = "install pyarrow, take an image that has it, or convert the files to .jsonl"
        problems.append(Problem("input.needs-pyarrow", message, hint=hint))
    if "zst" in first and not has_zstandard():
        message = f"{first['zst']} needs the package zstandard, and {sys.executable} has none"
        hint = "install zstandard, take an image that has it, or compress the files with gzip"
        problems.append(Problem("input.needs-zstandard", message, hint=hint))
    return problems


def slow_starts(inputs: Iterable[InputFile], where: Location | None = None) -> list[Problem]:
    """Warnings about large files of which every worker must read all that it skips.

    Returns
    -------
    list of Problem
        At most one for compressed files and one for CSV, ``input.no-direct-access``, with the
        largest file.
    """
    slow = [entry for entry in inputs if entry.size > _SLOW_BYTES and is_streamed(entry)]
    packed = [entry for entry in slow if packing_of(entry.path) is not None]
    quoted = [entry for entry in slow if packing_of(entry.path) is None]
    problems = []
    for files, why, hint in (
        (packed, "is compressed as one stream", "decompress it, or cut it into many files"),
        (
            quoted,
            "may hold line breaks in its fields",
            "set `input.newlines: false` if it has none",
        ),
    ):
        if files:
            worst = max(files, key=lambda entry: entry.size)
            size = f"{worst.size / 10**9:.1f} GB"
            message = f"{worst.path} ({size}) {why}: every worker reads it from its start"
            problems.append(
                Problem("input.no-direct-access", message, where, hint, severity="warning")
            )
    return problems


class _Seen(NamedTuple):
    """A file as it was found; two names of one file have the same ``inode``."""

    entry: InputFile
    inode: tuple[int, int]


def _each(convert: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """``convert`` of all ``items``, in order; of many, if it is slow, in a few threads."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]

    def convert_all(chunk: Sequence[T]) -> list[U]:
        return [convert(item) for item in chunk]

    started = time.perf_counter()
    found = list(map(convert_all, chunks[:1]))
    slow = time.perf_counter() - started > _CHUNK * _SLOW_S
    if slow and len(chunks) > 1:
        with ThreadPoolExecutor(_THREADS) as pool:
            found += pool.map(convert_all, chunks[1:])
    else:
        found += map(convert_all, chunks[1:])
    return list(chain.from_iterable(found))


def _difference(entry: InputFile) -> str | None:
    try:
        now = os.stat(entry.path)  # noqa: PTH116 - the path is text, and there may be 10^5 of them
    except FileNotFoundError:
        return "is gone"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    if now.st_size != entry.size:
        return f"size was {entry.size} bytes, is {now.st_size}"
    if now.st_mtime_ns != entry.mtime_ns:
        return f"was written again (mtime was {entry.mtime_ns} ns, is {now.st_mtime_ns})"
    return None


def _measured(entry: InputFile, *, probe: int, newlines: bool) -> InputFile:
    """``entry`` with what is not known from its name and size alone."""
    known = format_of(entry.path) or Format("json")
    if known.kind == "parquet":
        from launcher.data.readers.parquet import measured  # needs pyarrow

        span, rows = measured(entry.path)
        return replace(entry, span=span, rows=rows)
    if known.packing is not None and entry.size:
        entry = replace(entry, span=unpacked_bytes(entry, probe))
    if known.table:
        entry = replace(entry, newlines=newlines)
        open_reader(entry).close()  # which looks at the names of its columns
    return entry


def _once(found: Iterable[_Seen]) -> list[InputFile]:
    by_path = {seen.entry.path: seen for seen in found}
    names = Counter(seen.inode for seen in by_path.values())
    real: set[str] = set()
    kept = []
    for path, seen in sorted(by_path.items()):
        # Only files with the same inode can be one, and finding where links lead takes a while;
        # but not all of those are: hard links, and file systems that give one number twice.
        if names[seen.inode] > 1:
            leads_to = os.path.realpath(path)
            if leads_to in real:
                continue
            real.add(leads_to)
        kept.append(seen.entry)
    return kept


def _look_up(name: str, base: Path) -> tuple[list[_Seen], Sequence[Problem]]:
    try:
        return _each(_seen, _expand(name, base)), ()
    except SpecError as exc:
        return [], exc.problems
    except FileNotFoundError as exc:
        return [], [_missing(Path(exc.filename))]
    except OSError as exc:
        return [], [_unreadable(str(exc.filename or name), exc.strerror or str(exc))]


def _expand(name: str, base: Path) -> list[str]:
    path = _absolute(str(base / name))
    if os.path.isdir(path):  # noqa: PTH112 - paths are text here: there may be 10^5 of them
        return _under(path)
    # A file may be called data[1].jsonl: what exists is never read as a pattern.
    if os.path.exists(path) or not any(char in name for char in "*?["):  # noqa: PTH110 - as above
        return [path]
    matches = glob.glob(name, root_dir=base, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not matches:
        raise SpecError(_missing(base / name, kind="no file matches"))
    return [
        file
        for match in sorted(matches)
        for file in _files_of(_absolute(os.path.join(base, match)))  # noqa: PTH118 - as above
    ]


def _files_of(match: str) -> list[str]:
    # A directory that a glob matches may hold nothing: ** also gives those between.
    return list(_tree(match)) if os.path.isdir(match) else [match]  # noqa: PTH112 - as above


def _absolute(path: str) -> str:
    # Text alone cannot resolve "..": after a link it leads somewhere else.
    return str(Path(path).resolve() if ".." in path.split("/") else Path(path))


def _under(folder: str) -> list[str]:
    files = list(_tree(folder))
    if not files:
        what = f"{folder} holds no {SUPPORTED} file"
        raise SpecError(Problem("input.empty", what, hint="name a directory with input files"))
    return files


def _tree(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:  # a link back up
        return
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in sorted(shown, key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _tree(entry.path, above | {real})
        elif format_of(entry.name) is not None:
            yield entry.path


def _seen(path: str) -> _Seen:
    now = os.stat(path)  # noqa: PTH116 - as above
    if not stat.S_ISREG(now.st_mode):
        raise SpecError(_unreadable(path, "not a regular file"))
    if format_of(path) is None:
        raise SpecError(_format(Path(path)))
    if not os.access(path, os.R_OK):
        raise SpecError(_unreadable(path, "permission denied"))
    entry = InputFile(path=path, size=now.st_size, mtime_ns=now.st_mtime_ns, span=now.st_size)
    return _Seen(entry, (now.st_dev, now.st_ino))


def _format(path: Path) -> Problem:
    suffix = path.suffix.lower()
    kind = f"format {suffix}" if suffix else "no suffix"
    what = f"{path} has {kind}; supported are {SUPPORTED}"
    hint = _HINTS.get(suffix, "convert it to .jsonl, one JSON object per line")
    return Problem("input.format", what, hint=hint)


def _unreadable(path: str, reason: str) -> Problem:
    what = f"{path} cannot be read: {reason.lower()}"
    return Problem("input.unreadable", what, hint="ask its owner for read access, or copy it")


def _missing(path: Path, *, kind: str = "no such file:") -> Problem:
    return Problem("input.missing", f"{kind} {path}", hint=_nearby(path))


def _nearby(path: Path) -> str:
    while not os.path.isdir(path.parent):  # noqa: PTH112 - Path.is_dir raises where access is denied
        path = path.parent
    try:
        names = os.listdir(path.parent)  # noqa: PTH208 - names, not paths
    except OSError as exc:
        return f"check the directory {path.parent} ({(exc.strerror or str(exc)).lower()})"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"use {path.parent / near[0]}" if near else f"check the names in {path.parent}"
