"""What is shown of a search: bars of memory, candidates, and the rule of thumb beside them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from searching import question

from launcher.plan.outline import (
    candidate_rows,
    memory_bars,
    rejected_rows,
    search_data,
    thumb_rows,
)
from launcher.plan.search import Search, search
from launcher.plan.thumb import difference, rule_of_thumb
from launcher.plan.types import Cut

GB = 10**9


def found(*args: Any, **kwargs: Any) -> Search:
    return search(question(*args, **kwargs))


# The rule of thumb


@pytest.mark.parametrize(
    ("weights_gb", "words", "cuts"),
    [
        (0.3, "one GPU", (Cut(),)),
        (16, "one GPU", (Cut(),)),
        (20, "tp 2 or 4", (Cut(tp=2), Cut(tp=4))),
        (79.9, "tp 2 or 4", (Cut(tp=2), Cut(tp=4))),
        (80, "tp 4 or 8 with NVLink", (Cut(tp=4), Cut(tp=8))),
        (281, "tp 4 or 8 with NVLink", (Cut(tp=4), Cut(tp=8))),
        (320, "tp 8 x pp 2", (Cut(tp=8, pp=2),)),
        (812, "tp 8 x pp 2", (Cut(tp=8, pp=2),)),
    ],
)
def test_the_rule_of_thumb_goes_by_the_weights_alone(
    weights_gb: float, words: str, cuts: tuple[Cut, ...]
) -> None:
    rule = rule_of_thumb(round(weights_gb * GB))
    assert (rule.words, rule.cuts) == (words, cuts)


def test_a_choice_like_the_rule_is_said_to_be_so() -> None:
    assert difference(rule_of_thumb(812 * GB), found("llama-3.1-405b")) == "as chosen"


def test_how_much_the_rule_would_lose_is_told() -> None:
    fewer = difference(rule_of_thumb(406 * GB), found("llama-3.1-405b-fp8"))
    assert re.fullmatch(r"tp 8, pp 2 gives [1-9]% fewer tokens for each GPU", fewer)
    less = difference(rule_of_thumb(141 * GB), found("llama-3.1-70b", "h200", 141))
    assert re.fullmatch(r"tp 4 gives [1-9]\d*% fewer tokens for each GPU; tp 8 .*", less)


def test_sizes_that_a_job_states_are_compared_with_no_others() -> None:
    stated = search(question("llama-3.1-70b", cut=Cut(tp=4, pp=2)))
    text = difference(rule_of_thumb(141 * GB), stated)
    assert text == "not compared: the job file states its sizes"


def test_why_the_rule_cannot_be_followed_is_told() -> None:
    small = found("llama-3.1-70b", "a100", 40, slots=4)
    text = difference(rule_of_thumb(141 * GB), small)
    assert "tp 4: beside 32.9 GiB of weights a GPU of 39.4 GiB" in text
    assert "tp 8 is no cut that suits these nodes" in text
    cards = found("llama-3.1-70b", "l40s", 48, topology="none", link="pcie")
    assert "NVLink joins" in difference(rule_of_thumb(141 * GB), cards)


def test_where_nothing_fits_the_rule_does_not_either() -> None:
    none = found("llama-3.1-405b", most_nodes=1)
    assert difference(rule_of_thumb(812 * GB), none) == "nothing fits here, whatever the rule"


# Text


def test_stages_that_are_alike_share_a_bar() -> None:
    text = memory_bars(found("llama-3.1-70b", cut=Cut(tp=2, pp=4))).splitlines()
    names = [line[:12].strip() for line in text[1::2]]
    assert names == ["stage 0", "stages 1-2", "stage 3"]


def test_a_bar_is_as_long_as_the_gpu_and_its_parts_as_their_shares() -> None:
    lines = memory_bars(found("llama-3.1-405b")).splitlines()
    assert lines[0] == "memory of a GPU: 78.8 GiB"
    bar = lines[1][lines[1].index("[") + 1 : lines[1].index("]")]
    assert len(bar) == 60
    assert bar.count("w") == round(60 * 47.3 / 78.8)
    assert [letter for letter in "wkar." if letter in bar] == list("wkar.")
    assert lines[2].strip().startswith("weights 47.3 GiB, kv cache ")


def test_the_chosen_cut_is_the_first_of_a_table() -> None:
    rows = candidate_rows(found("llama-3.1-70b"))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[1][:3] == ("->", "tp 4", "4")
    assert len({row[1] for row in rows}) == len(rows)


def test_a_speed_that_is_not_known_is_said_to_be_so() -> None:
    row = candidate_rows(found("llama-3.1-8b", "mi300x", 80))[1]
    assert row[-2:] == ("not known", "the GPU mi300x is not known, or not which of its variants")


def test_what_came_nearest_is_shown_of_what_does_not_fit() -> None:
    rows = dict(rejected_rows(found("llama-3.1-405b")))
    assert rows["not tp 8"].startswith("needs 99.3 GiB of 78.8 GiB")
    assert "more" in rows[""]


def test_the_weights_are_told_with_the_rule() -> None:
    rows = thumb_rows(found("llama-3.1-405b"))
    assert rows[1:] == [
        ("rule of thumb", "812 GB of weights: tp 8 x pp 2"),
        ("", "as chosen"),
    ]


# Data


def test_memory_adds_up_for_each_stage() -> None:
    data = json.loads(json.dumps(search_data(found("llama-3.1-405b"))))
    assert [stage["layers"] for stage in data["memory"]] == [63, 63]
    for stage in data["memory"]:
        parts = ("weights", "kv_cache", "activations", "reserve")
        assert stage["total"] == sum(stage[part] for part in parts)
        assert stage["total"] + stage["margin"] <= stage["capacity"]


def test_candidates_and_what_was_rejected_are_all_there() -> None:
    result = found("llama-3.1-405b")
    data = json.loads(json.dumps(search_data(result)))
    first = data["candidates"][0]
    assert (first["tp"], first["pp"], first["ep"], first["gpus"]) == (8, 2, 1, 16)
    low, high = first["tokens_s_range"]
    assert low < first["tokens_s"] < high
    assert len(data["candidates"]) == len(result.kept)
    assert {(r["tp"], r["pp"]) for r in data["rejected"]} >= {(8, 1), (4, 2)}
    assert all(r["code"] == "plan.gpu-memory" and r["reason"] for r in data["rejected"])
    assert data["rule_of_thumb"] == {"says": "tp 8 x pp 2", "difference": "as chosen"}


def test_without_a_search_there_is_nothing_to_show() -> None:
    data = search_data(None)
    assert data == {"memory": None, "candidates": [], "rejected": [], "rule_of_thumb": None}
    nothing = search_data(found("llama-3.1-405b", most_nodes=1))
    assert (nothing["memory"], nothing["candidates"]) == (None, [])
