"""``hpc-llm results``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from launcher.cli.answer import Answer, AnswerCommand

if TYPE_CHECKING:
    from launcher.errors import Problem
    from launcher.report.reading import Counts, FileFacts
    from launcher.rundir import RunDir

__all__ = ["command"]


@click.command("results", cls=AnswerCommand)
@click.argument("run")
@click.option("--merge", type=click.Path(path_type=Path), help="Write all rows to this file.")
@click.option(
    "--files",
    type=click.IntRange(min=1, max=99_999),
    default=1,
    show_default=True,
    help="Merge into so many files, NAME-00000-of-0000N.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "parquet", "openai"]),
    default="jsonl",
    show_default=True,
    help="Form of the rows; openai writes errors to a file of their own.",
)
@click.option("--partial", is_flag=True, help="Take what there is of an unfinished run.")
@click.option("--verify", "verifying", is_flag=True, help="Compare with the input and manifest.")
@click.pass_context
def command(
    ctx: click.Context,
    run: str,
    merge: Path | None,
    files: int,
    form: Literal["jsonl", "parquet", "openai"],
    *,
    partial: bool,
    verifying: bool,
) -> Answer:
    """Give the rows of RUN in input order: to stdout, or with --merge to files.

    Of a complete run this also writes RUN/manifest.json, with the sums of all that it has read
    and merged; --verify prints no row and compares with that.
    """
    from launcher.report.reading import check_complete
    from launcher.runs import find_run

    _check_usage(merge, files, form, partial=partial, verifying=verifying)
    found = find_run(run)
    if verifying:
        return _verify(found)
    warnings = [] if partial else check_complete(found)
    if merge is not None:
        answer = _merge(found, merge, form, files)
    else:
        answer = _print(found, as_json=ctx.meta["hpc_llm.output"] == "json")
    return dataclasses.replace(answer, problems=[*answer.problems, *warnings])


def _check_usage(
    merge: Path | None, files: int, form: str, *, partial: bool, verifying: bool
) -> None:
    if verifying and (merge is not None or partial):
        raise click.UsageError("--verify looks at a complete run and writes no rows: give it alone")
    if merge is None and form != "jsonl":
        raise click.UsageError(f"--format {form} makes files: name the first with --merge")
    if merge is None and files > 1:
        raise click.UsageError("--files says how many files: name them with --merge")


def _verify(run: RunDir) -> Answer:
    from launcher.report.manifest import verify

    found = verify(run)
    counts = found.counts
    rows, parts = counts.ok + sum(counts.error.values()), len(counts.parts)
    lines = [f"{rows} rows are those of the input, each once, in {parts} parts"]
    lines.append(
        "all parts are as manifest.json says" if found.compared else "there is no manifest.json yet"
    )
    written = [] if found.compared else _noted(run, counts)
    data = {"rows": rows, "parts": parts, "compared": found.compared}
    return _answer(data, "\n".join(lines), counts, [*found.warnings, *written], complete=True)


def _merge(
    run: RunDir, target: Path, form: Literal["jsonl", "parquet", "openai"], files: int
) -> Answer:
    from launcher.report.merge import merge

    merged = merge(run, target, form, files=files)
    counts, complete = merged.counts, merged.complete
    written = _noted(run, counts, merged.files) if complete else []
    error = sum(counts.error.values())
    names = [facts.path for facts in merged.files]
    shown = " and ".join(names) if len(names) <= 2 else f"{names[0]} … {names[-1]}"  # noqa: PLR2004 - a pair
    text = f"{counts.ok} answered rows and {error} errors in {shown}"
    data = {"ok": counts.ok, "error": error, "files": names}
    return _answer(data, text, counts, written, complete=complete)


def _print(run: RunDir, *, as_json: bool) -> Answer:
    from launcher.report.reading import Reading

    reading = Reading(run)
    rows: list[dict[str, Any]] = []
    for found in reading.rows():
        if as_json:
            rows.append(found.row)
        else:
            click.echo(found.line, nl=False)
    written = _noted(run, reading.counts) if reading.complete else []
    data = {"rows": rows} if as_json else {}
    return _answer(data, "", reading.counts, written, complete=reading.complete)


def _noted(run: RunDir, counts: Counts, merged: tuple[FileFacts, ...] = ()) -> list[Problem]:
    from launcher.report.manifest import write_manifest

    problem = write_manifest(run, counts, merged)
    return [problem] if problem else []


def _answer(
    data: dict[str, Any], text: str, counts: Counts, warnings: list[Problem], *, complete: bool
) -> Answer:
    """The answer, which is an error where a complete run has come out without one token."""
    from launcher.data.tally import no_tokens
    from launcher.errors import OutputError

    silent = no_tokens(counts.ok, counts.completion_tokens) if complete else None
    if silent is None:
        return Answer(data=data, text=text, problems=warnings)
    return Answer(
        data=data, text=text, problems=[silent, *warnings], exit_code=OutputError.exit_code
    )
