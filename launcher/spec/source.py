"""YAML text to plain data, without losing where each value stood.

The only module that knows YAML. It reads YAML 1.2's core scalars (``12:30:00``, ``no``, ``010``
are text), refuses what PyYAML would let pass (a key given twice, a mapping as a key), and bounds
what a few bytes of anchors may grow to. What the keys mean is for `launcher.spec.decode`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from launcher.errors import Location, Problem, SpecError

__all__ = ["Source", "by_position", "child", "overlay", "parse", "spoken", "with_setting"]

_MAX_NODES = 100_000
_MAX_DEPTH = 64  # keeps this module's recursion, and msgspec's, far from Python's own limit
_TAG = "tag:yaml.org,2002:"
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_LAST_STEP = re.compile(r'(?:\.[A-Za-z0-9_-]+|\[[0-9]+\]|\["(?:[^"\\]|\\.)*"\])\Z')
_SETTING = re.compile(rf"({_PLAIN_KEY.pattern}(?:\.{_PLAIN_KEY.pattern})*)=(.*)", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
# A hundred digits are enough for anyone, and Python refuses to read more than 4300.
_WHOLE = r"(?:0|[1-9][0-9]{0,99})"


@dataclass(frozen=True, slots=True)
class _Scalar:
    pattern: re.Pattern[str]
    convert: Callable[[str], Any]
    first: str  # the characters it may begin with


_SCALARS = {
    "null": _Scalar(re.compile(r"null|Null|NULL|~|"), lambda _: None, "nN~"),
    "bool": _Scalar(
        re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text[0] in "tT", "tTfF"
    ),
    "int": _Scalar(re.compile(rf"[-+]?{_WHOLE}"), int, "-+0123456789"),
    "float": _Scalar(
        re.compile(
            rf"[-+]?(?:{_WHOLE}\.[0-9]*|\.[0-9]+|{_WHOLE}(?=[eE]))(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        lambda text: float(re.sub(r"\.(?=[iInN])", "", text)),
        "-+.0123456789",
    ),
    "str": _Scalar(re.compile(r".*", re.DOTALL), str, ""),
}

# Fragments of PyYAML's messages, and what people most often meant.
_HINTS = {
    "'\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "put quotes around text with a colon, or mend the indent",
    "while scanning an alias": "put quotes around text that starts with `*`",
    "undefined alias": "put quotes around text that starts with `*`",
    "cannot start any token": "put quotes around the text",
    "a key must be text": "put quotes around text that starts with `{` or `[`",
    "expected <block end>": "check the indentation of this line and of the ones above",
    "single document": "keep one document: delete the `---` and what follows it",
    "escape": "use single quotes around text with backslashes",
    "tag": "delete the tag, or put quotes around text that starts with `!`",
}


class _Loader(yaml.SafeLoader):
    """Composes nodes, no objects; with the scalars above instead of YAML 1.1's."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.nodes += 1
        self.depth += 1
        _bound(self.nodes, self.depth, parent.start_mark if parent else None)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _scalar in _SCALARS.items():
    if _scalar.first:
        _starts = [*_scalar.first, ""] if _name == "null" else [*_scalar.first]
        _whole = re.compile(rf"(?:{_scalar.pattern.pattern})\Z")
        _Loader.add_implicit_resolver(_TAG + _name, _whole, _starts)


def child(parent: str, key: str | int) -> str:
    """The field path of ``key`` in ``parent``: ``$.a``, ``$.a[0]``, ``$.env["a.b"]``.

    A key that is not a plain word is quoted as JSON, so that every path has one meaning.
    """
    if isinstance(key, int):
        return f"{parent}[{key}]"
    if _PLAIN_KEY.fullmatch(key):
        return f"{parent}.{key}"
    return f"{parent}[{json.dumps(key, ensure_ascii=False)}]"


def spoken(field_path: str) -> str:
    """A field path as messages show it.

    >>> spoken("$.parallelism.tp"), spoken("$")
    ('`parallelism.tp`', 'the file')
    """
    return (
        f"`{field_path.removeprefix('$').removeprefix('.')}`" if field_path != "$" else "the file"
    )


@dataclass(frozen=True)
class Source:
    """A parsed file: plain data, and where every field of it stood.

    Attributes
    ----------
    path
        Name of the file as the user gave it; it appears in messages.
    data
        Mappings with text keys, lists, text, numbers, booleans and None.
    marks, keys
        By field path (see `child`): where the value stands, and where its key stands. Locations
        name their own file, since `overlay` and `with_setting` mix several.
    """

    path: str
    data: Any
    marks: Mapping[str, Location]
    keys: Mapping[str, Location] = field(default_factory=dict)

    def at(self, field_path: str) -> Location:
        """Where the value of ``field_path`` stands, or the nearest parent that is known."""
        return self._nearest(self.marks, field_path)

    def key_at(self, field_path: str) -> Location:
        """Where the key of ``field_path`` stands, or that of the nearest parent with one."""
        return self._nearest(self.keys, field_path)

    def _nearest(self, table: Mapping[str, Location], field_path: str) -> Location:
        known = field_path
        while known not in table and known != "$":
            step = _LAST_STEP.search(known)
            known = known[: step.start()] if step else "$"
        where = table.get(known) or self.marks.get("$") or Location(self.path, 1, 1, "$")
        return replace(where, field=field_path)


