"""Durations and sizes: what is read, what is refused, and that both directions agree."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import units
from launcher.units import (
    format_bytes,
    format_duration,
    parse_bytes,
    parse_duration,
    slurm_time,
)

SECONDS = st.integers(0, 400 * 86400)
ENGLISH = st.text("0123456789.:-smhdkgtpiB ", max_size=12)


def test_the_examples_of_the_module_are_true() -> None:
    assert doctest.testmod(units).failed == 0
    assert doctest.testmod(units).attempted >= 5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("4h", 14400),
        ("2d", 172800),
        ("1h30m", 5400),
        ("1d2h3m4s", 93784),
        ("1.5h", 5400),
        ("0.5s", 0),
        ("12:30:00", 45000),
        ("100:00:00", 360000),
        ("1-12:00:00", 129600),
        ("0s", 0),
        ("999999999999s", 999999999999),
    ],
)
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "h",
        "60:30",
        "1:60:00",
        "1:00:60",
        "1-2:00",
        "4 h",
        " 4h",
        "4h\n",
        "4H",
        "-4h",
        "+4h",
        "1h1h",
        "30m1h",
        "1..5h",
        ".5h",
        "4hours",
        "1e3s",
        "nan",
        "inf",
        "\N{ARABIC-INDIC DIGIT THREE}h",
        "\N{ARABIC-INDIC DIGIT ONE}:00:00",
    ],
)
def test_what_is_no_duration_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("digits", [13, 309, 400, 4301, 20000])
@pytest.mark.parametrize("form", ["{}s", "{}.5d", "0.{}h", "{}:00:00", "{}-00:00:00"])
def test_a_duration_too_long_to_count_is_refused(digits: int, form: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(form.format("9" * digits))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("80GB", 80 * 1000**3),
        ("1.5TB", 1500 * 1000**3),
        ("60GiB", 60 * 1024**3),
        ("512MB", 512 * 1000**2),
        ("1PiB", 1024**5),
        ("7B", 7),
        ("80 gb", 80 * 1000**3),
        (" 1KiB ", 1024),
        ("0GB", 0),
        ("999999999999PiB", 999999999999 * 1024**5),
    ],
)
def test_a_size_is_read(text: str, count: int) -> None:
    assert parse_bytes(text) == pytest.approx(count, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "GB",
        "80G",
        "-80GB",
        "1iB",
        "8 0GB",
        "1..5GB",
        "80GBB",
        "80Gb/s",
        "inf GB",
        "1e3GB",
        "\N{ARABIC-INDIC DIGIT THREE}GB",
    ],
)
def test_what_is_no_size_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("digits", [13, 309, 400, 4301, 20000])
@pytest.mark.parametrize("form", ["{}B", "{}.5PB", "0.{}GiB"])
def test_a_size_too_large_to_count_is_refused(digits: int, form: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(form.format("9" * digits))


@given(ENGLISH, st.sampled_from([parse_duration, parse_bytes]))
def test_any_text_is_read_or_refused_and_nothing_else(
    text: str, parse: Callable[[str], int]
) -> None:
    try:
        assert parse(text) >= 0
    except ValueError as exc:
        assert repr(text) in str(exc)


@given(SECONDS)
def test_a_formatted_duration_reads_back_within_what_it_leaves_out(seconds: int) -> None:
    back = parse_duration(format_duration(seconds))
    # Two units at most: minutes and seconds go beside days, seconds beside hours. Never more
    # than was meant, as hints such as "ask for at most 2d7h" must themselves be accepted.
    left_out = 3600 if seconds >= 86400 else 60 if seconds >= 3600 else 1
    assert 0 <= seconds - back < left_out


@given(SECONDS)
def test_the_time_given_to_slurm_reads_back_exactly(seconds: int) -> None:
    text = slurm_time(seconds)
    assert re.fullmatch(r"\d+-[012]\d:[0-5]\d:[0-5]\d", text)
    assert parse_duration(text) == seconds


@given(st.integers(0, 1024**5))
def test_a_formatted_size_reads_back_within_its_last_digit(count: int) -> None:
    text = format_bytes(count)
    unit = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}[text.split()[1]]
    assert abs(parse_bytes(text) - count) <= unit * 0.05 + 1


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**3 - 1, "1.0 GiB"),
        (1024**4 - 1, "1.0 TiB"),
        (5 * 1024**5, "5120.0 TiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.4, "0s"), (59.6, "1m"), (3599.6, "1h"), (61, "1m1s"), (86400, "1d")],
)
def test_a_duration_is_rounded_before_it_is_cut_into_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
