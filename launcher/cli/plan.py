"""``hpc-llm plan``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.answer import Answer, AnswerCommand, columns, job_options

if TYPE_CHECKING:
    from launcher.inputcheck import InputReport, Lengths
    from launcher.plan.types import Plan
    from launcher.prepare import Prepared

__all__ = ["command", "plan_data"]


@click.command("plan", cls=AnswerCommand)
@job_options
@click.option("--explain", is_flag=True, help="Say where each value came from.")
@click.option("--check-input", is_flag=True, help="Look at a sample of the input, tokens too.")
def command(
    job: str, site: str | None, settings: tuple[str, ...], *, explain: bool, check_input: bool
) -> Answer:
    """Show how JOB would run and where every rank would sit. Writes nothing."""
    from launcher.cli.outlook import outlook_data, outlook_rows
    from launcher.outlook import expected_start, forecast
    from launcher.plan import outline
    from launcher.plan.picture import draw, summary
    from launcher.prepare import prepare

    prepared = prepare(Path(job), site=site, settings=settings, with_tokens=check_input)
    plan = prepared.resolution.plan
    sections = [columns(summary(plan)), draw(plan)]
    found = prepared.resolution.search
    if found is not None and found.chosen is not None:
        sections.append(outline.memory_bars(found))
        sections.append(columns(outline.candidate_rows(found)))
        sections.append(columns([*outline.thumb_rows(found), *outline.rejected_rows(found)]))
    if explain:
        rows = [(d.key, d.value, d.source) for d in prepared.resolution.decisions]
        sections.append(columns([("value of", "is", "because of"), *rows]))
    data = plan_data(prepared)
    told, start = forecast(prepared), expected_start(plan)
    sections.insert(1, columns(outlook_rows(told, start)))
    data["outlook"] = outlook_data(told, start)
    if check_input:
        report = prepared.report
        sections.append(columns(_input_rows(report)))
        data["input"] = dataclasses.asdict(report) | {"rows_estimate": report.rows_estimate}
    problems = (*prepared.warnings, *told.warnings)
    return Answer(data=data, text="\n\n".join(sections), problems=problems)


def _input_rows(report: InputReport) -> list[tuple[str, str]]:
    whole = "all there are" if report.whole else "a sample"
    rows = [("input", f"{report.rows_words} looked at, {whole}")]
    rows.append(("bad rows", f"{report.bad_rows} ({report.bad_rows / report.rows:.1%})"))
    rows += [
        (f"  {bad.code}", f"{bad.rows}, the first at {bad.where}: {bad.message}")
        for bad in report.bad
    ]
    rows.append(("prompts", _length_words(report.characters, "characters")))
    rows.append(("", _length_words(report.tokens, "tokens")))
    if report.context_tokens is not None:
        over = "" if report.over_context is None else f", too few for {report.over_context} prompts"
        rows.append(("context", f"{report.context_tokens:,} tokens{over}"))
    same = f"{report.duplicate_ids} rows by their id, {report.equal_prompts} by their prompt"
    rows.append(("seen before", same))
    return rows


def _length_words(lengths: Lengths | None, unit: str) -> str:
    if lengths is None:
        why = "no tokenizer at hand" if unit == "tokens" else "none"
        return f"{unit}: {why}"
    return f"{unit}: median {lengths.median:,}, p95 {lengths.p95:,}, longest {lengths.max:,}"


def plan_data(prepared: Prepared) -> dict[str, Any]:
    """``data`` of ``plan --output json``."""
    from launcher.plan.outline import search_data

    plan = prepared.resolution.plan
    return {
        "name": plan.name,
        "site": plan.site,
        "engine": plan.engine,
        "model": plan.model,
        "model_path": plan.model_path,
        "run_directory": str(prepared.run.path),
        "layout": dataclasses.asdict(plan.layout),
        "gpus": dataclasses.asdict(plan.gpus) if plan.gpus else None,
        "fabric": _fabric_data(plan),
        "step": dataclasses.asdict(plan.step),
        "launcher": plan.launcher,
        "directives": [list(pair) for pair in plan.directives],
        "decisions": [dataclasses.asdict(d) for d in prepared.resolution.decisions],
        **search_data(prepared.resolution.search),
    }


def _fabric_data(plan: Plan) -> dict[str, Any] | None:
    """The network between the nodes of a replica, with what it sets; None where it needs none."""
    if plan.network is None:
        return None
    env = {name: plan.env[name] for name in plan.network.variables}
    return {**dataclasses.asdict(plan.network), "env": env}
