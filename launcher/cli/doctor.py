"""``hpc-llm doctor``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.answer import Answer, AnswerCommand, columns, safe_text

if TYPE_CHECKING:
    from launcher.doctor import Report
    from launcher.errors import Problem
    from launcher.rundir import RunDir
    from launcher.sites import LoadedSite

__all__ = ["command"]

UNFIT = 4


@click.command("doctor", cls=AnswerCommand)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--here", is_flag=True, help="Look at this machine, without a job.")
@click.option("--site", metavar="NAME|FILE", help="The site; detected when not given.")
@click.option("--partition", help="Which nodes; needed where the site has several kinds.")
@click.option(
    "--nodes", type=click.IntRange(min=1), default=2, show_default=True, help="How many of them."
)
@click.option("--account", help="Whom the job is charged to.")
@click.option("--set", "settings", multiple=True, metavar="KEY.PATH=VALUE", help="As for submit.")
@click.option("--wait", "waiting", is_flag=True, help="Stay until the nodes have told.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("hpc-llm-doctor"),
    help="Where the job's files go, which all nodes have to see.",
)
def command(
    run: Path | None, directory: Path, *, here: bool, waiting: bool, **visit: Any
) -> Answer:
    """Say whether nodes are fit for runs: a short job measures GPUs, ports and links.

    With RUN, tell what the last job of that run found of its nodes before its engine started.
    """
    from launcher.rundir import RunDir

    if here and run is not None:
        raise click.UsageError("--here looks at this machine, and at no run")
    if run is not None:
        return _of_run(RunDir.open(run))
    if here:
        return _here(directory)
    from launcher.sites import choose_site

    site = choose_site(visit.pop("site"), partition=visit["partition"])
    if site.spec.scheduler.type == "local":
        return _here(directory)
    return _visit(site, directory, visit, waiting=waiting)


def _here(directory: Path) -> Answer:
    from launcher.doctor import look_here

    return _answer(look_here(directory if directory.is_dir() else Path.cwd()))


def _visit(site: LoadedSite, directory: Path, visit: Mapping[str, Any], *, waiting: bool) -> Answer:
    from launcher.cli.follow import follow
    from launcher.doctor import prepare_visit
    from launcher.submit import submit

    folder = directory.absolute() / time.strftime("%Y%m%d-%H%M%S")
    submission = submit(prepare_visit(site, folder, **visit))
    run, job = submission.run, submission.job
    text = f"job {job.id if job else ''} is submitted"
    if not waiting:
        data = {"run": str(run.path), "job": job.id if job else None}
        return Answer(data=data, text=f"{text}\nread it with `hpc-llm doctor {run.path}`")
    click.echo(safe_text(f"{text}\nrun directory {run.path}"), err=True)
    follow(run)
    return _of_run(run)


def _of_run(run: RunDir) -> Answer:
    from launcher.doctor import examine
    from launcher.monitor import failure, status
    from launcher.schedulers.registry import scheduler_for

    report = examine(run)
    if report.judged:
        return _answer(report, run)
    found = status(run, scheduler_for(run.newest_plan().scheduler))
    failed = failure(found) if found.ended else None
    data = {"run": str(run.path), **report.to_json()}
    text = f"no node has told anything yet: the run is {found.state}"
    return Answer(data=data, text=text, problems=failed.problems if failed else (), exit_code=UNFIT)


def _answer(report: Report, run: RunDir | None = None) -> Answer:
    rows = [(row.node, row.part, row.verdict, row.seen) for row in report.rows]
    problems: list[Problem] = [*report.problems, *report.warnings]
    return Answer(
        data={"run": str(run.path) if run else None, **report.to_json()},
        text=columns([("node", "part", "verdict", "what is there"), *rows]),
        problems=problems,
        exit_code=UNFIT if report.problems else 0,
    )
