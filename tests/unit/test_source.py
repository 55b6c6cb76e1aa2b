from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import Location, SpecError
from launcher.spec.source import Source, child, overlay, parse, with_setting

KEYS = st.text(
    alphabet=st.sampled_from([*"ab01-_.[]\"'\\$ é\n"]),
    max_size=6,
)
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
MAPPINGS = st.dictionaries(KEYS, TREES, max_size=4)


def value(text: str) -> Any:
    return parse("f.yaml", f"k: {text}\n").data["k"]


def fields(data: Any, at: str = "$") -> list[str]:
    inner = (
        data.items() if isinstance(data, dict) else enumerate(data) if type(data) is list else ()
    )
    return [at, *(name for key, item in inner for name in fields(item, child(at, key)))]


def marked(path: str, data: Any) -> Source:
    """A source in which every field has a location of its own."""
    marks = {name: Location(path, n + 1, 1, name) for n, name in enumerate(fields(data))}
    return Source(path, data, marks, {k: v for k, v in marks.items() if k != "$"})


def the_code(text: str) -> tuple[str, int, int]:
    with pytest.raises(SpecError) as caught:
        parse("f.yaml", text)
    (problem,) = caught.value.problems
    assert problem.where is not None
    return problem.code, problem.where.line, problem.where.column


@pytest.mark.parametrize(
    "text",
    [
        "12:30:00",
        "no",
        "on",
        "y",
        "010",
        "0o7",
        "0x1F",
        "1_000",
        "2024-01-01",
        "<<",
        "=",
        "+",
        ".",
        "nULL",
        "tRUE",
        "1e",
        "e5",
        "00.5",
        "--",
        "1.2.3",
        "9" * 200,
    ],
)
def test_what_yaml_1_2_does_not_call_a_number_or_a_boolean_is_text(text: str) -> None:
    assert value(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("NULL", None),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("0", 0),
        ("-7", -7),
        ("+12", 12),
        ("1e-3", 0.001),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2E+2", -200.0),
        ("-.inf", -math.inf),
        (".INF", math.inf),
        ("!!str 8", "8"),
        ("'8'", "8"),
        ("!!int '8'", 8),
    ],
)
def test_core_schema_scalars_have_their_types(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_not_a_number_is_read() -> None:
    assert math.isnan(value(".nan"))


def test_values_and_keys_know_where_they_stand() -> None:
    source = parse("job.yaml", "input:\n  path: [a, {b: 1}]\n'x.y': 2\n")
    assert source.at("$.input.path[1].b") == Location("job.yaml", 2, 17, "$.input.path[1].b")
    assert source.key_at("$.input.path[1].b") == Location("job.yaml", 2, 14, "$.input.path[1].b")
    assert source.key_at("$.input.path") == Location("job.yaml", 2, 3, "$.input.path")
    assert source.at(child("$", "x.y")) == Location("job.yaml", 3, 8, '$["x.y"]')


@pytest.mark.parametrize(
    ("field", "line"),
    [("$.a.b.c.d[3]", 2), ("$.a.z", 2), ("$.z", 1), ('$.a["b.c"]', 2), ("no path", 1), ("", 1)],
)
def test_an_unknown_field_has_the_place_of_its_nearest_parent(field: str, line: int) -> None:
    where = parse("f", "a:\n  b: 1\n").at(field)
    assert (where.line, where.field) == (line, field)


def test_an_unknown_list_item_has_the_key_of_its_list() -> None:
    assert parse("f", "x: 1\na:\n- 5\n").key_at("$.a[0]").line == 2


def test_a_source_without_marks_still_names_its_file() -> None:
    assert Source("f", {}, {}).at("$.a") == Location("f", 1, 1, "$.a")


@given(MAPPINGS)
def test_every_field_path_has_one_meaning(data: dict[str, Any]) -> None:
    names = fields(data)
    assert len(names) == len(set(names))


@given(MAPPINGS)
def test_climbing_from_a_field_reaches_its_parent(data: dict[str, Any]) -> None:
    source = marked("f", data)
    for name in source.marks:
        for key in ("missing", "a.b", 'x"]', "[0]", 7):
            if child(name, key) not in source.marks:
                assert source.at(child(name, key)).line == source.marks[name].line


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "\ufeff"])
def test_an_empty_file_is_told_apart(text: str) -> None:
    with pytest.raises(SpecError, match="the file is empty") as caught:
        parse("f.yaml", text)
    assert [p.code for p in caught.value.problems] == ["spec.yaml"]


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a: 1\n\tb: 2", 2, 1),
        ("a: b\x00", 1, 5),
        ("\n\nx: \x1b", 3, 4),
        ("- 1", 1, 1),
        ("7", 1, 1),
        ("? [a]\n: b", 1, 3),
        ("a: 1\n---\nb: 2", 2, 1),
        ("a: !!set {b}", 1, 4),
        ("a: *b", 1, 4),
        ('a: "\\ud800"', 1, 4),
        ("%YAML " + "9" * 5000 + "\n---\na: 1", 1, 7),
        ("!x y: 1", 1, 1),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_at_its_place(text: str, line: int, column: int) -> None:
    assert the_code(text) == ("spec.yaml", line, column)


def test_all_keys_given_twice_are_found_at_the_second_one() -> None:
    with pytest.raises(SpecError) as caught:
        parse("f", "a: 1\nb: {c: 1, c: 2}\na: 3\n'a': 4\n")
    found = [(p.code, p.where.line, p.where.column) for p in caught.value.problems if p.where]
    assert found == [("spec.duplicate-key", line, col) for line, col in [(2, 11), (3, 1), (4, 1)]]