def parse(path: str, text: str) -> Source:
    """Read the YAML mapping in ``text``; ``path`` only names it in messages.

    Raises
    ------
    SpecError
        ``spec.yaml``: no YAML, no single mapping at the top, a tag, a key that is not text, or
        more than 100,000 values or 64 levels once aliases are followed.
        ``spec.duplicate-key``: keys given twice in a mapping, all of them.
    """
    node = _compose(path, text)
    start = Location(path, 1, 1, "$")
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        raise SpecError(Problem("spec.yaml", "the file is empty", start))
    reading = _Reading(path)
    data = reading.read(node)
    if not isinstance(data, dict):
        held = "a list" if isinstance(data, list) else "a single value"
        message = f"the file must hold keys and their values, and holds {held}"
        raise SpecError(Problem("spec.yaml", message, reading.marks["$"], "begin with `name: …`"))
    return Source(path, data, reading.marks, reading.keys)


def overlay(base: Source, under: Source) -> Source:
    """``base``, with the values of ``under`` where it has none, mapping by mapping.

    Lists and scalars are never merged: a key that ``base`` gives, even as null, is its own.
    Each value keeps the location in the file it came from.
    """
    data = _filled(base.data, under.data)
    fields = list(_fields(data, "$"))
    return Source(
        base.path,
        data,
        _chosen(fields, base.marks, under.marks),
        _chosen(fields, base.keys, under.keys),
    )


def with_setting(source: Source, setting: str) -> Source:
    """``source`` with one value replaced, as ``--set key.path=VALUE`` says.

    ``VALUE`` is a YAML scalar, or a list or mapping in brackets; nothing after the ``=`` is
    null. Mappings on the way that do not exist yet are made.

    Raises
    ------
    SpecError
        ``spec.setting``: not of that form, a list index on the way (set the whole list), or a
        key below something that is no mapping.
    """
    match = _SETTING.fullmatch(setting)
    if match is None:
        # What follows the = may be secret.
        message = f"{_shortened(setting.partition('=')[0])!r} is not of the form key.path=VALUE"
        hint = "write it as in `--set parallelism.tp=8`, and lists whole: `--set input.path=[a, b]`"
        raise SpecError(Problem("spec.setting", message, Location("--set", 1, 1, "$"), hint))
    dotted, text = match.groups()
    where = Location(f"--set {dotted}", 1, 1, f"$.{dotted}")
    value = _setting_value(where, text)
    data = _inserted(source.data, "$", dotted.split("."), value, where)
    new = {name: replace(where, field=name) for name in _fields(value, where.field)}
    made = {name: replace(where, field=name) for name in _parents(where.field)}
    fields = list(_fields(data, "$"))
    marks = _chosen(fields, new, {**made, **source.marks})
    return Source(source.path, data, marks, _chosen(fields, new, {**made, **source.keys}))


def by_position(problems: Iterable[Problem], source: Source) -> list[Problem]:
    """``problems`` in the order of the file, those of other files after them."""

    def position(problem: Problem) -> tuple[bool, str, int, int]:
        where = problem.where or source.at("$")
        return where.path != source.path, where.path, where.line, where.column

    return sorted(problems, key=position)


