"""Parquet by units against pyarrow, and formats that mix."""

from __future__ import annotations

import gzip
import json
import tempfile
from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from cli_driving import write_job
from hypothesis import given, settings
from hypothesis import strategies as st
from input_reading import Fields, cut, fields_of, frozen, in_one_pass, key, problem_of, refusal
from pyarrow import parquet as pq

from launcher.data.inputs import freeze
from launcher.data.readers.arrow import rows_of
from launcher.data.rows import UnitReader, first_rows, read_unit
from launcher.data.sample import take_sample
from launcher.errors import RowError, SpecError
from launcher.plan.grid import count
from launcher.plan.types import InputFile
from launcher.prepare import prepare


def parquet(path: Path, table: pa.Table, **options: Any) -> InputFile:
    pq.write_table(table, path, **options)
    (entry,) = freeze([str(path)], base=path.parent)
    return entry


values = st.fixed_dictionaries(
    {
        "text": st.none() | st.text(max_size=5),
        "number": st.none() | st.integers(-(2**63), 2**63 - 1),
        "share": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "flag": st.none() | st.booleans(),
        "tags": st.none() | st.lists(st.none() | st.text(max_size=2), max_size=3),
        "turns": st.lists(
            st.none()
            | st.fixed_dictionaries({"role": st.text(max_size=2), "n": st.integers(0, 9)}),
            max_size=2,
        ),
    }
)
schema = pa.schema(
    {
        "text": pa.string(),
        "number": pa.int64(),
        "share": pa.float64(),
        "flag": pa.bool_(),
        "tags": pa.list_(pa.string()),
        "turns": pa.large_list(pa.struct({"role": pa.string(), "n": pa.int8()})),
    }
)


@given(
    rows=st.lists(values, max_size=12),
    group=st.integers(1, 5),
    span=st.none() | st.integers(1, 400),
    unit_bytes=st.integers(1, 60),
    order=st.lists(st.integers(0, 500), max_size=9),
)
@settings(deadline=None)
def test_parquet_is_what_pyarrow_reads(
    rows: list[Fields], group: int, span: int | None, unit_bytes: int, order: list[int]
) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    with tempfile.TemporaryDirectory() as folder:
        entry = parquet(Path(folder) / "a.parquet", table, row_group_size=group)
        assert entry.rows == len(rows)
        if not rows:
            assert entry.span == 0
            return
        entry = replace(entry, span=span or entry.span)
        grid = cut([entry], unit_bytes)
        found = in_one_pass([entry], grid)
        assert [row.fields for row in found] == table.to_pylist() == rows
        assert [row.offset for row in found] == list(range(len(rows)))
        with UnitReader([entry], grid) as reader:
            for unit in (number % count(grid) for number in order):
                alone = read_unit([entry], grid, unit)
                assert list(map(key, reader.read(unit))) == list(map(key, alone))


NOON = datetime(2024, 2, 29, 12, 30, 15, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.date32(), date(2024, 2, 29), "2024-02-29"),
        (pa.date64(), date(1969, 12, 31), "1969-12-31"),
        (pa.timestamp("s"), NOON.replace(tzinfo=None), "2024-02-29T12:30:15"),
        (pa.timestamp("ms"), datetime(1969, 12, 31, 23, 59, 59, 5000), "1969-12-31T23:59:59.005"),  # noqa: DTZ001 - a column without zones
        (pa.timestamp("us", "Europe/Berlin"), NOON, "2024-02-29T12:30:15+00:00"),
        (pa.timestamp("ns"), 1_000_000_001, "1970-01-01T00:00:01.000000001"),
        (pa.timestamp("ms"), 2**60, "bad_type"),
        (pa.time32("ms"), time(1, 2, 3, 4000), "01:02:03.004"),
        (pa.time64("us"), time(23, 0), "23:00:00"),
        (pa.duration("ms"), timedelta(seconds=-1.5), "-PT1.500S"),
        (pa.decimal128(12, 2), Decimal("-1234.50"), "-1234.50"),
        (pa.decimal128(12, 10), Decimal(0), "0.0000000000"),
        (pa.binary(), b"\xff\0", "/wA="),
        (pa.binary(2), b"ab", "YWI="),
        (pa.float64(), float("nan"), None),
        (pa.float32(), float("-inf"), None),
        (pa.float16(), 0.5, 0.5),
        (pa.uint64(), 2**64 - 1, 2**64 - 1),
        (pa.null(), None, None),
        (pa.dictionary(pa.int8(), pa.string()), "x", "x"),
        (pa.map_(pa.string(), pa.int8()), [("a", 1), ("b", None)], {"a": 1, "b": None}),
        (pa.map_(pa.int8(), pa.string()), [(1, "a")], [[1, "a"]]),
        (pa.map_(pa.string(), pa.int8()), [], {}),
        (pa.list_(pa.timestamp("ns")), [0, None], ["1970-01-01T00:00:00", None]),
        (pa.list_(pa.int8(), 2), [1, None], [1, None]),
        (pa.string_view(), "x" * 20, "x" * 20),
        (pa.binary_view(), b"\xff\0", "/wA="),
        (pa.list_(pa.string_view()), ["a", None], ["a", None]),
        (pa.struct({"a": pa.date32()}), {"a": None}, {"a": None}),
    ],
    ids=str,
)
def test_values_become_what_json_can_hold(
    tmp_path: Path, kind: pa.DataType, value: Any, expected: Any
) -> None:
    # Nulls and a second row: whatever slices an array must find its place in it.
    table = pa.table({"x": pa.array([None, value, None, value], kind)})
    entry = parquet(tmp_path / "a.parquet", table)
    shown = expected if expected == "bad_type" else {"x": expected}
    assert fields_of(entry) == [{"x": None}, shown, {"x": None}, shown]
    json.dumps(fields_of(entry), allow_nan=False)


