"""From bytes to rows, by unit."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.inputs import freeze
from launcher.data.records import encode
from launcher.data.rows import Row, UnitReader, first_rows, read_unit
from launcher.errors import RunError
from launcher.plan.grid import count, make_grid, units
from launcher.plan.types import InputFile, UnitGrid

Shown = tuple[int, int, Any, str | None]


def shown(row: Row) -> Shown:
    return row.file, row.offset, row.fields, row.error.code if row.error else None


def manifest(folder: Path, *contents: bytes, suffix: str = ".jsonl") -> tuple[InputFile, ...]:
    for number, content in enumerate(contents):
        (folder / f"{number:03}{suffix}").write_bytes(content)
    return freeze([str(folder)], base=folder)


def rows(folder: Path, *contents: bytes, suffix: str = ".jsonl") -> list[Row]:
    return first_rows(manifest(folder, *contents, suffix=suffix), 10**9)


def only(folder: Path, line: bytes) -> Row:
    (row,) = rows(folder, line)
    return row


def by_units(inputs: Sequence[InputFile], grid: UnitGrid) -> list[Row]:
    return [row for unit in units(grid) for row in read_unit(inputs, grid, unit)]


def reference(contents: Sequence[bytes]) -> list[Shown]:
    """Every line of every file, read whole and cut in the plainest way."""
    found: list[Shown] = []
    for file, content in enumerate(contents):
        offset = 0
        for line in content.split(b"\n"):
            body = line.removesuffix(b"\r")
            if offset == 0:
                body = body.removeprefix(b"\xef\xbb\xbf")
            if body.strip():
                found.append((file, offset, *expected(body)))
            offset += len(line) + 1
    return found


def expected(body: bytes) -> tuple[Any, str | None]:
    try:
        value = json.loads(body.decode())
    except ValueError:
        return None, "invalid_json"
    return (value, None) if isinstance(value, dict) else (None, "not_an_object")


lines = st.one_of(
    st.sampled_from(
        [b"", b" ", b"\t\r", b"\r", b"\xef\xbb\xbf", b"[1]", b"3", b"\xff", b"{", b"{}"]
    ),
    st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode()
    ),
)
ends = st.sampled_from([b"\n", b"\r\n"])
contents_of_a_file = st.builds(
    lambda lines, last: b"".join(line + end for line, end in lines) + last,
    st.lists(st.tuples(lines, ends), max_size=6),
    lines,
)


@given(
    contents=st.lists(contents_of_a_file, min_size=1, max_size=4).filter(any),
    unit_bytes=st.integers(1, 40),
    tail_bytes=st.integers(1, 10),
    head_share=st.floats(0, 1),
)
def test_units_give_each_row_once_and_in_order_however_the_bytes_are_cut(
    contents: list[bytes], unit_bytes: int, tail_bytes: int, head_share: float
) -> None:
    total = sum(map(len, contents))
    grid = UnitGrid(
        total_bytes=total,
        unit_bytes=unit_bytes,
        head_units=int(total * head_share) // unit_bytes,
        tail_bytes=tail_bytes,
    )
    with tempfile.TemporaryDirectory() as folder:
        inputs = manifest(Path(folder), *contents)
        assert [shown(row) for row in by_units(inputs, grid)] == reference(contents)
        assert [shown(row) for row in first_rows(inputs, 10**9)] == reference(contents)


def test_a_line_goes_to_the_unit_of_its_first_byte(tmp_path: Path) -> None:
    inputs = manifest(tmp_path, b'{"a": 1}\n{"a": 2}\n')
    grid = UnitGrid(total_bytes=18, unit_bytes=9, head_units=2, tail_bytes=2)
    assert [[row.fields for row in read_unit(inputs, grid, unit)] for unit in units(grid)] == [
        [{"a": 1}],
        [{"a": 2}],
    ]


def test_units_inside_one_long_line_are_empty(tmp_path: Path) -> None:
    inputs = manifest(tmp_path, b'{"a": "' + b"x" * 10_000 + b'"}\n{"b": 1}')
    counts = [len(list(read_unit(inputs, make_grid(10_018), u))) for u in range(3)]
    assert counts == [1, 0, 0]
    assert len(by_units(inputs, make_grid(inputs[0].size))) == 2


def test_a_unit_inside_one_long_line_does_not_read_to_its_end(tmp_path: Path) -> None:
    inputs = manifest(tmp_path, b"x" * 4_000_000, suffix=".txt")
    grid = UnitGrid(total_bytes=4_000_000, unit_bytes=1000, head_units=4000, tail_bytes=250)
    tracemalloc.start()
    try:
        assert list(read_unit(inputs, grid, 1)) == []
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_files_are_not_joined(tmp_path: Path) -> None:
    found = rows(tmp_path, b'{"a": 1}', b'{"b": 2}\n', b"", b'{"c": 3}')
    assert [row.fields for row in found] == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert [(row.file, row.offset) for row in found] == [(0, 0), (1, 0), (3, 0)]


def test_a_byte_order_mark_is_skipped_at_the_start_only(tmp_path: Path) -> None:
    found = rows(tmp_path, b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    assert [shown(row)[1:] for row in found] == [(0, {"a": 1}, None), (12, None, "invalid_json")]


def test_a_bare_carriage_return_ends_no_line(tmp_path: Path) -> None:
    found = rows(tmp_path, b'{"a":\r1}\r\n{"b": 2}\r\n')
    assert [row.fields for row in found] == [{"a": 1}, {"b": 2}]


def test_text_lines_are_rows(tmp_path: Path) -> None:
    found = rows(tmp_path, "héllo \r\n\n{}\n".encode(), suffix=".txt")
    assert [row.fields for row in found] == [{"text": "héllo "}, {"text": "{}"}]


def test_invalid_text_names_the_byte(tmp_path: Path) -> None:
    found = rows(tmp_path, b"\xef\xbb\xbfa\xff\nok\nab\xffc\n", suffix=".txt")
    assert [shown(row) for row in found] == [
        (0, 0, None, "invalid_utf8"),
        (0, 6, {"text": "ok"}, None),
        (0, 9, None, "invalid_utf8"),
    ]
    messages = [row.error.message for row in found if row.error]
    assert [message.split()[:2] for message in messages] == [["byte", "4"], ["byte", "11"]]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{'a': 1}", "invalid_json"),
        (b'{"a": 1} {"b": 2}', "invalid_json"),
        (b'{"a": "\xff"}', "invalid_json"),
        (b'{"a": "\0"}', "invalid_json"),
        ('{"a": 1}'.encode("utf-16-le").replace(b"\n", b""), "invalid_json"),
        (b'{"a": ' + b"9" * 5000 + b"x}", "invalid_json"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"a": ' + b"[" * 256 + b"]" * 256 + b"}", "invalid_json"),
        (b"[]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
    ],
)
def test_a_bad_line_is_a_row_with_its_error(tmp_path: Path, line: bytes, code: str) -> None:
    found = rows(tmp_path, line + b'\n{"b": 1}\n')
    assert [shown(row)[2:] for row in found] == [(None, code), ({"b": 1}, None)]


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": NaN, "a": 2}',
        b'{"a": ' + b"[" * 255 + b"]" * 255 + b"}",
        b'{"a": [' + b",".join([b"[{}]"] * 1000) + b"]}",
        b'{"a": "' + b"[" * 1000 + b'"}',
    ],
)
def test_what_python_reads_as_an_object_is_a_row(tmp_path: Path, line: bytes) -> None:
    row = only(tmp_path, line)
    assert row.fields == json.loads(line)
    assert json.loads(encode({"input": row.fields})) == {"input": row.fields}


def test_a_file_of_fifty_gigabytes_is_entered_anywhere(tmp_path: Path) -> None:
    """One line of 50 GB of zeros, which no disk holds, between two blocks of real ones."""
    size = 50 * 10**9
    block = b"".join(b'{"n": %d, "text": "%s"}\n' % (n, b"x" * 100_000) for n in range(200))
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(block)
        file.truncate(size)
        file.seek(size - len(block) - 1)
        file.write(b"\n" + block)
    inputs = freeze(["a.jsonl"], base=tmp_path)
    grid = make_grid(size)
    first, last = 0, count(grid) - 1
    middle = [count(grid) // 2, count(grid) // 2 + 1]
    with UnitReader(inputs, grid) as reader:
        tracemalloc.start()
        try:
            assert [list(reader.read(unit)) for unit in middle] == [[], []]
            assert tracemalloc.get_traced_memory()[1] < 4 * 1024**2
        finally:
            tracemalloc.stop()
        found = {unit: list(reader.read(unit)) for unit in (last, first, middle[0])}
        ending = [row for unit in range(last - 10, last + 1) for row in reader.read(unit)]
    assert 0 < len(found[first]) < 200
    assert found[middle[0]] == []
    assert [row.fields["n"] for row in ending if row.fields] == list(range(200))
    assert [shown(row) for row in found[last]] == [shown(r) for r in read_unit(inputs, grid, last)]


class Counted(Sequence[InputFile]):
    """A manifest that counts how often one of its files is looked at."""

    def __init__(self, inputs: Sequence[InputFile]) -> None:
        self.inputs = inputs
        self.looks = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return self.inputs[index]


def test_reading_a_unit_of_many_files_looks_at_its_own_alone(tmp_path: Path) -> None:
    contents = [b'{"n": %d}\n' % number * (number % 3) for number in range(3000)]
    inputs = Counted(manifest(tmp_path, *contents))
    grid = make_grid(sum(map(len, contents)))
    with UnitReader(inputs, grid) as reader:
        for unit in (count(grid) - 1, 0, count(grid) // 2):
            inputs.looks = 0
            rows = list(reader.read(unit))
            files = {row.file for row in rows}
            assert files
            assert inputs.looks <= 2 * (max(files) - min(files) + 4)


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    inputs = manifest(tmp_path, *[b"{}\n"] * 50)
    before = set(Path("/proc/self/fd").iterdir())
    with UnitReader(inputs, make_grid(150)) as reader:
        for unit in units(make_grid(150)):
            assert list(reader.read(unit))
            assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 5  # and the listing's own
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1


def test_a_unit_that_another_one_has_cut_short_gives_no_row_of_it(tmp_path: Path) -> None:
    inputs = manifest(tmp_path, b"{}\n" * 20)
    grid = UnitGrid(total_bytes=60, unit_bytes=30, head_units=2, tail_bytes=30)
    with UnitReader(inputs, grid) as reader:
        older = reader.read(0)
        next(older)
        newer = reader.read(1)
        next(newer)
        with pytest.raises(RuntimeError):
            next(older)
        assert [row.offset for row in newer] == list(range(33, 60, 3))


def test_a_sample_is_the_first_rows(tmp_path: Path) -> None:
    inputs = manifest(tmp_path, b"{}\n\n[]\n", b'{"a": 1}\n{"b": 1}\n')
    assert [shown(row) for row in first_rows(inputs, 3)] == [
        (0, 0, {}, None),
        (0, 4, None, "not_an_object"),
        (1, 0, {"a": 1}, None),
    ]


def test_a_file_that_became_shorter_stops_the_run(tmp_path: Path) -> None:
    inputs = manifest(tmp_path, b"{}\n{}\n")
    Path(inputs[0].path).write_bytes(b"{}\n")
    with pytest.raises(RunError) as caught:
        first_rows(inputs, 9)
    assert caught.value.problems[0].code == "input.changed"


def test_what_is_appended_later_is_not_read(tmp_path: Path) -> None:
    inputs = manifest(tmp_path, b"one\ntwo", suffix=".txt")
    with Path(inputs[0].path).open("ab") as file:
        file.write(b" more\nthree\n")
    assert [row.fields for row in first_rows(inputs, 9)] == [{"text": "one"}, {"text": "two"}]


def test_a_file_that_is_gone_stops_the_run(tmp_path: Path) -> None:
    inputs = manifest(tmp_path, b"{}\n")
    Path(inputs[0].path).unlink()
    with pytest.raises(RunError) as caught:
        first_rows(inputs, 9)
    assert caught.value.problems[0].code == "input.unreadable"