def test_keys_are_text_as_written() -> None:
    assert list(parse("f", "1: a\nno: b\n010: c\n1.0: d\n<<: {e: f}\n").data) == [
        *("1", "no", "010", "1.0", "<<")
    ]


def test_an_alias_gives_every_place_its_own_marks() -> None:
    source = parse("f", "a: &x {b: 1}\nc: *x\n")
    assert source.data == {"a": {"b": 1}, "c": {"b": 1}}
    assert source.data["a"] is not source.data["c"]
    assert source.marks["$.c.b"].line == 1


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [*x]\n",
        "a: &x {b: *x}\n",
        "a: " + "[" * 5000,
        "a: " + "{a: " * 5000,
        "".join(f"{'  ' * n}a:\n" for n in range(70)),
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{b}: &{b} [{f'*{a},' * 10}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
        ),
    ],
)
def test_text_that_would_grow_without_bound_is_refused(text: str) -> None:
    assert the_code(text)[0] == "spec.yaml"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from([*"ab0:-?!&*<>|%@`{}[],#'\"\\ \n\t~.=é\u2028\ufeffUx"])))
def test_any_text_gives_a_source_or_a_spec_error(text: str) -> None:
    try:
        source = parse("f", text)
    except SpecError as exc:
        assert {p.code for p in exc.problems} <= {"spec.yaml", "spec.duplicate-key"}
        assert all(p.where and p.where.path == "f" for p in exc.problems)
    else:
        assert set(source.marks) == set(fields(source.data))


def test_defaults_fill_what_a_file_lacks_and_keep_their_place() -> None:
    base = parse("job.yaml", "resources: {time: 4h}\ninput: {path: [a]}\n")
    under = parse(
        "defaults.yaml", "\nresources: {account: x, time: 1h}\ninput: {path: [b, c]}\nn: 1\n"
    )
    source = overlay(base, under)
    assert source.path == "job.yaml"
    assert source.data == {
        "resources": {"time": "4h", "account": "x"},
        "input": {"path": ["a"]},
        "n": 1,
    }
    assert source.at("$.resources.time").path == "job.yaml"
    assert source.at("$.resources.account") == Location(
        "defaults.yaml", 2, 22, "$.resources.account"
    )
    assert source.key_at("$.resources.account").column == 13
    assert source.at("$.input.path[1]").path == "job.yaml"


def test_null_is_a_value_that_defaults_do_not_replace() -> None:
    source = overlay(parse("a", "x:\n"), parse("b", "x: 1\ny: 2\n"))
    assert source.data == {"x": None, "y": 2}


@given(MAPPINGS, MAPPINGS)
def test_an_overlay_changes_nothing_that_the_file_says(
    base: dict[str, Any], under: dict[str, Any]
) -> None:
    source = overlay(marked("base", base), marked("under", under))
    assert set(source.marks) == set(fields(source.data))
    assert {name for name, where in source.marks.items() if where.path == "base"} == set(
        fields(base)
    )
    assert overlay(source, marked("under", under)).data == source.data


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("a.b=2", {"a": {"b": 2, "c": [1]}, "d": "x"}),
        ("a={b: 3}", {"a": {"b": 3}, "d": "x"}),
        ("d=", {"a": {"b": 1, "c": [1]}, "d": None}),
        ("e.f.g=no", {"a": {"b": 1, "c": [1]}, "d": "x", "e": {"f": {"g": "no"}}}),
        ("a.c=[7, '8']", {"a": {"b": 1, "c": [7, "8"]}, "d": "x"}),
        ('d="y: z=1"', {"a": {"b": 1, "c": [1]}, "d": "y: z=1"}),
    ],
)
def test_a_setting_replaces_one_value(setting: str, expected: object) -> None:
    source = with_setting(parse("f", "a: {b: 1, c: [1]}\nd: x\n"), setting)
    assert source.data == expected
    assert set(source.marks) == set(fields(expected))
    assert set(source.keys) >= {name for name in source.marks if not name.endswith("]")} - {"$"}


def test_a_setting_names_itself_as_the_place() -> None:
    source = with_setting(parse("f", "a: {b: 1}\n"), "a.c.d=[1]")
    assert source.at("$.a.c.d[0]") == Location("--set a.c.d", 1, 1, "$.a.c.d[0]")
    assert source.key_at("$.a.c").path == "--set a.c.d"
    assert source.at("$.a.b").path == source.at("$.a").path == source.key_at("$.x").path == "f"


def test_a_setting_fills_a_section_left_empty() -> None:
    assert with_setting(parse("f", "a:\n"), "a.b=1").data == {"a": {"b": 1}}


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "a",
        "=1",
        "a..b=1",
        "a[0]=1",
        "a.0=1",
        "a.b =1",
        "a b=1",
        "d.e=1",
        "a=b: c",
        "a=- 1",
        "a={{ text }}",
        "a=[1",
        "a=*x",
        "a=!!python/none x",
        "a=1\n---\n2",
    ],
)
def test_a_setting_of_another_form_is_refused(setting: str) -> None:
    source = parse("f", "a: {b: 1}\nd: x\n")
    with pytest.raises(SpecError) as caught:
        with_setting(source, setting)
    assert [p.code for p in caught.value.problems] == ["spec.setting"]


def test_a_refused_setting_does_not_show_what_may_be_secret() -> None:
    with pytest.raises(SpecError) as caught:
        with_setting(parse("f", "a: 1\n"), "env.KEY[0]=hf_secret")
    assert "hf_secret" not in str(caught.value)
