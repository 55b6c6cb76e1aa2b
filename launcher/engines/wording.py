"""Exceptions of other people's libraries, in one line."""

from __future__ import annotations

__all__ = ["condensed", "said"]


def said(exc: BaseException) -> str:
    """The exception's type and all that it says."""
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def condensed(exc: BaseException) -> str:
    """What an exception says, without its type; of pydantic's, the complaint alone."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    if len(lines) > 1 and " validation error" in lines[0]:
        lines = [
            line.split(" [type=")[0] for line in lines[1:] if "errors.pydantic.dev" not in line
        ]
    return " ".join(lines) or type(exc).__name__
