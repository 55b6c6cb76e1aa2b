"""One unit while its rows are answered: what is finished, in memory or in a log, until its part."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from launcher.data.tally import PartCounts
from launcher.data.wal import Key, Record, UnitLog, scan
from launcher.errors import OutputError, Problem
from launcher.rundir import RunDir, publish

__all__ = ["OpenUnit"]

_PIECE_BYTES = 1024**2
# Of a file that another node removed, NFS says the latter.
_GONE = {errno.ENOENT, errno.ESTALE}


class OpenUnit:
    """A unit that this worker holds by its lease of ``generation``.

    Rows are added in input order and finished in any. What earlier owners finished is adopted
    from their logs. Rows are added and finished by one thread; `flush`, `publish` and
    `finished_elsewhere` may be called from others.

    Parameters
    ----------
    elsewhere
        Rows that other workers answer, each with its worker; see `launcher.data.leases`.

    Attributes
    ----------
    all_read
        Whether no more rows will be added.
    shared
        Whether rows that were not added are left to others, one of whom makes the part.
    begun
        The rows that are answered here.
    """

    def __init__(
        self,
        run: RunDir,
        unit: int,
        generation: int,
        overlay: int = 0,
        elsewhere: Mapping[Key, str] | None = None,
    ) -> None:
        self.unit = unit
        self.generation = generation
        self.all_read = False
        self.shared = False
        self.begun: list[Key] = []
        self.elsewhere = elsewhere or {}
        self._awaited: dict[Key, int] = {}
        self._part = run.part_path(unit, overlay)
        self._overlay = overlay
        self._logs = [run.wal_path(unit, g, overlay) for g in range(1, generation + 1)]
        self._log = UnitLog(self._logs[-1], run.lease_path(unit, generation, overlay).parent)
        # The last answer counts; they can differ only where a worker that was thought dead was not.
        self._adopted = {r.key: r for log in self._logs[:-1] for r in scan(log)}
        self._records: list[Record | None] = []
        self._waiting = 0
        self._unlogged: deque[Record] = deque()
        self._writing = threading.Lock()

    @property
    def complete(self) -> bool:
        """Whether every row of the unit is finished."""
        return self.all_read and self._waiting == 0

    def add(self, key: Key) -> int | None:
        """The next row: its index if it is to be answered here, None when others did or do it."""
        adopted = self._adopted.pop(key, None)
        self._records.append(adopted)
        if adopted is not None:
            return None
        self._waiting += 1
        index = len(self._records) - 1
        if key in self.elsewhere:
            self._awaited[key] = index
            return None
        self.begun.append(key)
        return index

    def finish(self, index: int, record: Record) -> None:
        """Take the answer to the row that `add` gave ``index``."""
        self._records[index] = record
        self._unlogged.append(record)
        self._waiting -= 1

    @property
    def awaited(self) -> Sequence[str]:
        """The workers of whom answers are awaited."""
        return sorted({self.elsewhere[key] for key in self._awaited})

    @property
    def only_awaits(self) -> bool:
        """Whether nothing but others' answers is missing."""
        return self.all_read and 0 < len(self._awaited) == self._waiting

    def finished_elsewhere(self) -> list[Record]:
        """What others have finished of the rows that are awaited."""
        awaited = frozenset(self._awaited)
        return [r for log in self._logs[:-1] for r in scan(log) if r.key in awaited]

    def adopt(self, found: Sequence[Record]) -> None:
        """Take the answers that `finished_elsewhere` gave."""
        for record in found:
            index = self._awaited.pop(record.key, None)
            if index is not None:
                self._records[index] = record
                self._waiting -= 1

    def share(self) -> None:
        """Leave what was not begun here to others, one of whom makes the part."""
        self.shared = True
        self._waiting -= len(self._awaited)
        self._awaited.clear()

    def flush(self, *, sync: bool) -> None:
        """Write to the log what is finished; ``sync`` has it on disk, too.

        Raises
        ------
        OSError
            What could not be written stays to be written.
        """
        with self._writing:
            taken: list[Record] = []
            while self._unlogged:
                taken.append(self._unlogged.popleft())
            try:
                if taken:
                    self._log.write(taken)
            except OSError:
                self._unlogged.extendleft(reversed(taken))
                raise
            if sync:
                self._log.sync()

    def close(self) -> None:
        """Let go of the log, which stays for the next owner unless the part is out."""
        with self._writing:
            self._log.close()

    def publish(self) -> PartCounts | None:
        """Make the part, and remove the logs that it replaces.

        Returns
        -------
        PartCounts or None
            None when another worker's part stands, or a log has gone: whoever removed it had
            made the part, so the unit is looked at again.

        Raises
        ------
        OutputError
            ``run.disorder`` when rows were read out of order: a bug, and nothing is written.
        """
        records = [record for record in self._records if record is not None]
        if any(a.key >= b.key for a, b in pairwise(records)):
            what = f"the rows of unit {self.unit} were not read in order, each once"
            raise OutputError(Problem("run.disorder", what))
        with self._writing:
            try:
                created = publish(self._part, _lines(records))
            except OSError as exc:
                if exc.errno not in _GONE:
                    raise
                return None
            self._unlogged.clear()
            for log in self._logs:
                log.unlink(missing_ok=True)
        return self._counts(records) if created else None

    def _counts(self, records: list[Record]) -> PartCounts:
        answered = [record for record in records if record.ok]
        return PartCounts(
            unit=self.unit,
            overlay=self._overlay,
            ok=len(answered),
            error=len(records) - len(answered),
            prompt_tokens=sum(record.prompt_tokens for record in answered),
            completion_tokens=sum(record.completion_tokens for record in answered),
        )


def _lines(records: list[Record]) -> Iterator[bytes]:
    """The lines of ``records``, in about 1 MB pieces, from memory or from the logs."""
    logs: dict[Path, int] = {}
    with contextlib.ExitStack() as opened:
        piece: list[bytes] = []
        size = 0
        for record in records:
            line = record.line
            if line is None:
                line = _logged(record, logs, opened)
            piece.append(line)
            size += len(line)
            if size >= _PIECE_BYTES:
                yield b"".join(piece)
                piece, size = [], 0
        yield b"".join(piece)


def _logged(record: Record, logs: dict[Path, int], opened: contextlib.ExitStack) -> bytes:
    assert record.log is not None  # noqa: S101 - a record has a line or a log
    if record.log not in logs:
        logs[record.log] = os.open(record.log, os.O_RDONLY)
        opened.callback(os.close, logs[record.log])
    line = os.pread(logs[record.log], record.length, record.position)
    if len(line) < record.length:
        raise OSError(errno.EIO, "a log is shorter than it was", str(record.log))
    return line
