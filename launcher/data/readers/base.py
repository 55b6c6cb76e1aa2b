"""What every reader of a format is to the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from launcher.errors import RowError

__all__ = ["Found", "Reader"]

Found = Mapping[str, Any] | RowError


class Reader(Protocol):
    """The rows of one file by their coordinates, ranges of coordinates in rising order.

    A coordinate is the byte that a row starts at (once decompressed), or in Parquet its number.
    It rises from row to row.
    """

    def reaches(self, first: int) -> bool:
        """Whether rows from ``first`` on can still be given; if not, only a new reader can."""

    def read(self, first: int, last: int) -> Iterator[tuple[int, Found]]:
        """The rows with coordinates in ``[first, last)``; whoever has less may stop early."""

    def close(self) -> None: ...