@dataclass
class _Reading:
    """One walk over composed nodes; aliases are followed, so that every field has its mark."""

    path: str
    marks: dict[str, Location] = field(default_factory=dict)
    keys: dict[str, Location] = field(default_factory=dict)
    twice: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def read(self, root: yaml.Node) -> Any:
        try:
            data = self._value(root, "$", 1)
        except yaml.MarkedYAMLError as exc:
            raise SpecError(_yaml_problem(self.path, exc)) from exc
        if self.twice:
            raise SpecError(self.twice)
        return data

    def _value(self, node: yaml.Node, at: str, depth: int) -> Any:
        self.nodes += 1
        _bound(self.nodes, depth, node.start_mark)
        self.marks[at] = self._where(node, at)
        if isinstance(node, yaml.ScalarNode):
            return _scalar_value(node)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, at, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self._value(n, child(at, i), depth + 1) for i, n in enumerate(node.value)]
        raise _tag_error(node)

    def _mapping(self, node: yaml.MappingNode, at: str, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _key(key_node)
            here = self._where(key_node, child(at, key))
            if key in data:
                first = self.keys[here.field]
                message = f"{spoken(here.field)} is given twice, first in line {first.line}"
                self.twice.append(
                    Problem("spec.duplicate-key", message, here, "delete one of them")
                )
                continue
            self.keys[here.field] = here
            data[key] = self._value(value_node, here.field, depth + 1)
        return data

    def _where(self, node: yaml.Node, at: str) -> Location:
        return Location(self.path, node.start_mark.line + 1, node.start_mark.column + 1, at)


def _compose(path: str, text: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        node: yaml.Node | None = loader.get_single_node()
    except yaml.reader.ReaderError as exc:
        raise SpecError(_character_problem(path, text, exc)) from exc
    except yaml.MarkedYAMLError as exc:
        raise SpecError(_yaml_problem(path, exc)) from exc
    except (ValueError, OverflowError) as exc:
        # PyYAML 6 hands an escape such as \UFFFFFFFF straight to chr(), and the version of a
        # %YAML directive to int().
        mark = loader.get_mark() if loader else None
        problem = "an escape or the number of a directive is out of range"
        error = yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        raise SpecError(_yaml_problem(path, error)) from exc
    return node


def _bound(nodes: int, depth: int, mark: Any) -> None:
    if nodes > _MAX_NODES:
        problem = f"the file holds more than {_MAX_NODES} values once aliases are followed"
    elif depth > _MAX_DEPTH:
        problem = f"nested more than {_MAX_DEPTH} levels deep, or an anchor that holds itself"
    else:
        return
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.MarkedYAMLError(
            problem="a key must be text, not a mapping or a list", problem_mark=node.start_mark
        )
    _scalar_value(node)
    return str(node.value)


def _scalar_value(node: yaml.ScalarNode) -> Any:
    scalar = _SCALARS.get(node.tag.removeprefix(_TAG)) if node.tag.startswith(_TAG) else None
    if scalar is None or not scalar.pattern.fullmatch(node.value):
        raise _tag_error(node)
    if _SURROGATE.search(node.value):
        raise yaml.MarkedYAMLError(
            problem="an escape names half a character (a surrogate)", problem_mark=node.start_mark
        )
    return scalar.convert(node.value)


def _tag_error(node: yaml.Node) -> yaml.MarkedYAMLError:
    tag = node.tag.replace(_TAG, "!!")
    return yaml.MarkedYAMLError(
        problem=f"the tag `{tag}` is not known or does not fit its value",
        problem_mark=node.start_mark,
    )


def _yaml_problem(path: str, exc: yaml.MarkedYAMLError) -> Problem:
    mark = exc.problem_mark or exc.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    message = ": ".join(part for part in (exc.context, exc.problem) if part)
    hint = next((hint for fragment, hint in _HINTS.items() if fragment in message), None)
    return Problem("spec.yaml", message, Location(path, line, column, "$"), hint)


def _character_problem(path: str, text: str, exc: yaml.reader.ReaderError) -> Problem:
    before = text[: exc.position]
    column = exc.position - (before.rfind("\n") + 1) + 1
    where = Location(path, before.count("\n") + 1, column, "$")
    message = f"the character U+{ord(text[exc.position]):04X} is not allowed in YAML"
    return Problem("spec.yaml", message, where, "delete it, or write it as an escape in quotes")


def _setting_value(where: Location, text: str) -> Any:
    try:
        node = _compose(where.path, text)
        value = _Reading(where.path).read(node) if node else None
    except SpecError as exc:
        faults = (replace(p, code="spec.setting", where=where) for p in exc.problems)
        raise SpecError(faults) from exc
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        message = f"the value of {spoken(where.field)} reads as an indented YAML block"
        hint = "put it in quotes: `--set 'key=\"text\"'`"
        raise SpecError(Problem("spec.setting", message, where, hint))
    return value


def _inserted(data: Any, at: str, keys: list[str], value: Any, where: Location) -> dict[str, Any]:
    if not isinstance(data, dict):
        message = f"{spoken(at)} is no mapping, so that {spoken(where.field)} cannot be set"
        hint = f"set {spoken(at)} as a whole: `{{key: value}}`"
        raise SpecError(Problem("spec.setting", message, where, hint))
    first, *rest = keys
    if not rest:
        return {**data, first: value}
    inner = data.get(first)
    inner = {} if inner is None else inner
    return {**data, first: _inserted(inner, child(at, first), rest, value, where)}


def _filled(base: Any, under: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(under, dict)):
        return base
    both = {key: _filled(value, under.get(key)) for key, value in base.items()}
    return both | {key: value for key, value in under.items() if key not in base}


def _fields(data: Any, at: str) -> Iterator[str]:
    yield at
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    for key, value in items:
        yield from _fields(value, child(at, key))


def _parents(field_path: str) -> Iterator[str]:
    while (step := _LAST_STEP.search(field_path)) and step.start() > 1:
        field_path = field_path[: step.start()]
        yield field_path


def _chosen(
    fields: list[str], first: Mapping[str, Location], second: Mapping[str, Location]
) -> dict[str, Location]:
    both = {**second, **first}
    return {name: both[name] for name in fields if name in both}


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
