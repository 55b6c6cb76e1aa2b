"""Plain data to the structs of `launcher.spec`, or everything that is wrong with it.

msgspec decides what fits; it stops at the first fault, so a file that does not fit is walked
once more to find them all, each with its place and a hint.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from launcher.errors import Location, Problem, SpecError
from launcher.spec.leaves import Bytes, EnvName, Name, Seconds, Text, decode_leaf
from launcher.spec.source import Source, by_position, child, spoken

__all__ = ["decode"]

T = TypeVar("T")

# What users keep here may be secret: messages tell its type only.
_HIDDEN = "$.env"
_MAX_SHOWN = 60
_WORDS = {
    Name: "up to 63 letters, digits, `.`, `_` and `-`, the first a letter or digit",
    Text: "text that is not empty",
    EnvName: "letters, digits and `_`, the first no digit",
    Seconds: "a duration with a unit such as 30m, 4h or 12:30:00",
    Bytes: "a size with a unit such as 80GB",
}
_BASES = {
    bool: "true or false",
    dict: "a mapping",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "text",
}


def decode(source: Source, kind: type[T]) -> T:
    """The data of ``source`` as ``kind``, a `msgspec.Struct` of this package.

    Raises
    ------
    SpecError
        All faults at once, in the order of the file. ``spec.unknown-key``: at the key, with the
        nearest valid one. ``spec.missing-key``: at the mapping that lacks it. ``spec.invalid``:
        at the value, or at a key that is no legal name.
    """
    try:
        return msgspec.convert(source.data, kind, dec_hook=decode_leaf)
    except (msgspec.ValidationError, OverflowError) as exc:
        faults = by_position(_faults(source, kind, source.data, "$"), source)
        # A constraint that the walk does not know, such as a length of a list.
        rest = Problem("spec.invalid", str(exc), source.at("$"))
        raise SpecError(faults or rest) from exc


def _faults(source: Source, kind: Any, data: Any, at: str) -> Iterator[Problem]:
    form = _container(kind, data)
    if form is None:
        if not _fits(kind, data):
            yield _misfit(source.at(at), kind, data)
    elif isinstance(data, list):
        (item,) = get_args(form)
        for index, value in enumerate(data):
            yield from _faults(source, item, value, child(at, index))
    elif _is_struct(form):
        yield from _struct_faults(source, form, data, at)
    else:
        yield from _dict_faults(source, form, data, at)


def _struct_faults(source: Source, form: Any, data: Any, at: str) -> Iterator[Problem]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(form)}
    for key in data:
        if key not in fields:
            yield _unknown_key(source.key_at(child(at, key)), key, list(fields))
    for key, field in fields.items():
        if key in data:
            yield from _faults(source, field.type, data[key], child(at, key))
        elif field.required:
            message = f"{spoken(child(at, key))} is missing"
            hint = f"add `{key}:` with {_described(field.type)}"
            yield Problem("spec.missing-key", message, source.at(at), hint)


def _dict_faults(source: Source, form: Any, data: Any, at: str) -> Iterator[Problem]:
    key_kind, value_kind = get_args(form)
    for key, value in data.items():
        field = child(at, key)
        if _fits(key_kind, key):
            yield from _faults(source, value_kind, value, field)
        elif get_origin(key_kind) is Literal:
            yield _unknown_key(source.key_at(field), key, get_args(key_kind))
        else:
            name, equals, _ = key.partition("=")  # what follows may be a secret
            message = f"a name in {spoken(at)} must be {_described(key_kind)}, got {_shown(name)}"
            hint = "write it as `NAME: value`" if equals else "choose another name"
            yield Problem("spec.invalid", message, source.key_at(field), hint)


def _unknown_key(where: Location, key: str, valid: Iterable[str]) -> Problem:
    names = [str(name) for name in valid]
    hint = _nearest(key, names) or f"use one of {', '.join(names)}"
    return Problem("spec.unknown-key", f"{_shown(key)} is not a key here", where, hint)


def _misfit(where: Location, kind: Any, data: Any) -> Problem:
    hidden = where.field == _HIDDEN or where.field.startswith((f"{_HIDDEN}.", f"{_HIDDEN}["))
    got = _type_words(data) if hidden else _shown(data)
    message = f"{spoken(where.field)} must be {_described(kind)}, got {got}"
    return Problem("spec.invalid", message, where, _misfit_hint(_members(kind), data))


def _misfit_hint(members: list[Any], data: Any) -> str | None:
    bare = [_bare(member) for member in members]
    if data is None:
        return "give it a value, or delete the key"
    if isinstance(data, (bool, int, float)) and str in bare:
        return "put quotes around the value"
    if isinstance(data, str) and _is_number(data) and {int, float} & set(bare):
        return "write it as a plain number: no quotes, no leading zeros"
    if isinstance(data, str) and (names := [n for m in members for n in _choices(m)]):
        return _nearest(data, names)
    if not isinstance(data, (dict, list)) and any(get_origin(form) is list for form in bare):
        return "write it as a list: [first, second]"
    struct = next((form for form in bare if _is_struct(form)), None)
    if struct is not None and not isinstance(data, dict):
        keys = ", ".join(field.encode_name for field in msgspec.structs.fields(struct))
        return f"write its keys in the lines below it, indented: {keys}"
    return None


def _fits(kind: Any, data: Any) -> bool:
    try:
        msgspec.convert(data, kind, dec_hook=decode_leaf)
    except (msgspec.ValidationError, OverflowError):
        return False
    return True


def _container(kind: Any, data: Any) -> Any:
    """The member of ``kind`` that the mapping or list ``data`` is meant to be, or None."""
    for form in map(_bare, _members(kind)):
        if isinstance(data, list) and get_origin(form) is list:
            return form
        if isinstance(data, dict) and (_is_struct(form) or get_origin(form) is dict):
            return form
    return None


def _members(kind: Any) -> list[Any]:
    if get_origin(kind) in (Union, types.UnionType):
        return [member for member in get_args(kind) if member is not type(None)]
    return [kind]


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _choices(kind: Any) -> list[str]:
    return [v for v in get_args(kind) if isinstance(v, str)] if get_origin(kind) is Literal else []


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _nearest(word: str, valid: list[str]) -> str | None:
    near = difflib.get_close_matches(word, valid, n=1)
    return f"did you mean `{near[0]}`?" if near else None


def _described(kind: Any) -> str:
    return " or ".join(map(_described_member, _members(kind)))


def _described_member(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is Literal:
        *others, last = map(repr, get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    bare = _bare(kind)
    if _is_struct(bare):
        fields = msgspec.structs.fields(bare)
        required = " and ".join(f"`{field.encode_name}`" for field in fields if field.required)
        return f"a mapping with {required}" if required else "a mapping"
    return _BASES[get_origin(bare) or bare] + _limits(kind)


def _limits(kind: Any) -> str:
    said = [
        words.format(limit)
        for meta in get_args(kind)
        if isinstance(meta, msgspec.Meta)
        for words, limit in (
            ("at least {}", meta.ge),
            ("more than {}", meta.gt),
            ("at most {}", meta.le),
            ("less than {}", meta.lt),
            ("the form {}", meta.pattern),
        )
        if limit is not None
    ]
    return f" of {' and '.join(said)}" if said else ""


def _shown(data: Any) -> str:
    if data is None or isinstance(data, (dict, list)):
        return _type_words(data)
    text = str(data).lower() if isinstance(data, bool) else repr(data)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def _type_words(data: Any) -> str:
    return "nothing" if data is None else _BASES[type(data)]
