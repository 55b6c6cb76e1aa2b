"""New files that take their names together, once all of them are whole and on disk."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections import defaultdict
from pathlib import Path

from launcher.report.reading import FileFacts
from launcher.rundir import sync_directory

__all__ = ["NewFile", "NewFiles"]

_BUFFER_BYTES = 1024**2


class NewFile:
    """A file without its name yet. It counts what is written; ``rows`` is for its user to count."""

    mode = "wb"  # pyarrow asks for it

    def __init__(self, target: Path, scratch: Path) -> None:
        self.target, self.scratch = target, scratch
        self.rows = self._bytes = 0
        self._digest = hashlib.sha256()
        # Own buffer: a buffered file would try again to write to a full disk when it is closed.
        self._file = scratch.open("xb", buffering=0)
        self._pending = bytearray()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes) -> int:
        self._pending += data
        if len(self._pending) >= _BUFFER_BYTES:
            self.flush()
        return len(data)

    def tell(self) -> int:
        return self._bytes + len(self._pending)

    def flush(self) -> None:
        """Hand over to the system what is buffered."""
        data, self._pending = bytes(self._pending), bytearray()
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]
        self._digest.update(data)
        self._bytes += len(data)

    def finish(self) -> None:
        """Have all of it on disk."""
        if not self.closed:
            self.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def close(self) -> None:
        """Let go of it, whole or not."""
        self._file.close()

    @property
    def facts(self) -> FileFacts:
        return FileFacts(
            path=str(self.target),
            sha256=self._digest.hexdigest(),
            bytes=self._bytes,
            rows=self.rows,
        )


class NewFiles:
    """Files that appear when the block ends well; otherwise nothing of them is left.

    A process that is killed leaves files called ``.<name>.<host>.<pid>.tmp``, which the next one
    with the same target removes.
    """

    def __init__(self) -> None:
        self._made: list[NewFile] = []
        self._left: dict[Path, dict[str, list[Path]]] = {}  # by directory and name

    def __enter__(self) -> NewFiles:  # noqa: PYI034 - Self is not in 3.10
        return self

    def open(self, target: Path) -> NewFile:
        if target.parent not in self._left:
            self._left[target.parent] = _left_behind(target.parent)
        for path in self._left[target.parent].get(target.name, ()):
            path.unlink(missing_ok=True)
        own = f"{socket.gethostname()}.{os.getpid()}"
        self._made.append(NewFile(target, target.with_name(f".{target.name}.{own}.tmp")))
        return self._made[-1]

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._name()
        finally:
            for file in self._made:
                file.close()
                file.scratch.unlink(missing_ok=True)

    def _name(self) -> None:
        for file in self._made:
            file.finish()
        for file in self._made:
            file.scratch.replace(file.target)
        for directory in {file.target.parent for file in self._made}:
            sync_directory(directory)


def _left_behind(directory: Path) -> dict[str, list[Path]]:
    """Unnamed files of processes of this host that are no more, by the name they were to get."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    name = re.compile(rf"\.(.+)\.{re.escape(socket.gethostname())}\.(\d+)\.tmp", re.DOTALL)
    for path in directory.iterdir():
        left = name.fullmatch(path.name)
        if left and not Path("/proc", left[2]).exists():
            found[left[1]].append(path)
    return found
