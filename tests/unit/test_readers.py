"""Compressed files and tables of text by units against a plain reader of the whole file."""

from __future__ import annotations

import csv
import gzip
import io
import random
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from input_reading import cut, fields_of, frozen, in_one_pass, key, problem_of, refusal

from launcher.data.inputs import freeze, total_bytes
from launcher.data.readers.streams import _frame_bytes, _told_bytes
from launcher.data.rows import UnitReader, first_rows, read_unit
from launcher.plan.grid import count, make_grid, units

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
        assert found == [key(row) for row in first_rows([plain], sys.maxsize)]
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


def denser_later(packed_bytes: int) -> bytes:
    """Lines that pack badly for so long, and ten times as many that pack well."""
    noise = random.Random(1).randbytes(packed_bytes).hex().encode()
    lines = [noise[at : at + 500] + b"\n" for at in range(0, len(noise), 500)]
    return b"".join([*lines, *([b"x" * 500 + b"\n"] * (10 * len(lines)))])


@pytest.mark.parametrize("packing", ["gz", "zst", "zst of unknown size"])
def test_a_file_that_says_how_much_it_holds_is_believed(tmp_path: Path, packing: str) -> None:
    data = denser_later(2 * 1024**2)
    pack = PACKERS.get(packing) or zstandard.ZstdCompressor(write_content_size=False).compress
    entry = frozen(tmp_path / f"a.txt.{packing[:3].strip()}", pack(data))
    if packing in PACKERS:
        assert entry.span == len(data)
    else:
        assert entry.span < len(data) // 2


@packings
def test_a_last_member_that_says_less_than_the_guess_is_not_all(
    tmp_path: Path, packing: str
) -> None:
    pack, data = PACKERS[packing], denser_later(2 * 1024**2)
    alone = frozen(tmp_path / f"a.txt.{packing}", pack(data[: 4 * 1024**2]))
    small = pack(b"few\n")
    ends = small + pack(data[: 4 * 1024**2]) + small
    entry = frozen(tmp_path / f"b.txt.{packing}", ends)
    assert entry.span == pytest.approx(alone.span, rel=0.1)


@pytest.mark.parametrize(
    ("guess", "told", "meant"),
    [
        (5 * 10**9, 6 * 10**9, 6 * 10**9),
        (7 * 10**9, 6 * 10**9, 7 * 10**9),
        (10**9, 2 * 10**9, 2 * 10**9),
        (100, 0, 100),
    ],
)
def test_sizes_beyond_4_gib_are_the_nearest_to_the_guess(
    tmp_path: Path, guess: int, told: int, meant: int
) -> None:
    entry = frozen(tmp_path / "a.txt", b"....." + (told % 2**32).to_bytes(4, "little"))
    entry = replace(entry, path=str((tmp_path / "a.txt").rename(tmp_path / "a.txt.gz")))
    with (tmp_path / "a.txt.gz").open("rb") as file:
        assert max(guess, _told_bytes(entry, file, guess)) == meant


@given(rest=st.binary(min_size=14, max_size=14))
def test_the_header_of_a_frame_is_read_as_zstd_reads_it(rest: bytes) -> None:
    header = b"\x28\xb5\x2f\xfd" + rest
    try:
        known = zstandard.frame_content_size(header)
    except zstandard.ZstdError:
        return
    assert _frame_bytes(header) == max(0, known)


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


# --- long lines

SHORT = 40  # bytes, in place of 64 MiB


def limit_lines(monkeypatch: pytest.MonkeyPatch, limit_bytes: int) -> None:
    for module in ("lines", "tables"):
        monkeypatch.setattr(f"launcher.data.readers.{module}.LONGEST_BYTES", limit_bytes)


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize(
    ("suffix", "newlines", "code"),
    [
        (".jsonl", True, "invalid_json"),
        (".txt", True, "prompt_too_long"),
        (".csv", True, "invalid_csv"),
        (".csv", False, "invalid_csv"),
    ],
)
def test_a_line_that_is_too_long_is_an_error_and_the_rest_are_rows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    newlines: bool,  # noqa: FBT001 - a parameter of the case
    code: str,
    packing: str,
) -> None:
    def line(size: int) -> bytes:
        if suffix == ".jsonl":
            return b'{"text": "' + b"x" * (size - 13) + b'"}\n'
        return b"x" * (size - 1) + b"\n"

    limit_lines(monkeypatch, SHORT)
    good = {"text": "x" * (SHORT - (13 if suffix == ".jsonl" else 1))}
    lines = [line(SHORT), line(SHORT + 1), line(SHORT), line(5 * SHORT), line(SHORT), line(900)]
    data = b"text\n" * (suffix == ".csv") + b"".join(lines)
    for content in (data, data[:-1]):
        packed = gzip.compress(content) if packing else content
        entry = frozen(tmp_path / f"a{suffix}{packing}", packed, newlines=newlines)
        assert fields_of(entry) == [good, code, good, code, good, code]


@pytest.mark.parametrize("opening", [b"", b'"'])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_no_more_of_a_long_line_is_held_than_a_line_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, opening: bytes
) -> None:
    limit_lines(monkeypatch, 1024**2)
    data = b"text\n" * (suffix == ".csv") + opening + bytes(64 * 1024**2)
    entry = frozen(tmp_path / f"a{suffix}", data)
    tracemalloc.start()
    (row,) = first_rows([entry], 9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert row.error is not None
    assert "longer than 1048576 bytes" in row.error.message
    assert peak < 8 * 1024**2


def test_a_quoted_field_of_many_lines_is_as_long_as_a_line_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_lines(monkeypatch, SHORT)
    data = b'text\n"' + b"x" * (SHORT - 3) + b"\n" + b"y" * SHORT + b'"\nlast\n'
    assert fields_of(frozen(tmp_path / "a.csv", data)) == ["invalid_csv", {"text": "last"}]


def test_the_names_of_columns_are_not_looked_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_lines(monkeypatch, SHORT)
    (tmp_path / "a.csv").write_bytes(b"a," * SHORT + b"b\n1,2\n")
    problem = refusal(tmp_path / "a.csv")
    assert (problem.code, "longer than 40 bytes" in problem.message) == ("input.column-names", True)


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
        found = (first_rows([entry], 99) for entry in (stream, lines))
        assert len({tuple(row.offset for row in rows) for rows in found}) == 1


def test_a_record_is_known_by_the_byte_it_starts_at(tmp_path: Path) -> None:
    entry = frozen(tmp_path / "a.csv", b'a,b\n1,"x\ny"\n\n2,z')
    assert [(row.offset, row.fields) for row in first_rows([entry], 9)] == [
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
    bad, good = first_rows([entry], 9)
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
    rows = first_rows([frozen(tmp_path / "a.csv", data)], sys.maxsize)
    assert rows[0].error is not None
    assert rows[0].error.code == "invalid_csv"
    assert rows[-1].fields == {"a": "last"}


def test_a_field_may_be_large(tmp_path: Path) -> None:
    entry = frozen(tmp_path / "a.csv", b"a\n" + b"x" * 1_000_000 + b"\n")
    assert [len(row.fields["a"]) for row in first_rows([entry], 9) if row.fields] == [1_000_000]


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
