"""What ``--json`` of Slurm's commands is made of, in all versions of its data parser.

Until 0.0.39 a number is a number, with the largest values for "none" and "no limit"
(slurm/slurm.h: NO_VAL, INFINITE), negative ones where it is signed, and a state is one word; from
0.0.40 on a number is ``{"set", "infinite", "number"}`` and a state a list.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.parsers.slurm_values import NOTHING, Tres, read_tres, tres_of
from launcher.parsers.text import ParseError, split_lines

__all__ = [
    "dig",
    "json_list",
    "json_names",
    "json_number",
    "json_seconds",
    "json_text",
    "json_tres",
    "json_whole",
    "json_words",
]

_NO_VALUE = {2**32 - 2, 2**64 - 2}
_NO_LIMIT = {2**32 - 1, 2**64 - 1, -1}


def json_list(text: str, *keys: str) -> list[Mapping[str, Any]]:
    """The records under the first of ``keys`` that is there; warnings may stand before the JSON.

    Raises
    ------
    ParseError
        It is no JSON, it ends early, or it has none of the keys.
    """
    at = re.search(r"^\s*\{", text, re.MULTILINE)
    if at is None:
        raise ParseError(f"no JSON, but {split_lines(text).looks_like()}")
    try:
        whole, _ = json.JSONDecoder().raw_decode(text, at.end() - 1)
    except (ValueError, RecursionError) as exc:
        raise ParseError(f"JSON that cannot be read: {exc}") from exc
    for key in keys:
        if isinstance(whole.get(key), list):
            return [record for record in whole[key] if isinstance(record, dict)]
    raise ParseError(f"JSON without {' or '.join(keys)}, but with {', '.join(whole)[:60]}")


def dig(record: Any, *path: str) -> Any:
    """The value under nested keys; None where one is missing."""
    for key in path:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def json_number(value: Any) -> float | None:
    """A number in any form; inf is "no limit", None "not set"."""
    if isinstance(value, Mapping):
        if value.get("infinite") is True:
            return math.inf
        return json_number(value.get("number")) if value.get("set") is True else None
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"[0-9]{1,15}", value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if value in _NO_LIMIT:
        return math.inf
    return None if value in _NO_VALUE or value < 0 or value != value else value  # noqa: PLR0124 - NaN


def json_whole(value: Any) -> int | None:
    """A number that is finite."""
    number = json_number(value)
    return None if number is None or math.isinf(number) else int(number)


def json_seconds(minutes: Any) -> float | None:
    """Seconds of a number of minutes, which time limits are in."""
    number = json_number(minutes)
    return None if number is None else number * 60


def json_text(value: Any) -> str | None:
    """A text that says something."""
    return value if isinstance(value, str) and value not in (NOTHING | {"None assigned"}) else None


def json_words(value: Any) -> tuple[str, ...]:
    """A list of words, or one that is written with commas."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip() not in NOTHING)
    if isinstance(value, Sequence):
        return tuple(word for word in value if isinstance(word, str))
    return ()


def json_names(value: Any) -> tuple[str, ...] | None:
    """As `json_words`, where nothing, and ``ALL``, means that there is no restriction."""
    found = json_words(value)
    return None if not found or "ALL" in (word.upper() for word in found) else found


def json_tres(value: Any) -> Tres:
    """TRES as text, or as the list of records of ``sacct --json``; its memory is in MiB."""
    if isinstance(value, str):
        return read_tres(value)
    return tres_of(dict(_entries(value if isinstance(value, list) else [])))


def _entries(records: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for record in records:
        count = json_number(dig(record, "count"))
        kind, name = dig(record, "type"), dig(record, "name")
        if isinstance(kind, str) and count is not None and count != math.inf:
            yield f"{kind}/{name}" if name else kind, f"{count:.0f}"
