"""Whether two runs are one: what differs between their identities, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from launcher.plan.types import InputFile, RunIdentity

__all__ = ["differences"]

# A checkpoint may move: its digest tells whether it is the same one.
_IGNORED = {"model.path"}


def differences(old: RunIdentity, new: RunIdentity) -> list[str]:
    """One line for each value that differs, ``key: old -> new``; none when they are one run."""
    return list(_lines(old.to_json(), new.to_json(), ""))


def _lines(old: Any, new: Any, key: str) -> Iterator[str]:
    if old == new or key in _IGNORED:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _lines(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif key == "inputs":
        yield from _input_lines(old, new)
    else:
        yield f"{key}: {old!r} -> {new!r}"


def _input_lines(old: tuple[dict[str, Any], ...], new: tuple[dict[str, Any], ...]) -> Iterator[str]:
    before, after = (
        {entry["path"]: InputFile.from_json(entry) for entry in side} for side in (old, new)
    )
    if before == after:
        yield "inputs: the same files in another order"
    for path in sorted(before.keys() | after.keys()):
        if path not in after:
            yield f"input {path}: no longer among the inputs"
        elif path not in before:
            yield f"input {path}: new among the inputs"
        elif before[path] != after[path]:
            yield f"input {path}: {', '.join(_file_changes(before[path], after[path]))}"


def _file_changes(old: InputFile, new: InputFile) -> Iterator[str]:
    for name in (field.name for field in fields(InputFile)):
        if getattr(old, name) != getattr(new, name):
            yield f"{name} {getattr(old, name)} -> {getattr(new, name)}"
