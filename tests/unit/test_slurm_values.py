"""GRES, TRES, times, memory and states as Slurm writes them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.parsers.slurm_values import (
    Gres,
    gpus_in,
    read_count,
    read_gres,
    read_job_rows,
    read_job_state,
    read_names,
    read_node_states,
    read_text,
    read_time,
    read_tres,
    read_words,
)
from launcher.parsers.text import natural, read_ranges, split_lines, write_ranges


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu:nvidia_h100_80gb_hbm3:8(S:0-1)", [Gres("gpu", "nvidia_h100_80gb_hbm3", 8)]),
        ("gpu:a100_3g.20gb:2", [Gres("gpu", "a100_3g.20gb", 2)]),
        ("gpu:1g.10gb:21(S:1)", [Gres("gpu", "1g.10gb", 21)]),
        ("gpu:8(S:0-1)", [Gres("gpu", None, 8)]),
        ("gpu:h100", [Gres("gpu", "h100", 1)]),
        ("gpu", [Gres("gpu", None, 1)]),
        ("gpu:not-an-existing-gpu:8", [Gres("gpu", "not-an-existing-gpu", 8)]),
        ("gpu:1g.10gb:9(IDX:0-3,5-9)", [Gres("gpu", "1g.10gb", 9)]),
        ("gpu:h100:0(IDX:N/A)", [Gres("gpu", "h100", 0)]),
        ("gpu:0,tpu:0", [Gres("gpu", None, 0), Gres("tpu", None, 0)]),
        (
            "gpu:a100:2(S:0),gpu:v100:1(S:1),shard:a100:8(S:0)",
            [
                Gres("gpu", "a100", 2),
                Gres("gpu", "v100", 1),
                Gres("shard", "a100", 8),
            ],
        ),
        ("gres:gpu:2", [Gres("gpu", None, 2)]),
        ("gres/gpu:a100:4", [Gres("gpu", "a100", 4)]),
        ("gres/gpu:a100=4", [Gres("gpu", "a100", 4)]),
        ("bandwidth:lustre:no_consume:4G", [Gres("bandwidth", "lustre", 4 * 1024**3)]),
        ("justarandomfield", [Gres("justarandomfield", None, 1)]),
        ("(null)", []),
        ("N/A", []),
        ("", []),
        ("gpu:a:b:c:4,gpu:2", [Gres("gpu", None, 2)]),
        ("gpu:h100:8(S:0-1", [Gres("gpu", "h100", 8)]),
    ],
)
def test_a_gres_string_is_read(text: str, found: list[Gres]) -> None:
    assert list(read_gres(text)) == found


def test_parts_of_gpus_are_known_as_such() -> None:
    mig = read_gres("gpu:a100_3g.20gb:2,gpu:1g.10gb:4,gpu:h100_1g.12gb.me:1")
    assert [one.mig for one in mig] == [True, True, True]
    assert not any(one.mig for one in read_gres("gpu:8,gpu:nvidia_h100_80gb_hbm3:8"))


def test_gpus_of_all_types_are_counted_and_other_resources_are_not() -> None:
    assert gpus_in(read_gres("gpu:a100:2(S:0),gpu:v100:1(S:1),shard:8")) == 3


@pytest.mark.parametrize(
    ("text", "gpus", "types"),
    [
        ("billing=9,cpu=9,gres/gpu:h100=1,gres/gpu=1,mem=60G,node=1", 1, {"h100": 1}),
        ("gres/gpu=4,gres/gpu:a100=2,gres/gpu:v100=2", 4, {"a100": 2, "v100": 2}),
        ("gres/gpu:a100=2,gres/gpu:v100=2", 4, {"a100": 2, "v100": 2}),
        ("gres/gpu:a100_3g.20gb=1,gres/gpu=1", 1, {"a100_3g.20gb": 1}),
        ("cpu=1,mem=5G,node=1", None, {}),
        ("gres/gpumem=72532M,gres/gpuutil=200", None, {}),
        ("", None, {}),
        ("(null)", None, {}),
    ],
)
def test_gpus_count_once_if_they_are_named_twice(
    text: str, gpus: int | None, types: dict[str, int]
) -> None:
    found = read_tres(text)
    assert (found.gpus, dict(found.gpu_types)) == (gpus, types)


def test_nodes_are_counted_and_all_entries_kept() -> None:
    found = read_tres("cpu=48,mem=62.50G,node=1,billing=1")
    assert found.nodes == 1
    assert found.entries == {"cpu": "48", "mem": "62.50G", "node": "1", "billing": "1"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-00:00:00", 86400),
        ("7-00:00:00", 604800),
        ("1:30:00", 5400),
        ("12:00:00", 43200),
        ("30:00", 1800),
        ("45", 2700),
        ("2-12", 216000),
        ("1-02:30", 95400),
        ("00:00:22", 22),
        ("02:03.500", 123),
        ("UNLIMITED", math.inf),
        ("infinite", math.inf),
        ("INVALID", None),
        ("Partition_Limit", None),
        ("NOT_SET", None),
        ("N/A", None),
        ("NONE", None),
        ("", None),
        ("1:2:3:4", None),
    ],
)
def test_a_time_is_seconds(text: str, seconds: float | None) -> None:
    assert read_time(text) == seconds


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_days_and_clock_come_out_as_they_went_in(d: int, h: int, m: int, s: int) -> None:
    assert read_time(f"{d}-{h:02}:{m:02}:{s:02}") == ((d * 24 + h) * 60 + m) * 60 + s


@pytest.mark.parametrize("text", [None, "", "(null)", "N/A", "None", "Unknown"])
def test_words_that_say_nothing_are_nothing(text: str | None) -> None:
    assert (read_text(text), read_words(text), read_names(text)) == (None, (), None)


@pytest.mark.parametrize(
    ("text", "words", "names"),
    [
        ("a", ("a",), ("a",)),
        ("a, b,,(null)", ("a", "b"), ("a", "b")),
        ("ALL", ("ALL",), None),
        ("a,all", ("a", "all"), None),
    ],
)
def test_words_are_apart_by_commas_and_all_is_no_restriction(
    text: str, words: tuple[str, ...], names: tuple[str, ...] | None
) -> None:
    assert (read_text(text), read_words(text), read_names(text)) == (text, words, names)


@pytest.mark.parametrize(
    ("text", "base", "flags", "usable"),
    [
        ("MIXED+PLANNED", "MIXED", {"PLANNED"}, True),
        ("MIXED+DYNAMIC_NORM", "MIXED", {"DYNAMIC_NORM"}, True),
        ("DOWN*+CLOUD", "DOWN", {"NOT_RESPONDING", "CLOUD"}, False),
        ("idle~", "IDLE", {"POWERED_DOWN"}, True),
        ("mix-", "MIXED", {"PLANNED"}, True),
        ("alloc#", "ALLOCATED", {"POWERING_UP"}, True),
        ("drng@", "ALLOCATED", {"DRAIN", "REBOOT_REQUESTED"}, False),
        ("drained", "IDLE", {"DRAIN"}, False),
        ("maint", None, {"MAINTENANCE"}, False),
        ("IDLE+DRAIN", "IDLE", {"DRAIN"}, False),
        ("down+NOT_RESPONDING", "DOWN", {"NOT_RESPONDING"}, False),
        ("IDLE*", "IDLE", {"NOT_RESPONDING"}, False),
        ("completing", None, {"COMPLETING"}, False),
        ("plnd", "IDLE", {"PLANNED"}, True),
        ("planned*", "IDLE", {"PLANNED", "NOT_RESPONDING"}, False),
        ("block", "IDLE", {"BLOCKED"}, True),
        ("DOWN+PLANNED", "DOWN", {"PLANNED"}, False),
        ("", None, set(), False),
    ],
)
def test_the_state_of_a_node_is_its_base_and_its_flags(
    text: str, base: str | None, flags: set[str], usable: object
) -> None:
    found = read_node_states(text)
    assert (found.base, set(found.flags), found.usable) == (base, flags, usable)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("12|RUNNING\n13|FAILED\n", (("12", "RUNNING"), ("13", "FAILED"))),
        ("12_3|RUNNING\n12_[4-9%2]|PENDING\n", (("12_3", "RUNNING"), ("12_[4-9%2]", "PENDING"))),
        ("14+0|PENDING\n14+1|PENDING\n", (("14+0", "PENDING"), ("14+1", "PENDING"))),
        ("7|CANCELLED by 1000\r\n", (("7", "CANCELLED by 1000"),)),
        (" 7 | FAILED \n", (("7", "FAILED"),)),
        ("7|a|b\n", (("7", "a|b"),)),
        ("7\n7_1\n7|\n", (("7", ""), ("7_1", ""), ("7", ""))),
        ("7|COMPLE", (("7", "COMPLE"),)),
        ("JOBID|STATE\nWelcome to node 7!\n7.batch|FAILED\n|FAILED\n7-1|FAILED\n", ()),
        ("CLUSTER: alpha\n\x1b[1m7|FAILED\x1b[0m\n", (("7", "FAILED"),)),
        ("", ()),
    ],
)
def test_of_each_line_about_a_job_the_id_and_the_rest_are_read(
    text: str, rows: tuple[tuple[str, str], ...]
) -> None:
    assert read_job_rows(text) == rows


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("CANCELLED by 1000", "CANCELLED"),
        ("COMPLETED+", "COMPLETED"),
        ("RUNNING", "RUNNING"),
        ("", ""),
        (" \t", ""),
    ],
)
def test_the_state_of_a_job_is_its_base_word(text: str, state: str) -> None:
    assert read_job_state(text) == state


@pytest.mark.parametrize(
    ("text", "count"), [("64", 64), ("512000+", 512000), ("2-4", None), ("N/A", None), (None, None)]
)
def test_of_several_numbers_the_least_counts(text: str | None, count: int | None) -> None:
    assert read_count(text) == count


@given(st.frozensets(st.integers(0, 2000), min_size=1, max_size=200))
def test_ranges_are_read_as_they_are_written(numbers: frozenset[int]) -> None:
    assert read_ranges(write_ranges(numbers)) == numbers


@pytest.mark.parametrize("text", ["N/A", "", "3-1", "0-", "-3", "0,,1", "0-99999999", "a"])
def test_what_is_no_range_is_nothing(text: str) -> None:
    assert read_ranges(text) is None


def test_names_sort_by_their_numbers() -> None:
    assert sorted(["mlx5_10", "mlx5_2", "mlx5_bond_0"], key=natural) == [
        "mlx5_2",
        "mlx5_10",
        "mlx5_bond_0",
    ]


def test_lines_know_whether_their_end_is_there() -> None:
    assert split_lines("a\r\nb\r\n").lines == ("a", "b")
    assert not split_lines("a\n").cut
    assert split_lines("a\nb").cut
    assert split_lines("").lines == ()
