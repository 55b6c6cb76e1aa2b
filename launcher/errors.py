"""The one exception tree, and the `Problem` record every user-facing failure is made of.

A problem says four things: a stable ``code`` (what tests, docs and scripts key on), what is
wrong, where it is (file, line, column, field) and what to do next. Exceptions carry problems;
only `launcher.cli` prints them and only it exits::

    HpcLlmError                    exit 1   (base; never raised itself)
     - SpecError                   exit 3   a file the user wrote is wrong
     - PlanError                   exit 4   well formed, but cannot run here
     - RenderError                 exit 5   template and plan disagree
     - SchedulerError(transient)   exit 6   refused or unreachable
     - RunError                    exit 7   an engine or a rank failed
     - OutputError                 exit 8   outputs incomplete, or too many bad rows
     - Stopped                     exit 75  stopped early, can be resumed
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

__all__ = [
    "HpcLlmError",
    "Location",
    "OutputError",
    "PlanError",
    "Problem",
    "RenderError",
    "RowError",
    "RunError",
    "SchedulerError",
    "SpecError",
    "Stopped",
    "printable",
]


def printable(text: str) -> str:
    r"""``text`` with control characters spelled out, so that no file can drive a terminal.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a value came from. ``line`` and ``column`` count from 1, as editors do."""

    path: str
    line: int
    column: int
    field: str

    def __str__(self) -> str:
        return f"{printable(self.path)}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that stops a job (or, as a warning, deserves a look), in a user's words.

    Attributes
    ----------
    code
        Stable name such as ``spec.unknown-key``; each has a section in
        ``docs/reference/errors.md``, which ``hpc-llm explain CODE`` prints.
    message
        What is wrong, with the value and the limit: lower case, no full stop.
    hint
        One imperative the user can follow.
    """

    code: str
    message: str
    where: Location | None = None
    hint: str | None = None
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        head = f"{self.where}: " if self.where else ""
        tail = f"\n  hint: {printable(self.hint)}" if self.hint else ""
        return f"{head}{self.severity}[{self.code}]: {printable(self.message)}{tail}"

    def to_json(self) -> dict[str, Any]:
        """The form used by ``--output json`` and by the outcome files of a run."""
        return {
            "code": self.code,
            "message": self.message,
            "where": str(self.where) if self.where else None,
            "hint": self.hint,
            "severity": self.severity,
        }


class HpcLlmError(Exception):
    """Base of everything this package raises on purpose. Anything else is a bug."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[Any, ...]:  # else it would be made of its text
        return type(self), (self.problems,)


class SpecError(HpcLlmError):
    """A file the user wrote is missing or not well formed. Nothing was planned."""

    exit_code = 3


class PlanError(HpcLlmError):
    """The files are well formed, but the job cannot run on that site."""

    exit_code = 4


class RenderError(HpcLlmError):
    """A template and the plan disagree: a template is at fault, and is named."""

    exit_code = 5


class SchedulerError(HpcLlmError):
    """The scheduler refused, or could not be reached (``transient`` says which)."""

    exit_code = 6

    def __init__(self, problems: Problem | Iterable[Problem], *, transient: bool = False) -> None:
        super().__init__(problems)
        self.transient = transient


class RunError(HpcLlmError):
    """An engine or a rank failed."""

    exit_code = 7


class OutputError(HpcLlmError):
    """Outputs are incomplete, or more rows are bad than the job allows."""

    exit_code = 8


class Stopped(HpcLlmError):  # noqa: N818 - not an error: the run leaves on purpose
    """The run ended early on purpose and goes on with the next ``submit`` or ``resume``."""

    exit_code = 75


class RowError(Exception):
    """One row cannot be answered; the run goes on and the row is published as an error.

    ``code`` is one of the row codes (``invalid_json``, ``missing_field``, ``prompt_too_long`` …).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:  # of whatever class: that is all there is to it
        return RowError, (self.code, self.message)
