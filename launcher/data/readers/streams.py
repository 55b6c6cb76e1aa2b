"""Input files as streams of bytes, decompressed where they are compressed.

A file is read up to the size that it has in the manifest, and whatever goes wrong with its bytes
is a `RunError` that names the file and the place.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple

from launcher.data.formats import packing_of
from launcher.errors import Problem, RunError
from launcher.plan.types import InputFile

__all__ = ["damaged", "has_zstandard", "open_stream", "unpacked_bytes", "unreadable"]

_BUFFER_BYTES = 256 * 1024
# A decompressor gives all that its input holds. A byte of deflate holds up to a thousand, and
# 4 bytes of zstd up to 128 KiB (RFC 8878, 3.1.1.2.2, RLE_Block): small pieces keep that in bounds.
_GZIP_PIECE_BYTES = 16 * 1024
_ZSTD_PIECE_BYTES = 4 * 1024
_ZSTD_HEADER_BYTES = 18  # the longest one
_LARGEST_WINDOW = 31  # as a power of two: zstd --ultra --long=31
_MOST_PROBED_BYTES = 32 * 1024**2  # decompressed
_RATIO_STEPS = 16


def open_stream(entry: InputFile) -> BinaryIO:
    """The bytes of ``entry`` from its start, decompressed. Only plain files can seek.

    Raises
    ------
    RunError
        Here or from any read: ``input.unreadable``; ``input.changed`` for a file shorter than in
        the manifest; ``input.damaged`` for compressed data that is cut off or wrong.
    """
    # A run may have 10^5 files of a few bytes each.
    file = io.BufferedReader(_Bounded(entry), min(_BUFFER_BYTES, entry.size + 1))
    if packing_of(entry.path) is None:
        return file
    return io.BufferedReader(_Unpacked(entry.path, file), _BUFFER_BYTES)


def unpacked_bytes(entry: InputFile, probe_bytes: int) -> int:
    """Size of the compressed ``entry`` once decompressed, guessed from its first bytes.

    A guess that is too small would leave much to the last unit, so it is no less than what the
    file says about its last member, or its first frame.

    Parameters
    ----------
    probe_bytes
        How much of the file is read.

    Returns
    -------
    int
        At least 1, and exact for a file of fewer bytes than ``probe_bytes``.

    Raises
    ------
    RunError
        As `open_stream`.
    """
    inside = 0
    with io.BufferedReader(_Bounded(entry), _BUFFER_BYTES) as file:
        for read, piece in _unpack(entry.path, file):
            inside += len(piece)
            if read < entry.size and (read >= probe_bytes or inside >= _MOST_PROBED_BYTES):
                # In steps, so that a decoder that holds some bytes back gives the same guess.
                ratio = max(1, round(inside * _RATIO_STEPS / read))
                guess = max(1, entry.size * ratio // _RATIO_STEPS)
                return max(guess, _told_bytes(entry, file, guess))
    return max(1, inside)


def _told_bytes(entry: InputFile, file: BinaryIO, guess: int) -> int:
    """What ``file`` says to hold, at least; 0 where it does not say."""
    if packing_of(entry.path) == "zst":
        file.seek(0)
        return _frame_bytes(file.read(_ZSTD_HEADER_BYTES))
    # The last member's size modulo 2^32 ends the file (RFC 1952, 2.3.1). Of the sizes that it
    # can mean this is the nearest to the guess; where it is more, that is by 2^31 at most.
    file.seek(max(0, entry.size - 4))
    told = int.from_bytes(file.read(4), "little")
    return guess + (told - guess + 2**31) % 2**32 - 2**31


def _frame_bytes(header: bytes) -> int:
    """Content size in the header of a zstd frame, 0 where it has none (RFC 8878, 3.1.1.1)."""
    if not header.startswith(b"\x28\xb5\x2f\xfd"):
        return 0
    descriptor = header[4]
    single = descriptor >> 5 & 1
    start = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    length = (single, 2, 4, 8)[descriptor >> 6]
    size = int.from_bytes(header[start : start + length], "little")
    return size + 256 if length == 2 else size  # noqa: PLR2004 - bytes, as the format has it


def has_zstandard() -> bool:
    """Whether this Python reads .zst: by itself (from 3.14 on), or by the package zstandard."""
    return find_spec("zstandard") is not None or find_spec("_zstd") is not None


def damaged(path: str, what: str) -> RunError:
    """The error for a file whose bytes are not what its format asks for."""
    hint = "make the file again from its source"
    return RunError(Problem("input.damaged", f"{path} is damaged {what}", hint=hint))


def unreadable(path: str, exc: OSError) -> RunError:
    """The error for a file that the system does not give."""
    what = f"{path} cannot be read: {(exc.strerror or str(exc)).lower()}"
    hint = "check that this node mounts the file system"
    return RunError(Problem("input.unreadable", what, hint=hint))


class _Bounded(io.RawIOBase):
    """A file as it was frozen: what came later is not there, what went is an error."""

    def __init__(self, entry: InputFile) -> None:
        self._entry = entry
        self._at = 0
        try:
            self._file = io.FileIO(entry.path)
        except OSError as exc:
            raise unreadable(entry.path, exc) from exc

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("seek from the end")
        self._at = self._file.seek(offset + (self._at if whence == io.SEEK_CUR else 0))
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        wanted = min(len(buffer), self._entry.size - self._at)
        if wanted <= 0:
            return 0
        try:
            got = self._file.readinto(memoryview(buffer)[:wanted])
        except OSError as exc:
            raise unreadable(self._entry.path, exc) from exc
        if not got:
            what = f"{self._entry.path} ends at byte {self._at}, it had {self._entry.size}"
            hint = "restore the file, or submit to a new output.path"
            raise RunError(Problem("input.changed", what, hint=hint))
        self._at += got
        return got

    def close(self) -> None:
        if hasattr(self, "_file"):  # not if there was none to open
            self._file.close()
        super().close()


class _Unpacked(io.RawIOBase):
    """What is inside a compressed file, however many members or frames it has."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._file = file
        self._pieces = _unpack(path, file)
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._ready:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._ready = memoryview(piece[1])
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def close(self) -> None:
        self._file.close()
        super().close()


