"""What a job will take, in words: for ``plan`` a table, for ``submit`` a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from launcher.units import format_duration

if TYPE_CHECKING:
    from launcher.outlook import Forecast, Start
    from launcher.plan.outlook import Outlook, Range, Terms, Work

__all__ = ["outlook_data", "outlook_line", "outlook_rows"]


def outlook_rows(found: Forecast, start: Start | None = None) -> list[tuple[str, str]]:
    """``(what, value)`` lines."""
    return list(_rows(found, start))


def _rows(found: Forecast, start: Start | None) -> Iterator[tuple[str, str]]:
    if found.work is not None:
        yield from _lengths(found, found.work)
    if found.speed is None or found.outlook is None:
        yield "speed", f"not known: {found.unknown}"
    else:
        speed, told = found.speed, found.outlook
        yield "speed", f"{_span(speed.tokens_s, _number)} tokens/s a replica, {speed.source}"
        until = _span(found.terms.start_s, _duration)
        yield "wall time", f"{_span(told.wall_s, _duration)}, not the wait in the queue"
        yield "", f"until the first row {until}"
        if told.gpu_hours is not None:
            yield "GPU hours", _span(told.gpu_hours, _number)
        if found.terms.time_s is not None:
            yield "time", _time(told, found.terms.time_s)
            yield "restarts", _restarts(told, found.terms)
    if start is not None:
        yield "start", _start(start)


def _lengths(found: Forecast, work: Work) -> Iterator[tuple[str, str]]:
    left = "" if found.left == 1 else f" left, {found.left:.0%} of the input"
    yield "rows", _span(work.rows, _number) + left
    p95 = "" if work.prompt_p95 is None else f", 95 % have at most {_number(work.prompt_p95)}"
    yield "prompts", f"{_span(work.prompt_tokens, _number)} tokens{p95}; {found.prompts}"
    yield "answers", f"{_span(work.new_tokens, _number)} tokens; {found.answers}"


def _time(told: Outlook, time_s: int) -> str:
    assert told.suggested_s is not None  # noqa: S101 - there is a time, so there is this
    suggested = format_duration(told.suggested_s)
    if told.suggested_restarts:
        most = f"up to {told.suggested_restarts} restarts"
        return f"{format_duration(time_s)} asked for; {suggested} is all that is given, {most}"
    return f"{format_duration(time_s)} asked for; without a restart {suggested} would do"


def _restarts(told: Outlook, terms: Terms) -> str:
    counts = str(told.restarts)
    if told.restarts_most != told.restarts:
        counts += f", at the most {told.restarts_most}"
    return f"{counts} by the time limit; {terms.restarts_allowed} allowed"


def _start(start: Start) -> str:
    if start.at is not None:
        return f"{start.at:%Y-%m-%d %H:%M}, as the scheduler estimates now"
    return "at once" if start.why is None else f"not known: {start.why}"


def outlook_line(found: Forecast) -> str:
    """One sentence: what it will cost."""
    if found.speed is None or found.outlook is None:
        return f"what it takes is not known: {found.unknown}"
    told = found.outlook
    cost = "" if told.gpu_hours is None else f"{_span(told.gpu_hours, _number)} GPU hours, "
    wall = _span(told.wall_s, _duration)
    return f"expected: {cost}{wall} of wall time, {found.speed.source}"


def outlook_data(found: Forecast, start: Start | None = None) -> dict[str, Any]:
    """``data.outlook``: ranges as objects, times in seconds, the start in local time."""
    data = dataclasses.asdict(found)
    del data["warnings"]
    if start is not None:
        at = None if start.at is None else start.at.isoformat()
        data["start"] = {"at": at, "why": start.why}
    return data


def _span(of: Range, form: Callable[[float], str]) -> str:
    likely, least, most = (form(value) for value in (of.likely, of.least, of.most))
    return likely if least == most else f"{likely} ({least} to {most})"


def _duration(value: float) -> str:
    """No finer than an estimate is: about two digits."""
    step_s = next((step for limit, step in _FINENESS_S if value < limit), 600)
    return format_duration(round(value / step_s) * step_s)


_FINENESS_S = ((60, 1), (600, 10), (5 * 3600, 60))


def _number(value: float) -> str:
    """Two digits of what is no more than an estimate; whole below 100."""
    if value >= 100:  # noqa: PLR2004 - as said
        value = round(value, 2 - len(str(int(value))))
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"  # noqa: PLR2004 - two digits
