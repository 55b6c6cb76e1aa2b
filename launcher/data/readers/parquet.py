"""Rows of Parquet files by their number. Needs pyarrow: import this only where there is one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
from pyarrow import parquet as pq

from launcher.data.readers.arrow import rows_of
from launcher.data.readers.base import Found
from launcher.data.readers.streams import damaged, unreadable
from launcher.data.readers.tables import check_names
from launcher.errors import Problem, RunError
from launcher.plan.types import InputFile

__all__ = ["RecordBatches", "measured"]

_BUFFER_BYTES = 1024**2
_BATCH_BYTES = 4 * 1024**2
_BATCH_ROWS = 1024


def measured(path: str) -> tuple[int, int]:
    """How many bytes the columns of a file have once decompressed, and how many rows it has.

    Both are from its footer, which is all that is read.

    Raises
    ------
    RunError
        ``input.unreadable``, ``input.damaged`` or ``input.column-names``.
    """
    with _open(path) as file:
        metadata = file.metadata
        check_names(path, file.schema_arrow.names)
        groups = range(metadata.num_row_groups)
        unpacked = sum(metadata.row_group(group).total_byte_size for group in groups)
        rows = int(metadata.num_rows)
    return (max(1, unpacked) if rows else 0), rows


class RecordBatches:
    """Rows of a Parquet file. Of its row groups only those are read that hold wanted rows.

    Raises
    ------
    RunError
        As `measured`; ``input.changed`` for another number of rows than in the manifest.
    """

    def __init__(self, entry: InputFile) -> None:
        self._path = entry.path
        self._file = _open(entry.path)
        metadata = self._file.metadata
        if metadata.num_rows != entry.rows:
            what = f"{entry.path} has {metadata.num_rows} rows, it had {entry.rows}"
            hint = "restore the file, or submit to a new output.path"
            raise RunError(Problem("input.changed", what, hint=hint))
        groups = range(metadata.num_row_groups)
        counts = (metadata.row_group(group).num_rows for group in groups)
        self._starts = [0, *accumulate(counts)]  # of each row group, and where the last one ends
        row_bytes = entry.span // max(1, metadata.num_rows)
        self._batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._at = 0  # the number of the batch's first row
        self._until = 0  # the row group being read ends there

    def reaches(self, first: int) -> bool:  # noqa: ARG002 - any row group can be read at any time
        return True

    def read(self, first: int, last: int) -> Iterator[tuple[int, Found]]:
        number = first
        while number < min(last, self._starts[-1]):
            batch = self._batch_with(number)
            wanted = batch.slice(number - self._at, last - number)
            for fields in rows_of(wanted):
                yield number, fields
                number += 1

    def close(self) -> None:
        self._file.close()

    def _batch_with(self, number: int) -> pa.RecordBatch:
        """The batch that holds row ``number``, from its row group's start if it was passed."""
        if not self._at <= number < self._until:
            group = bisect_right(self._starts, number) - 1
            self._at, self._until = self._starts[group], self._starts[group + 1]
            self._batch = None
            self._batches = self._file.iter_batches(
                batch_size=self._batch_rows, row_groups=[group], use_threads=False
            )
        while self._batch is None or number >= self._at + self._batch.num_rows:
            self._at += self._batch.num_rows if self._batch is not None else 0
            self._batch = None  # should the next one fail
            self._batch = self._next_batch()
        return self._batch

    def _next_batch(self) -> pa.RecordBatch:
        try:
            batch = next(self._batches, None)
        except (pa.ArrowException, OSError) as exc:
            raise damaged(self._path, f"from row {self._at} on: {exc}") from exc
        if batch is None:
            raise damaged(self._path, f"at row {self._at}: its row group ends there")
        return batch


def _open(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES)
    except pa.ArrowException as exc:
        raise damaged(path, f"in its footer: {exc}") from exc
    except OSError as exc:
        raise unreadable(path, exc) from exc
