"""docs/reference/site-file.md has each field of a site file, as it is."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import msgspec
import pytest
from msgspec.structs import FieldInfo

from launcher.spec.leaves import Seconds, decode_leaf
from launcher.spec.site import Limits, SiteSpec
from launcher.spec.source import parse
from launcher.units import format_duration

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "site-file.md"
SECTIONS = {
    "The top": "",
    "engines.ENGINE": "engines",
    "partitions.NAME": "partitions",
    "partitions.NAME.qos.QOS": "partitions.qos",
    "partitions.NAME.fabric.rails[]": "partitions.fabric.rails",
}


class Row(NamedTuple):
    key: str
    kind: str
    default: str
    effect: str
    example: str


def documented() -> dict[str, list[Row]]:
    """The rows of each section, by the place of its struct in the file."""
    found = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        title = title.replace("`", "")
        place = SECTIONS.get(title, title.replace("partitions.NAME", "partitions"))
        cells = re.findall(r"^\| (`.*) \|$", body, re.MULTILINE)
        found[place] = [Row(*re.split(r" (?<!\\)\| ", line)) for line in cells]
    return found


def structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The structs inside a type of a field."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    elif get_origin(kind) is not None or isinstance(kind, types.UnionType):
        for inner in get_args(kind):
            yield from structs(inner)


def fields(kind: type[msgspec.Struct], place: str = "") -> dict[str, dict[str, FieldInfo]]:
    own = {f.encode_name: f for f in msgspec.structs.fields(kind)}
    if issubclass(kind, Limits) and kind is not Limits:
        own = {k: f for k, f in own.items() if k not in Limits.__struct_fields__}
    found = {place: own}
    for name, field in own.items():
        for inner in structs(field.type):
            found |= fields(inner, f"{place}.{name}".lstrip("."))
    return found


FIELDS = fields(SiteSpec)
DOCUMENTED = documented()
ROWS = [
    pytest.param(FIELDS[place][row.key.strip("`")], row, id=f"{place}.{row.key}")
    for place, rows in DOCUMENTED.items()
    for row in rows
    if row.key.strip("`") in FIELDS.get(place, {})
]


def test_each_field_has_a_row_and_each_row_a_field() -> None:
    rows = {place: [row.key.strip("`") for row in rows] for place, rows in DOCUMENTED.items()}

    assert rows == {place: list(own) for place, own in FIELDS.items()}


def default_of(field: FieldInfo) -> str:
    value = field.default
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{field.default_factory()}`"
    if value is None or isinstance(value, msgspec.Struct):
        return "-"
    if isinstance(value, Seconds):
        return f"`{format_duration(value)}`"
    return f"`{str(value).lower()}`"


@pytest.mark.parametrize(("field", "row"), ROWS)
def test_a_row_tells_the_default(field: FieldInfo, row: Row) -> None:
    assert row.default == default_of(field)


@pytest.mark.parametrize(("field", "row"), ROWS)
def test_the_example_of_a_row_is_a_value_of_its_field(field: FieldInfo, row: Row) -> None:
    example = parse("example", f"key: {row.example.strip('`')}").data["key"]

    msgspec.convert(example, field.type, dec_hook=decode_leaf)


@pytest.mark.parametrize(("field", "row"), ROWS)
def test_a_row_names_every_word_that_its_field_takes(field: FieldInfo, row: Row) -> None:
    words = [w for w in _literals(field.type) if isinstance(w, str)]

    # `nvlink2` to `nvlink5`, and the engines, are told by their ends or above the table.
    missing = [w for w in words if f"`{w}`" not in row.kind + row.effect]
    assert [w for w in missing if w not in {"nvlink3", "nvlink4"} and row.key != "`engines`"] == []


def _literals(kind: Any) -> Iterator[object]:
    for inner in get_args(kind):
        if get_args(inner):
            yield from _literals(inner)
        elif not isinstance(inner, type):
            yield inner
