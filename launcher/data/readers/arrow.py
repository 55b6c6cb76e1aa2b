"""Arrow arrays to what JSON can hold, the same whatever else is installed.

pyarrow's own ``to_pylist`` needs pandas for nanoseconds, and a time zone database for zones.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import pyarrow as pa
from pyarrow import compute, types

from launcher.data.readers.base import Found
from launcher.errors import RowError

__all__ = ["rows_of"]

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - a zone is added where the column has one
_DAY_S = 86400
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}

Convert = Callable[[pa.Array], list[Any]]


def rows_of(batch: pa.RecordBatch) -> Iterator[Found]:
    """The rows of ``batch``, each as its fields, or as the error that says why it has none.

    Numbers that JSON lacks (NaN, infinities) and nulls are None; dates, times and durations are
    text as in ISO 8601, instants in UTC; decimals are text; bytes are base64; maps are objects,
    or lists of pairs where their keys are no text.

    Yields
    ------
    mapping or RowError
        Of code ``invalid_utf8``, or ``bad_type`` for what has no such form.
    """
    errors: list[RowError] = []
    for fields in _objects(batch.schema.names, batch.columns, batch.num_rows, errors):
        error = _first_error(fields) if errors else None
        yield error or fields


def _first_error(value: Any) -> RowError | None:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(_first_error, parts)), None)
    return value if isinstance(value, RowError) else None


def _values(array: pa.Array, errors: list[RowError]) -> list[Any]:
    """The values of ``array``. One that is an error stands among them, and in ``errors``."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _values(array.storage, errors)
    if types.is_dictionary(kind):
        return _values(array.dictionary_decode(), errors)
    if types.is_struct(kind):
        names = [field.name for field in kind]
        found = _objects(names, array.flatten(), len(array), errors)
        return _unless_null(array, found)
    if types.is_map(kind):
        return _maps(array, errors)
    if any(is_list(kind) for is_list in _LISTS):
        return list(_lists(array, errors))
    convert = next((convert for fits, convert in _LEAVES if fits(kind)), _unknown)
    values = convert(array)
    errors += (value for value in values if isinstance(value, RowError))
    return values


def _objects(
    names: Sequence[str], columns: Sequence[pa.Array], length: int, errors: list[RowError]
) -> list[dict[str, Any]]:
    values = [_values(column, errors) for column in columns]
    return [
        {name: column[index] for name, column in zip(names, values, strict=True)}
        for index in range(length)
    ]


def _unless_null(array: pa.Array, values: Iterable[Any]) -> list[Any]:
    valid = array.is_valid().to_pylist()
    return [value if there else None for value, there in zip(values, valid, strict=True)]


def _lists(array: pa.Array, errors: list[RowError]) -> list[list[Any] | None]:
    # flatten() leaves out what nulls hide.
    items = iter(_values(array.flatten(), errors))
    if any(is_view(array.type) for is_view in _LIST_VIEWS):  # pyarrow 16 cannot count theirs
        lengths = _unless_null(array, array.sizes.to_pylist())
    else:
        lengths = compute.list_value_length(array).to_pylist()
    return [None if length is None else list(islice(items, length)) for length in lengths]


def _maps(array: pa.Array, errors: list[RowError]) -> list[Any]:
    kind = array.type
    entry = pa.struct([pa.field("key", kind.key_type, nullable=False), ("value", kind.item_type)])
    lists = _lists(array.cast(pa.list_(entry)), errors)
    pairs = [entries and [[*entry.values()] for entry in entries] for entries in lists]
    if any(is_text(kind.key_type) for is_text in _TEXTS):
        return [None if entries is None else dict(entries) for entries in pairs]
    return pairs


def _as_is(array: pa.Array) -> list[Any]:
    values: list[Any] = array.to_pylist()
    return values


def _unknown(array: pa.Array) -> list[Any]:
    error = RowError("bad_type", f"a value of the Arrow type {array.type} has no form in JSON")
    return [error if valid else None for valid in array.is_valid().to_pylist()]


