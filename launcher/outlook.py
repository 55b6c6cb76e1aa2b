"""What a job will take, before anything is submitted: tokens, wall time, GPU hours, start."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from launcher.earlier import Lengths, Pace, lengths_of, newest, pace_of
from launcher.errors import OutputError, Problem, SchedulerError
from launcher.inputcheck import InputReport
from launcher.models.weights import weight_bytes
from launcher.parsers.slurm_values import read_time
from launcher.plan import grid, pace, selection
from launcher.plan.outlook import Outlook, Range, Speed, Terms, Work, outlook
from launcher.plan.practice import practices
from launcher.plan.types import Plan
from launcher.plan.workload import ANSWER_SHARE, CHARACTERS_PER_TOKEN
from launcher.prepare import Prepared
from launcher.runs import known_runs
from launcher.schedulers.registry import scheduler_for
from launcher.units import format_duration

__all__ = ["Forecast", "Start", "expected_start", "forecast"]

# Tokens of a prompt by its characters: about 4 in English, 2 in others and in code.
_BY_CHARACTERS = (0.8, 1.0, 2.0)
# Of the new tokens that a row may get at the most, those that it gets: a guess.
_OF_MOST = (ANSWER_SHARE / 2, ANSWER_SHARE, 1.0)
# The mean of some rows, for that of all.
_LENGTHS_ERROR = 1.25
# A replica is as fast as another one was, by turns of the same work in docs/results.
_PACE_ERROR = 1.2
_START_ERROR = 1.5
# Lengths that differ by more than this make another work of it.
_ALIKE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will take, and how each figure is known.

    Attributes
    ----------
    left
        Share of the input that the run has still to do; ``work`` is what that is.
    work, prompts, answers
        None where rows or prompts cannot be estimated; how the two lengths are known.
    speed, outlook, unknown
        None where nothing tells how fast a replica is, and why.
    warnings
        ``plan.attempts``, ``plan.slow-start``, and about the best use of the GPUs.
    """

    terms: Terms
    left: float
    work: Work | None
    prompts: str
    answers: str
    speed: Speed | None
    outlook: Outlook | None
    unknown: str
    warnings: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """When the scheduler thinks that the job would start; ``at`` is local time.

    With neither ``at`` nor ``why`` it starts at once.
    """

    at: datetime | None = None
    why: str | None = None


def forecast(prepared: Prepared) -> Forecast:
    """What the job of ``prepared`` will take, by the sample of its input.

    Nothing here makes a job fail: what is not known is said.
    """
    plan, identity = prepared.resolution.plan, prepared.identity
    runs = newest(known_runs())
    lengths = lengths_of(identity, runs)
    left = _left(prepared)
    context = prepared.shape.max_position_embeddings if prepared.shape else None
    work, prompts, answers = _work(prepared.report, lengths, left, context or math.inf)
    found = pace_of(plan, identity, runs)
    terms = _terms(prepared, found)
    speed, unknown = None, "rows and prompts of the input cannot be estimated"
    if not left:
        unknown = "nothing of the input is left to do"
    elif work is not None:
        speed, unknown = _speed(prepared, work, found, terms.replicas)
    told = outlook(work, speed, terms) if work is not None and speed is not None else None
    return Forecast(
        terms=terms,
        left=left,
        work=work,
        prompts=prompts,
        answers=answers,
        speed=speed,
        outlook=told,
        unknown=unknown,
        warnings=(
            *_of_time(terms, told),
            *practices(
                plan.layout.cut,
                prepared.partition.gpus,
                prepared.shape,
                None if work is None else work.rows.likely / plan.layout.replicas,
            ),
        ),
    )


def _left(prepared: Prepared) -> float:
    """Share of the bytes whose units are not published, where the run was begun."""
    units, total = prepared.identity.grid, prepared.identity.grid.total_bytes
    with contextlib.suppress(OutputError, OSError):  # what is wrong there is not said here
        if prepared.run.identity_path.exists():
            spans = (grid.span(units, unit) for unit in prepared.run.published_units())
            return max(0, total - sum(end - begin for begin, end in spans)) / total
    return 1.0


def _work(
    report: InputReport, lengths: Lengths | None, left: float, context: float
) -> tuple[Work | None, str, str]:
    """What is to be done, no row longer than ``context``; how prompts and answers are known."""
    rows, prompts, most = report.rows_range, report.prompt_tokens, report.most_new_tokens
    if rows is None or prompts is None or most is None:
        return None, "", ""
    room = max(1.0, context - prompts.likely)
    limit = "max_tokens" if most.likely <= room else "what the model takes beside a prompt"
    most = most.at_most(room)
    answers = f"guessed: half of {limit}, {most.likely:.0f}"
    new = Range(*(share * most.likely for share in _OF_MOST))
    how = "counted in a sample"
    if not report.counted:
        how = f"guessed: {CHARACTERS_PER_TOKEN} characters a token"
        prompts = prompts * Range(*_BY_CHARACTERS)
    p95 = report.prompt_p95
    if lengths is not None:
        answers = f"measured in {lengths.run}, {lengths.rows} rows"
        new = Range.around(lengths.new_tokens, _LENGTHS_ERROR)
        if lengths.same_input and not report.counted:
            p95 = p95 and p95 * lengths.prompt_tokens / max(1.0, prompts.likely)
            how, prompts = answers, Range.around(lengths.prompt_tokens, _LENGTHS_ERROR)
    work = Work(
        rows=rows.times(left),
        prompt_tokens=prompts.at_most(max(1.0, context - 1)),
        new_tokens=Range(
            *(max(1.0, min(value, most.most)) for value in (new.least, new.likely, new.most))
        ),
        prompt_p95=p95,
        most_new_tokens=most.most,
    )
    return work, how, answers


