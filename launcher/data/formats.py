"""Which input formats there are, and how the name of a file tells its own."""

from __future__ import annotations

from typing import Literal, NamedTuple

from launcher.plan.types import InputFile

__all__ = ["SUPPORTED", "Format", "format_of", "is_streamed", "packing_of"]

SUPPORTED = ".jsonl, .ndjson, .txt, .csv or .tsv (each also with .gz or .zst), or .parquet"


class Format(NamedTuple):
    """What a file holds, and how it is compressed, if it is."""

    kind: Literal["json", "text", "csv", "tsv", "parquet"]
    packing: Literal["gz", "zst"] | None = None

    @property
    def table(self) -> Literal["csv", "tsv"] | None:
        """The kind of text in columns that it is, whose fields may hold line breaks."""
        return self.kind if self.kind in ("csv", "tsv") else None


_PLAIN = {
    "jsonl": Format("json"),
    "ndjson": Format("json"),
    "txt": Format("text"),
    "csv": Format("csv"),
    "tsv": Format("tsv"),
}
_FORMATS = {
    **_PLAIN,
    "parquet": Format("parquet"),
    **{f"{name}.gz": Format(plain.kind, "gz") for name, plain in _PLAIN.items()},
    **{f"{name}.zst": Format(plain.kind, "zst") for name, plain in _PLAIN.items()},
}


def format_of(path: str) -> Format | None:
    """The format that a file's name says, or None for a name that says none of them.

    >>> format_of("/data/a.JSONL.gz")
    Format(kind='json', packing='gz')
    """
    _, *endings = path.lower().rsplit(".", 2)
    # The shorter one first: a file may be called a.csv.jsonl.
    return _FORMATS.get(endings[-1]) or _FORMATS.get(".".join(endings)) if endings else None


def packing_of(path: str) -> Literal["gz", "zst"] | None:
    """How a file is compressed, by its name."""
    known = format_of(path)
    return known.packing if known else None


def is_streamed(entry: InputFile) -> bool:
    """Whether a row of ``entry`` can be reached only by reading all that is before it."""
    known = format_of(entry.path)
    if known is None:
        return False
    return known.packing is not None or (known.table is not None and entry.newlines)
