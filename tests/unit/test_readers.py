"""Every format by units against a plain reader of the whole file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from launcher.data.inputs import freeze, total_bytes
from launcher.data.rows import Row, UnitReader, extent, read_unit, sample
from launcher.errors import Problem, RunError, SpecError
from launcher.plan.grid import count, make_grid, units
from launcher.plan.types import InputFile, UnitGrid

Fields = dict[str, Any]


def frozen(path: Path, data: bytes, *, newlines: bool = True) -> InputFile:
    path.write_bytes(data)
    (entry,) = freeze([str(path)], base=path.parent, newlines=newlines)
    return entry


def cut(inputs: Sequence[InputFile], unit_bytes: int, tail_bytes: int = 1) -> UnitGrid:
    total = total_bytes(inputs)
    return UnitGrid(
        total_bytes=total,
        unit_bytes=unit_bytes,
        head_units=total * 9 // 10 // unit_bytes,
        tail_bytes=tail_bytes,
    )


def key(row: Row) -> tuple[int, int, Any, str | None]:
    return row.file, row.offset, row.fields, row.error.code if row.error else None


def in_one_pass(inputs: Sequence[InputFile], grid: UnitGrid) -> list[Row]:
    with UnitReader(inputs, grid) as reader:
        return [row for unit in units(grid) for row in reader.read(unit)]


def fields_of(entry: InputFile) -> list[Any]:
    """Fields, or the error's code, of all rows of a file, after reading it in every way."""
    rows = sample([entry], sys.maxsize)
    for unit_bytes in (1, 7, 50, max(1, entry.span)):
        if entry.span < 3000 * unit_bytes:
            found = in_one_pass([entry], cut([entry], unit_bytes))
            assert [key(row) for row in found] == [key(row) for row in rows]
    return [row.fields if row.error is None else row.error.code for row in rows]


def problem_of(entry: InputFile) -> Problem:
    with pytest.raises(RunError) as caught:
        sample([entry], sys.maxsize)
    return caught.value.problems[0]


def refusal(path: Path) -> Problem:
    with pytest.raises(SpecError) as caught:
        freeze([str(path)], base=path.parent)
    (problem,) = caught.value.problems
    return problem


# --- compression

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
}
packings = pytest.mark.parametrize("packing", ["gz", "zst"])
pieces = st.lists(
    st.lists(
        st.sampled_from([b'{"a": 1}\n', b"\n", b'{"text": "' + b"long" * 20 + b'"}\r\n', b"[]\n"])
    ).map(b"".join),
    min_size=1,
    max_size=4,
)


