"""Finished rows of units whose part is not out yet: what a kill would otherwise lose.

One file a unit and owner, ``wal/u<unit>.g<generation>.wal``, named like the lease that its writer
holds, so that whoever takes the unit over knows its predecessors' files by name. A record is a
header (`_HEADER`) and the encoded output line; its crc32 covers all but itself. A file has one
writer and is never written again by another, so what follows the first bad record is its torn end.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.rundir import RunDir, sync_directory

__all__ = ["Key", "Record", "UnitLog", "finished", "scan"]

Key = tuple[int, int]

# crc32, length of the line, file, offset, prompt tokens, completion tokens, whether it is ok.
_HEADER = struct.Struct("<IIIQII?")
_CRC = struct.Struct("<I")
_NAME = re.compile(r"u(\d+)\.g(\d+)\.wal")


@dataclass(slots=True)
class Record:
    """An output row: its encoded ``line``, or where a log holds it once memory does not.

    ``key`` is the row's ``(file, offset)``.
    """

    key: Key
    ok: bool
    prompt_tokens: int
    completion_tokens: int
    line: bytes | None
    log: Path | None = None
    position: int = 0
    length: int = 0

    def packed(self, line: bytes) -> bytes:
        """The record as a log has it."""
        file, offset = self.key
        tokens = (self.prompt_tokens, self.completion_tokens)
        rest = _HEADER.pack(0, len(line), file, offset, *tokens, self.ok)[_CRC.size :]
        return b"".join((_CRC.pack(zlib.crc32(line, zlib.crc32(rest))), rest, line))


class UnitLog:
    """The log that one worker keeps of one unit; the file appears with its first record.

    Parameters
    ----------
    leases
        The directory of the lease that gives the log its name. Were that lost in a crash, the
        next owner would have the same name and write over the log.
    """

    def __init__(self, path: Path, leases: Path) -> None:
        self.path = path
        self._leases = leases
        self._descriptor: int | None = None
        self._end = 0
        self._synced = 0
        self._named = False

    def write(self, records: Sequence[Record]) -> None:
        """Append ``records``, which forget their line: the log has it now.

        Raises
        ------
        OSError
            Nothing of ``records`` is in the log then.
        """
        if self._descriptor is None:
            sync_directory(self._leases)
            fresh = os.O_TRUNC if self._end == 0 else 0
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | fresh, 0o666)
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
        packed = [record.packed(record.line or b"") for record in records]
        self._append(b"".join(packed))
        position = self._end
        for record, data in zip(records, packed, strict=True):
            record.length = len(data) - _HEADER.size
            record.position = position + _HEADER.size
            record.log, record.line = self.path, None
            position += len(data)
        self._end = position

    def sync(self) -> None:
        """Have on disk what was written, and the file's name."""
        if self._descriptor is None or self._synced == self._end:
            return
        end = self._end
        os.fdatasync(self._descriptor)
        if not self._named:
            sync_directory(self.path.parent)
            self._named = True
        self._synced = end

    def close(self) -> None:
        """Let go of the file, which stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _append(self, data: bytes) -> None:
        assert self._descriptor is not None  # noqa: S101 - write() opened it
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            # A disk that is full took a part: after that no later record would be found.
            os.ftruncate(self._descriptor, self._end)
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            raise


def scan(path: Path) -> Iterator[Record]:
    """The whole records of a log, without their lines, up to its torn end; none if it is gone.

    Memory is that of one record.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            crc, length, number, offset, prompt, completion, ok = _HEADER.unpack(header)
            position += _HEADER.size
            if length > size - position:
                return
            line = file.read(length)
            if len(line) < length or zlib.crc32(line, zlib.crc32(header[_CRC.size :])) != crc:
                return
            yield Record((number, offset), ok, prompt, completion, None, path, position, length)
            position += length


def finished(run: RunDir) -> Iterator[tuple[int, Key, bytes]]:
    """``(unit, row, line)`` of the rows that are answered and whose part is not out.

    Of several answers of a row that of the last owner counts, as in its part. Files that go
    meanwhile have become parts.
    """
    published = run.published_units()
    seen: set[tuple[int, Key]] = set()
    names = filter(None, (_NAME.fullmatch(path.name) for path in (run.path / "wal").glob("*")))
    for unit, generation in sorted((int(name[1]), -int(name[2])) for name in names):
        for record in () if unit in published else scan(run.wal_path(unit, -generation)):
            if (place := (unit, record.key)) not in seen:
                try:
                    line = _line(record)
                except FileNotFoundError:
                    break
                seen.add(place)
                yield *place, line


def _line(record: Record) -> bytes:
    assert record.log is not None  # noqa: S101 - what scan() gives has one
    with record.log.open("rb") as file:
        file.seek(record.position)
        return file.read(record.length)
