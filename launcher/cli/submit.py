"""``hpc-llm submit``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.answer import Answer, AnswerCommand, job_options

if TYPE_CHECKING:
    from launcher.errors import Problem
    from launcher.inputcheck import InputReport
    from launcher.outlook import Forecast
    from launcher.prepare import Prepared

__all__ = ["command"]


@click.command("submit", cls=AnswerCommand)
@job_options
@click.option("--dry-run", is_flag=True, help="Print the script; write and submit nothing.")
@click.option("--wait", "waiting", is_flag=True, help="Stay until the run has ended.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows, as a try.")
def command(
    job: str,
    site: str | None,
    settings: tuple[str, ...],
    limit: int | None,
    *,
    dry_run: bool,
    waiting: bool,
) -> Answer:
    """Run JOB: plan it, write its run directory and start it.

    On a run that exists already this goes on with what is missing; while a job of it is live,
    it attaches to that.
    """
    from launcher.cli.outlook import outlook_line
    from launcher.outlook import forecast
    from launcher.prepare import prepare

    prepared = prepare(Path(job), site=site, settings=settings, limit=limit)
    found = forecast(prepared)
    warnings = (*prepared.warnings, *found.warnings)
    if dry_run:
        return _dry_run(prepared, found, warnings)
    from launcher.cli.follow import started
    from launcher.submit import submit

    submission = submit(prepared)
    answer = started(submission, waiting=waiting, warnings=warnings)
    if waiting:  # the text is about the end of the run
        return answer
    lines = (
        answer.text,
        _line(prepared.report),
        *([outlook_line(found)] if submission.how == "submitted" else []),
    )
    return dataclasses.replace(answer, text="\n".join(lines))


def _line(report: InputReport) -> str:
    return f"{report.rows_words} looked at, {report.bad_rows} would be errors"


def _dry_run(prepared: Prepared, found: Forecast, warnings: Sequence[Problem]) -> Answer:
    from launcher.cli.outlook import outlook_data
    from launcher.prepare import run_directory_files
    from launcher.submit import check_directory, next_plan_number

    check_directory(prepared)
    number = next_plan_number(prepared.run)
    files = run_directory_files(prepared, plan_number=number)
    engine = f"plans/{number}.engine.yaml"
    texts = {n: files[n].decode() for n in ("script.sh", engine) if n in files}
    data = {"directory": str(prepared.run.path), "files": sorted(files), "texts": texts}
    data["outlook"] = outlook_data(found)
    parts = [texts["script.sh"].rstrip("\n")]
    if engine in texts:
        parts.append(f"# {engine}\n" + texts[engine].rstrip("\n"))
    return Answer(data=data, text="\n\n".join(parts), problems=warnings)