def _speed(
    prepared: Prepared, work: Work, found: Pace | None, replicas: int
) -> tuple[Speed | None, str]:
    """As an earlier run had it, else as it is modelled, else why not."""
    if found is not None and _same_work(found, work):
        return _measured(work, found), ""
    try:
        return _modelled(prepared, work, replicas), ""
    except ValueError as exc:
        return None, str(exc)


def _same_work(found: Pace, work: Work) -> bool:
    """Whether rows there were as long as they are likely to be here."""
    asked = (work.prompt_tokens.likely + 1) / (found.prompt_tokens + 1)
    answered = (work.new_tokens.likely + 1) / (found.new_tokens + 1)
    return all(1 / _ALIKE <= ratio <= _ALIKE for ratio in (asked, answered))


def _measured(work: Work, found: Pace) -> Speed:
    tokens_s = Range.around(found.tokens_s, _PACE_ERROR)
    new = work.new_tokens
    when = datetime.fromtimestamp(found.ended).date()  # noqa: DTZ006 - the user's day
    return Speed(
        tokens_s=tokens_s,
        row_s=Range(
            new.least / tokens_s.most, new.likely / tokens_s.likely, new.most / tokens_s.least
        ),
        longest_s=found.answer_s or 0.0,
        source=f"measured in {found.run} on {when}",
    )


def _modelled(prepared: Prepared, work: Work, replicas: int) -> Speed:
    """How fast the plan's cut is by the models; raises ValueError for what is not known."""
    plan = prepared.resolution.plan
    if plan.engine not in pace.MODELLED:
        raise ValueError(f"engine {plan.engine} is not modelled")
    if prepared.shape is None:
        raise ValueError(f"the shape of {plan.model} is not known")
    replica = pace.Replica(
        shape=prepared.shape,
        cut=plan.layout.cut,
        nodes=plan.layout.allocation.nodes,
        engine=plan.engine,
        options=plan.engine_options,
        env=plan.env,
        partition=prepared.partition,
    )
    return pace.modelled(replica, work, replicas)


def _terms(prepared: Prepared, found: Pace | None) -> Terms:
    plan, site = prepared.resolution.plan, prepared.site.spec
    allocation, directives = plan.layout.allocation, dict(plan.directives)
    at_once = re.search(r"%(\d+)$", directives.get("--array") or "")
    running = min(allocation.count, int(at_once[1]) if at_once else allocation.count)
    chosen = selection.select(prepared.job, site, prepared.partition_name)
    limits = selection.allowed(prepared.partition, chosen.qos)
    time_s = read_time(directives.get("--time") or "")
    weights = weight_bytes(prepared.shape) if prepared.shape else 0
    start_s = pace.start(plan.engine, weights, allocation.nodes)
    if found is not None:
        start_s = Range.around(found.start_s, _START_ERROR)
    return Terms(
        replicas=min(plan.layout.replicas, running * allocation.replicas),
        gpus=running * allocation.nodes * allocation.gpus_per_node,
        start_s=start_s,
        time_s=None if time_s is None or time_s == float("inf") else round(time_s),
        limit_s=limits.time_limit,
        least_s=limits.min_time,
        warn_before_s=plan.warn_before_s,
        restart=plan.restart,
        attempts=plan.attempts,
    )


def _of_time(terms: Terms, told: Outlook | None) -> Iterator[Problem]:
    if told is None or terms.time_s is None or told.restarts is None:
        return
    time = format_duration(terms.time_s)
    if told.slow_start:
        message = (
            f"starting takes about {format_duration(terms.start_s.likely)}, which leaves next to "
            f"nothing of a job of {time}"
        )
        hint = "raise resources.time"
        yield Problem("plan.slow-start", message, hint=hint, severity="warning")
    if told.restarts <= terms.restarts_allowed:
        return
    message = (
        f"about {told.restarts} restarts are needed at {time} a job, and "
        f"{terms.restarts_allowed or 'none'} will come"
    )
    hint = "take a longer resources.time or more replicas, or go on with `hpc-llm resume`"
    if told.attempts_needed is not None:
        hint = f"set limits.attempts to {told.attempts_needed}, or take a longer resources.time"
    yield Problem("plan.attempts", message, hint=hint, severity="warning")


def expected_start(plan: Plan) -> Start:
    """When the job would start if it were submitted now; asks the scheduler, submits nothing."""
    if plan.scheduler == "local":
        return Start()
    try:
        text = scheduler_for(plan.scheduler).expected_start(plan.directives)
        return Start(at=None if text is None else datetime.fromisoformat(text))
    except SchedulerError as exc:
        return Start(why=exc.problems[0].message.partition("\n")[0])
    except ValueError as exc:  # a day that no month has
        return Start(why=f"the scheduler's answer is no time: {exc}")
