"""What a run will take, as arithmetic: what follows from work, speed and terms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.outlook import BEGIN_TIME_S, Outlook, Range, Speed, Terms, Work, outlook
from launcher.plan.sampling import Stretch, mean_of, rows_in

HOUR = 3600


def ranges(least: float, most: float) -> st.SearchStrategy[Range]:
    values = st.lists(st.floats(least, most), min_size=3, max_size=3)
    return values.map(lambda found: Range(*sorted(found)))


works = st.builds(
    Work,
    rows=ranges(1, 1e6),
    prompt_tokens=ranges(1, 1e4),
    new_tokens=ranges(1, 1e3),
    prompt_p95=st.none(),
    most_new_tokens=st.just(1000.0),
)
speeds = st.builds(
    Speed,
    tokens_s=ranges(10, 1e4),
    row_s=ranges(1e-3, 10),
    longest_s=st.floats(0, 1000),
    source=st.just("by the cost model"),
)
terms_of_jobs = st.builds(
    Terms,
    replicas=st.integers(1, 64),
    gpus=st.just(0),
    start_s=ranges(0, 1000),
    time_s=st.one_of(st.none(), st.integers(600, 100_000)),
    limit_s=st.one_of(st.none(), st.integers(100_000, 200_000)),
    least_s=st.one_of(st.none(), st.integers(60, 3600)),
    warn_before_s=st.integers(0, 500),
    restart=st.sampled_from(("requeue", "chain", "none")),
    attempts=st.integers(1, 20),
).map(lambda terms: replace(terms, gpus=8 * terms.replicas))


def values(of: Range) -> tuple[float, float, float]:
    return of.least, of.likely, of.most


@given(works, speeds, terms_of_jobs, st.integers(1, 8))
def test_more_replicas_never_take_longer(
    work: Work, speed: Speed, terms: Terms, factor: int
) -> None:
    more = replace(terms, replicas=terms.replicas * factor, gpus=terms.gpus * factor)
    one, other = outlook(work, speed, terms), outlook(work, speed, more)
    for a, b in zip(values(one.wall_s), values(other.wall_s), strict=True):
        assert b <= a * (1 + 1e-9)
    assert (other.restarts or 0) <= (one.restarts or 0)


@given(works, speeds, terms_of_jobs, st.integers(1, 8))
def test_gpu_hours_depend_on_replicas_by_their_starts_alone(
    work: Work, speed: Speed, terms: Terms, factor: int
) -> None:
    at_once = replace(terms, start_s=Range.exactly(0))
    more = replace(at_once, replicas=terms.replicas * factor, gpus=terms.gpus * factor)
    one, other = outlook(work, speed, at_once).gpu_hours, outlook(work, speed, more).gpu_hours
    assert one is not None
    assert other is not None
    assert values(one) == pytest.approx(values(other))


@given(works, speeds, terms_of_jobs, st.data())
def test_what_comes_about_within_the_assumptions_lies_within_the_ranges(
    work: Work, speed: Speed, terms: Terms, data: st.DataObject
) -> None:
    def some(of: Range) -> Range:
        return Range.exactly(data.draw(st.floats(of.least, of.most)))

    told = outlook(work, speed, terms)
    came = outlook(
        replace(work, rows=some(work.rows), new_tokens=some(work.new_tokens)),
        replace(speed, row_s=some(speed.row_s)),
        replace(terms, start_s=some(terms.start_s)),
    )
    for found, of in ((came.wall_s, told.wall_s), (came.new_tokens, told.new_tokens)):
        assert of.least * (1 - 1e-9) <= found.least
        assert found.most <= of.most * (1 + 1e-9)
    assert (came.restarts_most or 0) <= (told.restarts_most or 0)


@given(works, speeds, terms_of_jobs.filter(lambda terms: terms.time_s is not None))
def test_a_suggested_time_does_or_says_how_many_restarts_it_takes(
    work: Work, speed: Speed, terms: Terms
) -> None:
    told = outlook(work, speed, terms)
    assert told.suggested_s is not None
    assert told.suggested_s <= (terms.limit_s or math.inf)
    taken = outlook(work, speed, replace(terms, time_s=told.suggested_s))
    assert taken.restarts_most == told.suggested_restarts
    if terms.limit_s is None:
        # All of the start is in it, unless a job is only a start.
        assert told.suggested_restarts == 0 or taken.slow_start or terms.start_s.most > HOUR / 10
        assert told.suggested_s >= (terms.least_s or 0)


@given(works, speeds, terms_of_jobs.filter(lambda terms: terms.time_s is not None))
def test_the_attempts_that_are_named_would_do(work: Work, speed: Speed, terms: Terms) -> None:
    told = outlook(work, speed, terms)
    assert told.restarts_most is not None
    if terms.restart == "none":
        assert told.attempts_needed is None
    else:
        assert told.attempts_needed is not None
        enough = replace(terms, attempts=told.attempts_needed)
        assert enough.restarts_allowed == told.restarts_most


def known(**changes: object) -> Outlook:
    """10,000 rows of 100 new tokens at 1,000 tokens/s on one replica of 8 GPUs: 1000 s."""
    work = Work(
        rows=Range.exactly(10_000),
        prompt_tokens=Range.exactly(50),
        new_tokens=Range.exactly(100),
        prompt_p95=80,
        most_new_tokens=200,
    )
    speed = Speed(
        tokens_s=Range.exactly(1000),
        row_s=Range.exactly(0.1),
        longest_s=0,
        source="by the cost model",
    )
    terms = Terms(
        replicas=1,
        gpus=8,
        start_s=Range.exactly(100),
        time_s=900,
        limit_s=HOUR,
        least_s=None,
        warn_before_s=300,
        restart="requeue",
        attempts=20,
    )
    return outlook(work, speed, replace(terms, **changes))  # type: ignore[arg-type] # by name


def test_a_restart_costs_its_pause_and_another_start() -> None:
    """500 s of each job of 900 s are left: two of them."""
    told = known()
    assert (told.prompt_tokens.likely, told.new_tokens.likely) == (500_000, 1_000_000)
    assert (told.restarts, told.attempts_needed) == (1, 1)
    assert told.wall_s.likely == 1000 + 2 * 100 + BEGIN_TIME_S
    assert told.gpu_hours is not None
    assert told.gpu_hours.likely == pytest.approx(8 * 1200 / HOUR)
    assert known(restart="chain").wall_s.likely == 1200
    assert known(restart="chain").attempts_needed == 2
    assert known(time_s=1400).restarts == 0


def test_without_a_limit_there_is_no_restart_and_no_time_to_suggest() -> None:
    told = known(time_s=None)
    assert told.wall_s.likely == 1100
    assert (told.restarts, told.suggested_s, told.attempts_needed) == (None, None, None)


def test_a_suggested_time_is_round_has_a_margin_and_stays_under_the_limit() -> None:
    assert known().suggested_s == 1800  # 1400 s and a quarter, in five minutes
    capped = known(limit_s=800)
    assert (capped.suggested_s, capped.suggested_restarts) == (800, 2)
    assert known(least_s=2000).suggested_s == 2100


def test_a_job_that_is_hardly_more_than_its_start_is_told_of() -> None:
    told = known(start_s=Range.exactly(580))
    assert told.slow_start
    assert told.restarts == math.ceil(1000 / 90) - 1
    assert not known().slow_start


def test_cpus_have_no_gpu_hours() -> None:
    assert known(gpus=0).gpu_hours is None


@pytest.mark.parametrize("wrong", [(2, 1, 3), (-1, 0, 1), (0, 1, math.inf), (math.nan, 1, 2)])
def test_what_is_no_range_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="no range"):
        Range(*wrong)


def stretch(file: int, share: float, gaps: list[int], rows: list[float] | None = None) -> Stretch:
    return Stretch(
        file=file,
        share_bytes=share,
        gaps_bytes=tuple(gaps),
        values=tuple(rows or [1.0] * len(gaps)),
    )


def test_files_with_rows_of_other_lengths_are_counted_each_for_itself() -> None:
    """Of as many bytes, rows of 100 and of 10,000: nearly all rows are short."""
    short = [stretch(0, 500_000, [100] * 4, [10.0] * 4)] * 2
    long = [stretch(1, 500_000, [10_000] * 4, [1000.0] * 4)] * 2
    rows, mean = rows_in([*short, *long], 2_000_000), mean_of([*short, *long])
    assert rows is not None
    assert mean is not None
    assert rows.likely == pytest.approx(10_000 + 100)
    assert mean.likely == pytest.approx((10_000 * 10 + 100 * 1000) / 10_100)
    assert rows.least < rows.likely < rows.most


@given(st.lists(st.integers(50, 200), min_size=200, max_size=400))
def test_the_count_of_alike_rows_is_near_and_its_range_is_narrow(gaps: list[int]) -> None:
    places = [stretch(0, 1000, gaps[i : i + 5]) for i in range(0, len(gaps) - 5, 5)]
    found = rows_in(places, sum(gaps))
    assert found is not None
    assert found.likely == pytest.approx(len(gaps), rel=0.25)
    assert found.most / found.least < 2


def test_one_place_alone_leaves_much_open_and_no_place_everything() -> None:
    alone = rows_in([stretch(0, 100, [10, 10])], 1000)
    assert alone is not None
    assert (alone.least, alone.likely, alone.most) == pytest.approx((100 / 1.5, 100, 150))
    assert rows_in([stretch(0, 100, [])], 1000) is None
    assert rows_in([], 1000) is None
    assert mean_of([]) is None
