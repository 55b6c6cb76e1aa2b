"""Paths as the user wrote them, to the frozen manifest of a run.

The manifest is decided once, on the login node: which files, in which order, how large and how
old. Nothing in the job looks for files again.
"""

from __future__ import annotations

import difflib
import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.errors import Location, Problem, SpecError
from launcher.plan.types import InputFile

__all__ = ["SUFFIXES", "changed", "freeze", "total_bytes"]

SUFFIXES = (".jsonl", ".ndjson", ".txt")

_HINTS = {
    ".json": "write one object per line and name the file .jsonl (jq -c '.[]' does that to a list)",
    ".gz": "decompress it first",
    ".zst": "decompress it first",
}


def freeze(
    paths: Sequence[str], *, base: Path, where: Location | None = None
) -> tuple[InputFile, ...]:
    """The input files that ``paths`` mean, sorted by path, each once.

    Parameters
    ----------
    paths
        Files, globs (``**`` is recursive) and directories. A directory stands for the supported
        files anywhere under it; hidden ones are left out, as in globs.
    base
        The directory relative paths start at.
    where
        Place in the job file that errors point to.

    Returns
    -------
    tuple of InputFile
        Absolute paths with links kept, because a link may lead elsewhere on a compute node. A
        file reached by several names is taken once, by the name that sorts first.

    Raises
    ------
    SpecError
        One problem per entry of ``paths``: ``input.missing`` (no such file, or a glob that
        matches nothing), ``input.unreadable``, ``input.format`` (not one of `SUFFIXES`),
        ``input.empty`` (no supported file in a directory, or not one byte in all files).
    """
    found: list[InputFile] = []
    problems: list[Problem] = []
    for name in paths:
        entries, refused = _look_up(name, base.absolute())
        found += entries
        problems += refused
    if not problems and not total_bytes(found):
        files = f"the {len(found)} input files hold 0 bytes" if found else "there are no files"
        problems.append(Problem("input.empty", files, hint="give a file with one row per line"))
    if problems:
        raise SpecError(replace(problem, where=where) for problem in problems)
    return _once(found)


def total_bytes(inputs: Iterable[InputFile]) -> int:
    """Size of the virtual concatenation of ``inputs``."""
    return sum(entry.size for entry in inputs)


def changed(inputs: Iterable[InputFile]) -> list[str]:
    """What differs between the manifest and the files as they are now, a line per file.

    Returns
    -------
    list of str
        Empty when every file is there with its size and modification time.
    """
    return [f"{entry.path}: {what}" for entry in inputs if (what := _difference(entry))]


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


def _once(found: Iterable[InputFile]) -> tuple[InputFile, ...]:
    last_first = sorted(found, key=lambda entry: entry.path, reverse=True)
    by_file = {os.path.realpath(entry.path): entry for entry in last_first}
    return tuple(sorted(by_file.values(), key=lambda entry: entry.path))


def _look_up(name: str, base: Path) -> tuple[list[InputFile], Sequence[Problem]]:
    try:
        return [_entry(path) for path in _expand(name, base)], ()
    except SpecError as exc:
        return [], exc.problems
    except FileNotFoundError as exc:
        return [], [_missing(Path(exc.filename))]
    except OSError as exc:
        return [], [_unreadable(str(exc.filename or name), exc.strerror or str(exc))]


def _expand(name: str, base: Path) -> list[Path]:
    path = _absolute(base / name)
    if path.is_dir():
        return _under(path)
    # A file may be called data[1].jsonl: what exists is never read as a pattern.
    if path.exists() or not any(char in name for char in "*?["):
        return [path]
    matches = [_absolute(base / match) for match in glob.glob(name, root_dir=base, recursive=True)]  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not matches:
        raise SpecError(_missing(base / name, kind="no file matches"))
    return [file for match in sorted(matches) for file in _files_of(match)]


def _files_of(match: Path) -> list[Path]:
    # A directory that a glob matches may hold nothing: ** also gives those between.
    return list(_tree(match)) if match.is_dir() else [match]


def _absolute(path: Path) -> Path:
    # Text alone cannot resolve "..": after a link it leads somewhere else.
    return path.resolve() if ".." in path.parts else path


def _under(folder: Path) -> list[Path]:
    files = list(_tree(folder))
    if not files:
        what = f"{folder} holds no {_listed(SUFFIXES)} file"
        raise SpecError(Problem("input.empty", what, hint="name a directory with input files"))
    return files


def _tree(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link back up
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _tree(entry, above | {real})
        elif entry.suffix.lower() in SUFFIXES:
            yield entry


def _entry(path: Path) -> InputFile:
    now = path.stat()
    if not stat.S_ISREG(now.st_mode):
        raise SpecError(_unreadable(str(path), "not a regular file"))
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SpecError(_format(path, suffix))
    if not os.access(path, os.R_OK):
        raise SpecError(_unreadable(str(path), "permission denied"))
    return InputFile(path=str(path), size=now.st_size, mtime_ns=now.st_mtime_ns)


def _format(path: Path, suffix: str) -> Problem:
    kind = f"format {suffix}" if suffix else "no suffix"
    what = f"{path} has {kind}; supported are {_listed(SUFFIXES)}"
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


def _listed(suffixes: Sequence[str]) -> str:
    return ", ".join(suffixes[:-1]) + f" or {suffixes[-1]}"
