"""How every command ends: one place that prints text or the JSON envelope, and exits."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import click

from launcher.errors import HpcLlmError, Problem, printable

__all__ = ["Answer", "AnswerCommand", "columns", "job_options", "safe_text", "warn"]

INTERRUPTED = 130
PIPE_CLOSED = 141  # as a shell says it of a command that SIGPIPE ended
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found.

    Attributes
    ----------
    data
        For ``--output json``; JSON values only.
    text
        For people; printed to stdout, control characters spelled out.
    problems
        Warnings, or the errors behind a non-zero ``exit_code``.
    """

    data: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    problems: Sequence[Problem] = ()
    exit_code: int = 0


class AnswerCommand(click.Command):
    """A command whose function returns an `Answer`; adds ``--output``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        output = click.Option(
            ["--output", "output_form"],
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="Form of the answer.",
            expose_value=False,
            is_eager=True,
            callback=lambda ctx, _, value: ctx.meta.__setitem__(_FORM, value),
        )
        self.params.append(output)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            answer: Answer = super().invoke(ctx)
        except HpcLlmError as exc:
            answer = Answer(problems=exc.problems, exit_code=exc.exit_code)
        except KeyboardInterrupt:
            answer = Answer(exit_code=INTERRUPTED)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(PIPE_CLOSED)
        except click.UsageError as exc:
            if ctx.meta[_FORM] != "json":
                raise
            answer = _usage(exc)
        _print(answer, ctx)
        sys.exit(answer.exit_code)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **more: Any,
    ) -> click.Context:
        json_wanted = _wants_json(args)
        try:
            return super().make_context(info_name, args, parent, **more)
        except click.UsageError as exc:
            if not json_wanted or exc.ctx is None:
                raise
            exc.ctx.meta[_FORM] = "json"
            _print(_usage(exc), exc.ctx)
            sys.exit(exc.exit_code)


def _usage(exc: click.UsageError) -> Answer:
    problem = Problem("cli.usage", exc.format_message().rstrip("."))
    return Answer(problems=[problem], exit_code=exc.exit_code)


def _wants_json(args: Sequence[str]) -> bool:
    return "--output=json" in args or ("--output", "json") in pairwise(args)


_FORM = "hpc_llm.output"


def _print(answer: Answer, ctx: click.Context) -> None:
    if ctx.meta[_FORM] == "json":
        envelope = {
            "hpc_llm": 1,
            "command": " ".join(ctx.command_path.split()[1:]),
            "status": "error" if answer.exit_code else "ok",
            "exit_code": answer.exit_code,
            "data": answer.data,
            "problems": [problem.to_json() for problem in answer.problems],
        }
        # ASCII: C1 controls would drive a terminal, and lone surrogates (file names that are not
        # UTF-8) can only be written escaped.
        click.echo(json.dumps(envelope))
        return
    if answer.text:
        click.echo(safe_text(answer.text))
    warn(answer.problems)


def safe_text(text: str) -> str:
    """``text`` with nothing in it that could drive a terminal; its lines stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def warn(problems: Sequence[Problem]) -> None:
    """Print problems to stderr, as every command does."""
    for problem in problems:
        click.echo(str(problem), err=True)


def columns(rows: Sequence[Sequence[object]]) -> str:
    """``rows`` as text in aligned columns."""
    table = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def job_options(function: F) -> F:
    """``JOB``, ``--site`` and ``--set``, as every command about a job file takes them."""
    for decorate in (
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY.PATH=VALUE",
            help="Replace a value of the job file; may be repeated.",
        ),
        click.option("--site", metavar="NAME|FILE", help="The site; detected when not given."),
        click.argument("job", type=click.Path()),
    ):
        function = decorate(function)
    return function