def test_text_that_is_no_utf8_is_an_error_of_its_row_alone(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", None, b"d"], pa.binary()).cast(pa.string(), safe=False)
    inner = pa.array([[texts[1]], [], None, [texts[0]]], pa.list_(pa.string()))
    for column in (texts, inner):
        found = fields_of(parquet(tmp_path / "a.parquet", pa.table({"x": column})))
        assert [entry if isinstance(entry, str) else "" for entry in found].count(
            "invalid_utf8"
        ) == 1
        assert len(found) == 4


def test_views_are_read_as_what_they_show() -> None:
    broken = pa.array([b"fine", b"\xff", None], pa.binary_view()).cast(pa.string_view(), safe=False)
    values = pa.array([date(2024, 2, 29), None, date(1970, 1, 1)])
    kinds = (pa.ListViewArray, pa.LargeListViewArray)
    lists = [kind.from_arrays([1, 0, 2], [2, 2, 0], values) for kind in kinds]
    batch = pa.RecordBatch.from_arrays([broken, *lists], ["text", "list", "large"])
    first, second, third = rows_of(batch)
    assert list(rows_of(batch.slice(2))) == [third]
    dates = [None, "1970-01-01"]
    assert first == {"text": "fine", "list": dates, "large": dates}
    assert isinstance(second, RowError)
    assert second.code == "invalid_utf8"
    assert third == {"text": None, "list": [], "large": []}


def test_only_the_row_groups_of_a_unit_are_read(tmp_path: Path) -> None:
    table = pa.table({"n": range(4000), "text": ["x" * 50] * 4000})
    entry = parquet(tmp_path / "a.parquet", table, row_group_size=1000, compression="none")
    data = bytearray(Path(entry.path).read_bytes())
    second = pq.read_metadata(entry.path).row_group(1).column(0).data_page_offset
    data[4:second] = bytes(second - 4)  # the first row group; 4 bytes say that this is Parquet
    Path(entry.path).write_bytes(data)
    grid = cut([entry], entry.span // 8)
    last = [row.fields["n"] for row in read_unit([entry], grid, 6) if row.fields]
    assert last[0] > 2000
    assert last == list(range(last[0], last[-1] + 1))
    assert problem_of(entry).code == "input.damaged"


def test_a_damaged_footer_is_found_at_submission(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet(path, pa.table({"n": [1]}))
    path.write_bytes(path.read_bytes()[:-4])
    problem = refusal(path)
    assert problem.code == "input.damaged"
    assert str(path) in problem.message


def test_parquet_columns_need_names_of_their_own(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").code == "input.column-names"


# --- all together


def test_formats_mix_in_one_run(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"t": "1"}\n')
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"t\n2\n"))
    pq.write_table(pa.table({"t": ["3"]}), tmp_path / "c.parquet")
    (tmp_path / "d.tsv").write_bytes(b"t\tu\n4\t5\n")
    (tmp_path / "e.ndjson.zst").write_bytes(zstandard.compress(b'{"t": "6"}'))
    (tmp_path / "f.txt").write_bytes(b"7")
    inputs = freeze([str(tmp_path)], base=tmp_path)
    found = in_one_pass(inputs, cut(inputs, 3))
    assert [[*row.fields.values()] for row in found if row.fields] == [
        ["1"],
        ["2"],
        ["3"],
        ["4", "5"],
        ["6"],
        ["7"],
    ]
    assert [row.file for row in found] == list(range(6))


@pytest.mark.parametrize("span", [1, 5, 10_000])
def test_the_first_rows_end_where_the_next_one_begins(tmp_path: Path, span: int) -> None:
    entry = parquet(tmp_path / "a.parquet", pa.table({"n": range(50)}))
    inputs = [frozen(tmp_path / "a.jsonl", b"{}\n{}\n"), replace(entry, span=span)]
    for limit in (1, 2, 3, 30, 52, 99):
        grid = cut(inputs, 3)
        limited = replace(grid, total_bytes=take_sample(inputs, limit).extent_bytes, head_units=0)
        rows = in_one_pass(inputs, limited)
        assert len(rows) >= min(limit, 52)
        assert len(rows) <= max(limit, 2) + 50 // min(50, span)


def test_files_without_rows_give_no_sample_and_are_refused(tmp_path: Path) -> None:
    entry = parquet(tmp_path / "a.parquet", pa.table({"text": pa.array([], pa.string())}))
    assert (first_rows([entry], 9), take_sample([entry], 9).extent_bytes) == ([], 0)
    job = {"input": {"path": "a.parquet", "prompt": "{{ text }}", "chat": False}}
    with pytest.raises(SpecError) as caught:
        prepare(write_job(tmp_path, rows=[], **job), site="local")
    assert [problem.code for problem in caught.value.problems] == ["input.empty"]
