"""JSON Schemas of the job and the site file, for editors and for other people's checks.

They say what a value may be; the rules across values (`launcher.spec.rules`) are not in them.
"""

from __future__ import annotations

import inspect
import types
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from launcher.spec.job import JobSpec
from launcher.spec.leaves import Seconds, leaf_schema
from launcher.spec.site import SiteSpec
from launcher.units import format_duration

__all__ = ["json_schema"]

_KINDS = {"job": JobSpec, "site": SiteSpec}


def json_schema(kind: Literal["job", "site"]) -> dict[str, Any]:
    """The schema of the job or the site file, as plain data for JSON (draft 2020-12).

    Examples
    --------
    >>> json_schema("site")["title"]
    'hpc-llm site file'
    """
    schema = msgspec.json.schema(_writable(_KINDS[kind]), schema_hook=leaf_schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"hpc-llm {kind} file",
        **schema,
    }


def _writable(kind: Any) -> Any:
    """``kind`` with every default as a user would write it.

    msgspec 0.22 writes defaults with ``to_builtins`` and no hook, which refuses `Seconds`
    (``msgspec/_json_schema.py``, ``_SchemaGenerator.to_schema``).
    """
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _writable_struct(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return Union[tuple(map(_writable, get_args(kind)))]  # noqa: UP007 - built at run time
    if get_origin(kind) in (list, dict):
        return get_origin(kind)[tuple(map(_writable, get_args(kind)))]
    return kind


@cache
def _writable_struct(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        kind.__name__,
        [(f.name, _writable(f.type), _written(f)) for f in msgspec.structs.fields(kind)],
        namespace={"__doc__": inspect.cleandoc(kind.__doc__ or "")},
        kw_only=True,
        forbid_unknown_fields=True,
    )


def _written(field: msgspec.structs.FieldInfo) -> Any:
    name, default = field.encode_name, field.default
    if field.required:
        return msgspec.field(name=name)
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(name=name, default_factory=field.default_factory)
    if isinstance(default, msgspec.Struct):
        # The struct's own fields tell their defaults; a factory keeps them from being repeated.
        return msgspec.field(name=name, default_factory=lambda: default)
    if isinstance(default, Seconds):
        default = format_duration(default)
    return msgspec.field(name=name, default=default)
