"""Value types shared by job and site files: quantities are text with a unit."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from launcher.units import parse_bytes, parse_duration

__all__ = [
    "Bytes",
    "EnvName",
    "Fraction",
    "Name",
    "NonNegative",
    "Option",
    "Positive",
    "Seconds",
    "Text",
    "decode_leaf",
    "leaf_schema",
]

Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
EnvName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

# An option of a command line with its value, if it has one.
Option = Annotated[str, Meta(pattern=r"^--[a-z][a-z-]*(=[^\s]+)?$")]
Text = Annotated[str, Meta(min_length=1)]


class Seconds(int):
    """A duration, written ``30m``, ``4h``, ``2d`` or ``12:30:00``."""


class Bytes(int):
    """A size, written ``80GB`` or ``60GiB``."""


def decode_leaf(kind: type, value: object) -> Any:
    """``dec_hook`` of msgspec: text with a unit to a number.

    Raises
    ------
    ValueError
        The text is no such quantity (msgspec turns this into its own error).
    """
    if kind not in (Seconds, Bytes):
        raise NotImplementedError(kind)
    if not isinstance(value, str):
        example = "4h" if kind is Seconds else "80GB"
        raise ValueError(f"expected text with a unit such as {example}, got {value!r}")  # noqa: TRY004 - msgspec turns ValueError into its own
    return Seconds(parse_duration(value)) if kind is Seconds else Bytes(parse_bytes(value))


def leaf_schema(kind: type) -> dict[str, Any]:
    """``schema_hook`` of msgspec: the JSON Schema of `Seconds` and `Bytes`."""
    if kind is Seconds:
        return {"type": "string", "description": Seconds.__doc__, "examples": ["4h", "12:30:00"]}
    if kind is Bytes:
        return {"type": "string", "description": Bytes.__doc__, "examples": ["80GB", "60GiB"]}
    raise NotImplementedError(kind)