@given(
    parts=pieces,
    packing=st.sampled_from(["gz", "zst"]),
    span=st.none() | st.integers(1, 2000),
    unit_bytes=st.integers(1, 60),
    tail_bytes=st.integers(1, 10),
)
def test_compressed_files_give_the_rows_inside_whatever_size_was_guessed(
    parts: list[bytes], packing: str, span: int | None, unit_bytes: int, tail_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain = frozen(Path(folder) / "a.jsonl", b"".join(parts) or b"\n")
        packed = frozen(
            Path(folder) / f"a.jsonl.{packing}",
            b"".join(map(PACKERS[packing], parts)),  # as many members, or frames
        )
        assert packed.span == max(1, len(b"".join(parts)))
        guessed = replace(packed, span=span or packed.span)
        grid = cut([guessed], unit_bytes, tail_bytes)
        found = [key(row) for row in in_one_pass([guessed], grid)]
        assert found == [key(row) for row in sample([plain], sys.maxsize)]
        alone = [key(row) for unit in units(grid) for row in read_unit([guessed], grid, unit)]
        assert alone == found


@st.composite
def files_and_order(draw: st.DrawFn) -> tuple[list[tuple[str, bytes]], int, list[int]]:
    line = st.sampled_from([b"a", b"bb,2", b'"c c",3', b"", b'"x\ny",4'])
    files = draw(
        st.lists(
            st.tuples(
                st.sampled_from([".txt", ".txt.gz", ".csv", ".csv.zst", ".tsv", ".jsonl.zst"]),
                st.lists(line, min_size=1, max_size=5),
            ),
            min_size=1,
            max_size=6,
        )
    )
    contents = [
        (f"{number}{suffix}", b"name,of\n" * (".csv" in suffix) + b"\n".join(lines) + b"\n")
        for number, (suffix, lines) in enumerate(files)
    ]
    order = draw(st.lists(st.integers(0, 300), min_size=1, max_size=12))
    return contents, draw(st.integers(1, 20)), order


@given(files_and_order())
@settings(deadline=None)
def test_units_are_the_same_in_any_order_and_as_often_as_wanted(
    case: tuple[list[tuple[str, bytes]], int, list[int]],
) -> None:
    contents, unit_bytes, order = case
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents:
            packed = PACKERS.get(name.rpartition(".")[2], bytes)(content)
            (Path(folder) / name).write_bytes(packed)
        inputs = freeze([folder], base=Path(folder))
        grid = cut(inputs, unit_bytes)
        expected = {unit: list(map(key, read_unit(inputs, grid, unit))) for unit in units(grid)}
        with UnitReader(inputs, grid) as reader:
            for unit in (number % count(grid) for number in order):
                rows = reader.read(unit)
                if unit % 3 == 0:
                    next(rows, None)  # and then something else
                else:
                    assert [key(row) for row in rows] == expected[unit]


@packings
def test_a_compressed_file_is_read_in_one_pass(tmp_path: Path, packing: str) -> None:
    data = b"".join(b'{"n": %d}\n' % n for n in range(200_000))
    entry = frozen(tmp_path / f"a.jsonl.{packing}", PACKERS[packing](data))
    grid = make_grid(total_bytes([entry]))
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)

    rows = in_one_pass([entry], grid)

    assert [row.fields for row in rows] == [{"n": n} for n in range(200_000)]
    assert opened.count(entry.path) == 1


@packings
def test_the_size_inside_is_guessed_from_the_first_megabyte(tmp_path: Path, packing: str) -> None:
    noise = bytes((n * n * n >> 3) % 251 for n in range(1000))
    data = b"".join(noise[n % 97 : n % 89 + 400] + b"%d\n" % n for n in range(20_000))
    entry = frozen(tmp_path / f"a.txt.{packing}", PACKERS[packing](data) * 40)
    size_inside = 40 * len(data)
    assert entry.size > 2 * 1024**2
    assert 0.8 < entry.span / size_inside < 1.25


@packings
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_stream_that_is_cut_off_is_damaged(tmp_path: Path, packing: str, suffix: str) -> None:
    whole = PACKERS[packing](b"".join(b'{"number": %d}\n' % n for n in range(1000)))
    path = tmp_path / f"a{suffix}.{packing}"
    path.write_bytes(whole[:-9])
    problem = refusal(path)
    assert problem.code == "input.damaged"
    assert str(path) in problem.message
    assert f"byte {len(whole) - 9}" in problem.message


