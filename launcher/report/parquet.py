"""Output rows as a Parquet table, a row group at a time."""

from __future__ import annotations

import json
from typing import Any

from launcher.errors import OutputError, Problem
from launcher.report.files import NewFile
from launcher.report.reading import Found

__all__ = ["COLUMNS", "ParquetSink"]

COLUMNS = {
    "id": "string",
    "row_file": "int32",
    "row_offset": "int64",
    "status": "string",
    "text": "string",
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "error_code": "string",
    "error_message": "string",
    "input": "string",
    "plan": "string",
}
_GROUP_ROWS = 20_000
_GROUP_BYTES = 32 * 1024**2


class ParquetSink:
    r"""Writes rows to ``file`` with the columns `COLUMNS`; what a row lacks is null.

    ``input`` is JSON text, where the run keeps fields of its input. Lone surrogates, which no
    Parquet text can hold, are spelled out as in ``\udc80``.

    Raises
    ------
    OutputError
        ``output.needs-pyarrow``.
    """

    def __init__(self, file: NewFile) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415 - the extra `parquet`
            from pyarrow import parquet  # noqa: PLC0415
        except ImportError as exc:
            message = f"Parquet needs the package pyarrow, which cannot be imported: {exc}"
            hint = "pip install 'hpc-llm[parquet]', or take --format jsonl"
            raise OutputError(Problem("output.needs-pyarrow", message, hint=hint)) from exc
        self._arrow, self._file = pa, file
        kinds = [(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()]
        self._schema = pa.schema(kinds)
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> ParquetSink:  # noqa: PYI034 - Self is not in 3.10
        return self

    def write(self, found: Found) -> None:
        self._rows.append(_flat(found.row))
        self._bytes += len(found.line)
        if len(self._rows) == _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._write_group()
            self._writer.close()
        else:
            self._writer.is_open = False  # or it writes its footer when it is collected

    def _write_group(self) -> None:
        if not self._rows:
            return
        table = self._arrow.Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(self._rows))
        self._file.rows += len(self._rows)
        self._rows, self._bytes = [], 0


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    file, offset = row["row"]
    usage, error = row.get("usage", {}), row.get("error", {})
    kept = json.dumps(row["input"], ensure_ascii=False) if "input" in row else None
    flat = {
        "id": row["id"],
        "row_file": file,
        "row_offset": offset,
        "status": row["status"],
        "text": row.get("response", {}).get("text"),
        "finish_reason": row.get("finish_reason"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "error_code": error.get("code"),
        "error_message": error.get("message"),
        "input": kept,
        "plan": row["plan"],
    }
    return {name: _utf8(value) if isinstance(value, str) else value for name, value in flat.items()}


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
