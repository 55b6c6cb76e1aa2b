"""What goes wrong in other people's libraries, in words for the user."""

from __future__ import annotations

from launcher.errors import Problem

__all__ = ["ANOTHER_NODE", "RAISED", "condensed", "died", "said"]

# An exception, as a line of a traceback or of a log has it.
RAISED = r"(?<!\S)(?:\w+\.)*[A-Z]\w*(?:Error|Exception): \S.*"
ANOTHER_NODE = "try another node, and tell whoever runs this one if it happens there again"


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


def died(engine: str, cause: Problem | None, otherwise: str) -> Problem:
    """That ``engine`` will answer no more: of its cause, or of what else is known of it."""
    what, hint = (cause.message, cause.hint) if cause else (otherwise, None)
    return Problem("engine.died", f"the {engine} engine died: {what}", hint=hint)