@packings
def test_damage_that_submission_did_not_see_ends_the_run(tmp_path: Path, packing: str) -> None:
    part = PACKERS[packing](b"".join(b'{"number": %d}\n' % (n**7) for n in range(100_000)))
    whole = part * (3 * 1024**2 // len(part) + 1)
    broken = bytearray(whole)
    broken[-20_000:-19_000] = bytes(1000)
    entry = frozen(tmp_path / f"a.jsonl.{packing}", bytes(broken))
    problem = problem_of(entry)
    assert problem.code == "input.damaged"
    assert entry.path in problem.message


@packings
def test_what_is_no_compressed_data_is_damaged(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.jsonl.{packing}"
    for content in (b'{"a": 1}\n', bytes(100), PACKERS[packing](b"{}\n") + b"rest"):
        path.write_bytes(content)
        assert refusal(path).code == "input.damaged"


def test_zeros_after_a_gzip_member_are_padding(tmp_path: Path) -> None:
    data = gzip.compress(b"{}\n") + bytes(40_000) + gzip.compress(b'{"b": 1}\n') + bytes(3)
    assert fields_of(frozen(tmp_path / "a.jsonl.gz", data)) == [{}, {"b": 1}]


def test_skippable_frames_and_long_windows_are_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=29, enable_ldm=True)
    data = b'{"a": 1}\n' * 50
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"  # RFC 8878, 3.1.2
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(data)
    entry = frozen(tmp_path / "a.jsonl.zst", skipped + frame + skipped + frame)
    assert fields_of(entry) == [{"a": 1}] * 100


def test_an_empty_compressed_file_has_no_rows(tmp_path: Path) -> None:
    frozen(tmp_path / "b.jsonl", b"{}\n")
    for packing, pack in PACKERS.items():
        (tmp_path / f"a.jsonl.{packing}").write_bytes(pack(b""))
        (tmp_path / f"c.jsonl.{packing}").write_bytes(b"")
    inputs = freeze([str(tmp_path)], base=tmp_path)
    assert [row.fields for row in in_one_pass(inputs, cut(inputs, 1))] == [{}]


# --- CSV

cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
spiced = st.lists(
    st.sampled_from(["a", '"', ",", "\t", "\n", "\r\n", "\r", " ", "é", ""]), max_size=5
).map("".join)
one_line = cells.filter(lambda cell: not {"\n", "\r"} & set(cell))


def written(rows: list[list[str]], kind: Literal["csv", "tsv"], end: str) -> bytes:
    text = io.StringIO(newline="")
    dialect = "excel" if kind == "csv" else "excel-tab"
    # Left to itself, the module does not quote a lone carriage return before Python 3.13.
    returns = any("\r" in cell for row in rows for cell in row)
    quoting: Literal[0, 1] = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    csv.writer(text, dialect, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue().encode()


@given(
    header=st.lists(one_line.filter(str.strip), min_size=1, max_size=3, unique=True),
    rows=st.lists(st.lists(cells | spiced, min_size=3, max_size=3), max_size=6),
    kind=st.sampled_from(["csv", "tsv"]),
    end=st.sampled_from(["\n", "\r\n"]),
    packing=st.sampled_from(["", ".gz", ".zst"]),
    bom=st.booleans(),
)
@settings(deadline=None)
def test_csv_is_what_the_csv_module_reads(
    *, header: list[str], rows: list[list[str]], kind: Any, end: str, packing: str, bom: bool
) -> None:
    if "\ufeff" in header[0]:
        return
    data = written([header, *(row[: len(header)] for row in rows)], kind, end)
    dialect = "excel" if kind == "csv" else "excel-tab"
    expected = list(csv.DictReader(io.StringIO(data.decode(), newline=""), dialect=dialect))
    content = b"\xef\xbb\xbf" * bom + data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{kind}{packing}"
        entry = frozen(path, PACKERS[packing[1:]](content) if packing else content)
        assert fields_of(entry) == expected


@given(
    rows=st.lists(st.lists(one_line, min_size=2, max_size=2), max_size=8),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    packing=st.sampled_from(["", ".gz"]),
)
@settings(deadline=None)
def test_csv_without_line_breaks_in_fields_can_be_entered_anywhere(
    rows: list[list[str]], end: str, packing: str
) -> None:
    data = b"\xef\xbb\xbf" + written([["a", "b"], *rows], "csv", end)
    content = gzip.compress(data) if packing else data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.csv{packing}"
        stream, lines = (frozen(path, content, newlines=promise) for promise in (True, False))
        assert (stream.newlines, lines.newlines) == (True, False)
        assert fields_of(lines) == fields_of(stream)
        found = (sample([entry], 99) for entry in (stream, lines))
        assert len({tuple(row.offset for row in rows) for rows in found}) == 1


def test_a_record_is_known_by_the_byte_it_starts_at(tmp_path: Path) -> None:
    entry = frozen(tmp_path / "a.csv", b'a,b\n1,"x\ny"\n\n2,z')
    assert [(row.offset, row.fields) for row in sample([entry], 9)] == [
        (4, {"a": "1", "b": "x\ny"}),
        (13, {"a": "2", "b": "z"}),
    ]


@pytest.mark.parametrize("newlines", [True, False])
@pytest.mark.parametrize(
    ("record", "code"),
    [
        (b"1", "invalid_csv"),
        (b"1,2,3", "invalid_csv"),
        (b"1,2\r3,4", "invalid_csv"),
        (b"1,\xff", "invalid_utf8"),
        (b'"\xff",2,3', "invalid_utf8"),
    ],
)
def test_a_bad_record_is_a_row_with_its_error(
    tmp_path: Path, record: bytes, code: str, *, newlines: bool
) -> None:
    data = b"a,b\n" + record + b"\nx,y\n"
    entry = frozen(tmp_path / "a.csv", data, newlines=newlines)
    assert fields_of(entry) == [code, {"a": "x", "b": "y"}]


def test_invalid_text_in_a_record_names_the_byte_and_ends_where_the_record_does(
    tmp_path: Path,
) -> None:
    entry = frozen(tmp_path / "a.csv", b'\xef\xbb\xbfa,b\n1,"x\n\xff\ny"\n2,z\n')
    bad, good = sample([entry], 9)
    assert bad.error is not None
    assert (bad.error.code, good.fields) == ("invalid_utf8", {"a": "2", "b": "z"})
    assert bad.error.message.startswith("byte 12 ")


def test_a_quotation_mark_that_never_closes_is_an_error_and_no_row(tmp_path: Path) -> None:
    data = b'a,b\n1,"x\n2,y\n'
    assert fields_of(frozen(tmp_path / "a.csv", data)) == ["invalid_csv"]
    lines = frozen(tmp_path / "a.csv", data, newlines=False)
    assert fields_of(lines) == ["invalid_csv", {"a": "2", "b": "y"}]


def test_a_quoted_field_does_not_swallow_a_large_file(tmp_path: Path) -> None:
    line = b"x" * 1023 + b"\n"
    data = b'a\n"open\n' + line * (70 * 1024) + b"last\n"
    rows = sample([frozen(tmp_path / "a.csv", data)], sys.maxsize)
    assert rows[0].error is not None
    assert rows[0].error.code == "invalid_csv"
    assert rows[-1].fields == {"a": "last"}


def test_a_field_may_be_large(tmp_path: Path) -> None:
    entry = frozen(tmp_path / "a.csv", b"a\n" + b"x" * 1_000_000 + b"\n")
    assert [len(row.fields["a"]) for row in sample([entry], 9) if row.fields] == [1_000_000]


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b"a,b,a", "columns 1 and 3 of"),
        (b"a,,b", "column 2 of"),
        (b"a, ", "column 2 of"),
        (b"\n\na,a", "columns 1 and 2 of"),
        (b"a,\xff", "byte 2 of the file"),
        (b"a\rb", "not CSV"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_columns_need_names_of_their_own(
    tmp_path: Path, header: bytes, what: str, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes((gzip.compress if suffix == ".csv.gz" else bytes)(header + b"\n1,2,3\n"))
    problem = refusal(path)
    assert problem.code == "input.column-names"
    assert what in problem.message
    assert str(path) in problem.message


def test_a_table_without_records_has_no_rows(tmp_path: Path) -> None:
    for content in (b"a,b\n", b"a,b", b"\n\n", b"\r\n"):
        for newlines in (True, False):
            assert fields_of(frozen(tmp_path / "a.csv", content, newlines=newlines)) == []


# --- Parquet


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
        limited = replace(grid, total_bytes=extent(inputs, limit), head_units=0)
        rows = in_one_pass(inputs, limited)
        assert len(rows) >= min(limit, 52)
        assert len(rows) <= max(limit, 2) + 50 // min(50, span)