def _unpack(path: str, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Pieces of what is in ``file``, each with how many bytes of ``file`` were read for it."""
    codec = _codec(path)
    member: Any = None
    between = False  # one member and the next
    read = inside = 0
    while piece := file.read(codec.piece_bytes):
        read += len(piece)
        found = []
        if between:
            piece = piece.lstrip(codec.padding)
        while piece:
            try:
                member = member or codec.make()
                found.append(member.decompress(piece))
            except codec.errors as exc:
                what = f"before byte {read}, byte {inside} of its content: {exc}"
                raise damaged(path, what) from exc
            between = member.eof
            piece = member.unused_data.lstrip(codec.padding) if between else b""
            member = None if between else member
        content = b"".join(found)
        inside += len(content)
        yield read, content
    if member is not None:
        raise damaged(path, f"at its end, byte {read}: it is cut off")


class _Codec(NamedTuple):
    """How one kind of compression is undone; ``make`` gives a decompressor for one member."""

    make: Callable[[], Any]
    errors: tuple[type[Exception], ...]
    piece_bytes: int
    padding: bytes


def _codec(path: str) -> _Codec:
    if packing_of(path) == "gz":
        make: Callable[[], Any] = partial(zlib.decompressobj, 16 + zlib.MAX_WBITS)
        # Zeros may follow, as tapes leave them (gzip(1), "CAVEATS").
        return _Codec(make, (zlib.error,), _GZIP_PIECE_BYTES, b"\0")
    if find_spec("zstandard") is None:
        zstd: Any = import_module("compression.zstd")
        options = {zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW}
        make = partial(zstd.ZstdDecompressor, options=options)
        return _Codec(make, (zstd.ZstdError,), _ZSTD_PIECE_BYTES, b"")
    import zstandard

    make = zstandard.ZstdDecompressor(max_window_size=2**_LARGEST_WINDOW).decompressobj
    return _Codec(make, (zstandard.ZstdError,), _ZSTD_PIECE_BYTES, b"")