def _floats(array: pa.Array) -> list[float | None]:
    values = array.cast(pa.float64()).to_pylist()
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _texts(array: pa.Array) -> list[Any]:
    try:
        return _as_is(array)
    except UnicodeDecodeError:
        return _each(array.cast(pa.large_binary()), _decoded)


def _decoded(value: bytes) -> str | RowError:
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        return RowError("invalid_utf8", f"byte {exc.start} of a text is not UTF-8")


def _each(array: pa.Array, convert: Callable[[Any], Any]) -> list[Any]:
    return [None if value is None else convert(value) for value in array.to_pylist()]


def _base64(array: pa.Array) -> list[str | None]:
    return _each(array, lambda value: base64.b64encode(value).decode())


def _decimals(array: pa.Array) -> list[str | None]:
    return _each(array, lambda value: format(value, "f"))


def _days(array: pa.Array) -> list[Any]:
    return _each(array.cast(pa.int32()), _date)


def _date64(array: pa.Array) -> list[Any]:
    return _each(array.cast(pa.int64()), lambda ms: _date(ms // (_DAY_S * 1000)))


def _date(days: int) -> str | RowError:
    moment = _moment(days * _DAY_S)
    return moment if isinstance(moment, RowError) else moment.partition("T")[0]


def _timestamps(array: pa.Array) -> list[Any]:
    zone = "+00:00" if array.type.tz is not None else ""

    def instant(value: int) -> str | RowError:
        seconds, fraction = _seconds(value, array.type.unit)
        moment = _moment(seconds)
        return moment if isinstance(moment, RowError) else f"{moment}{fraction}{zone}"

    return _each(array.cast(pa.int64()), instant)


def _times(array: pa.Array) -> list[Any]:
    def time_of_day(value: int) -> str:
        seconds, fraction = _seconds(value, array.type.unit)
        return f"{_EPOCH + timedelta(seconds=seconds):%H:%M:%S}{fraction}"

    return _each(array.cast(pa.int32() if types.is_time32(array.type) else pa.int64()), time_of_day)


def _durations(array: pa.Array) -> list[Any]:
    def duration(value: int) -> str:
        seconds, fraction = _seconds(abs(value), array.type.unit)
        return f"{'-' if value < 0 else ''}PT{seconds}{fraction}S"

    return _each(array.cast(pa.int64()), duration)


def _moment(seconds: int) -> str | RowError:
    try:
        return (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return RowError("bad_type", f"{seconds} s from 1970 on are not in the years 1 to 9999")


def _seconds(value: int, unit: str) -> tuple[int, str]:
    """Whole seconds, and the rest as text: nothing, or a point and the unit's digits."""
    digits = _DIGITS[unit]
    seconds, rest = divmod(value, 10**digits)
    return seconds, f".{rest:0{digits}}" if rest else ""


_LIST_VIEWS = (types.is_list_view, types.is_large_list_view)
_LISTS = (types.is_list, types.is_large_list, types.is_fixed_size_list, *_LIST_VIEWS)
_TEXTS = (types.is_string, types.is_large_string, types.is_string_view)
_LEAVES: tuple[tuple[Callable[[pa.DataType], bool], Convert], ...] = (
    (types.is_null, _as_is),
    (types.is_boolean, _as_is),
    (types.is_integer, _as_is),
    (types.is_floating, _floats),
    *((is_text, _texts) for is_text in _TEXTS),
    (types.is_binary, _base64),
    (types.is_large_binary, _base64),
    (types.is_binary_view, _base64),
    (types.is_fixed_size_binary, _base64),
    (types.is_decimal, _decimals),
    (types.is_date32, _days),
    (types.is_date64, _date64),
    (types.is_timestamp, _timestamps),
    (types.is_time, _times),
    (types.is_duration, _durations),
)
