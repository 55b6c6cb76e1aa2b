"""When a run is stopped because its rows fail."""

from __future__ import annotations

import contextlib

import pytest

from launcher.errors import RowError, RunError
from launcher.runner.breaker import Breaker

BAD = RowError("missing_field", "the row has no field text")


def fed(breaker: Breaker, marks: str, *, asked: bool = True) -> int | None:
    """Which row stopped it; ``x`` is an error."""
    number = 0
    with contextlib.suppress(RunError):
        for mark in marks:
            number += 1
            breaker.note(BAD if mark == "x" else None, asked=asked)
        return None
    return number


@pytest.mark.parametrize(
    ("marks", "stopped"),
    [
        ("x" * 300, 200),
        ("." * 99 + "x" * 101, 200),
        ("." * 100 + "x" * 100, None),
        ("." * 1000 + "x" * 300, 1101),
        ("x" * 199, None),
        ("x." * 500, None),
        (("x" * 20 + ".") * 50, None),
        ("x" * 180 + "." + "x" * 21, 202),
    ],
)
def test_half_of_the_last_rows_and_a_long_sequence_stop_it(marks: str, stopped: int | None) -> None:
    assert fed(Breaker(tolerated=0.01), marks) == stopped


def test_who_allows_any_share_of_bad_rows_is_not_stopped() -> None:
    assert fed(Breaker(tolerated=1.0), "x" * 1000) is None


def test_the_commonest_code_and_an_example_are_named() -> None:
    breaker = Breaker(tolerated=0.0)
    for _ in range(60):
        breaker.note(RowError("invalid_json", "not JSON"), asked=False)
    for _ in range(139):
        breaker.note(BAD, asked=False)
    with pytest.raises(RunError) as caught:
        breaker.note(BAD, asked=False)
    [problem] = caught.value.problems
    assert problem.code == "run.rows-fail"
    assert "200 of the last 200 rows are errors, 140 of them missing_field" in problem.message
    assert "the row has no field text" in problem.message


@pytest.mark.parametrize(
    ("marks", "stopped"),
    [("x" * 300, 200), ("." * 1000 + "x" * 999, None), ("." * 300 + "x" * 999, 601)],
)
def test_bad_input_stops_it_only_if_most_of_it_is_bad(marks: str, stopped: int | None) -> None:
    """It costs no GPU, and comes in clusters."""
    assert fed(Breaker(tolerated=0.01), marks, asked=False) == stopped
