"""Prompts that are longer than the model takes."""

from __future__ import annotations

import json
from typing import Literal

import pytest

from launcher.data.records import RowHead, ok_line
from launcher.engines.base import Completion, Request
from launcher.plan.types import Sampling
from launcher.runner.fitting import fitted
from launcher.runner.ready import Prepared


def prepared(tokens: int, max_tokens: int) -> Prepared:
    request = Request(id="0:0", sampling=Sampling(max_tokens=max_tokens), tokens=range(tokens))
    return Prepared(RowHead(0, 0), request, size=tokens)


@pytest.mark.parametrize(
    ("too_long", "tokens", "max_tokens", "kept"),
    [
        ("truncate-left", 30, 4, range(14, 30)),
        ("truncate-right", 30, 4, range(16)),
        ("truncate-left", 20, 4, range(4, 20)),  # no token is left for the answer
        ("truncate-left", 19, 4, range(19)),  # one is
        ("truncate-left", 30, 400, range(20, 30)),  # half of what the model takes
        ("error", 30, 4, range(30)),
    ],
)
def test_a_prompt_is_cut_only_when_it_leaves_no_room(
    too_long: Literal["error", "truncate-left", "truncate-right"],
    tokens: int,
    max_tokens: int,
    kept: range,
) -> None:
    found = fitted(prepared(tokens, max_tokens), 20, too_long)
    assert found.request is not None
    assert list(found.request.tokens or ()) == list(kept)
    assert (found.size, found.head.truncated) == (len(kept), tokens - len(kept))


def test_what_cannot_be_cut_or_needs_no_cut_is_left_alone() -> None:
    text = Request(id="0:0", sampling=Sampling(max_tokens=4), text="a long text")
    for one in (Prepared(RowHead(0, 0), text, size=30), Prepared(RowHead(0, 0))):
        assert fitted(one, 20, "truncate-left") is one
    long = prepared(30, 4)
    assert fitted(long, None, "truncate-left") is long


def test_an_output_row_says_by_how_much_its_prompt_was_cut() -> None:
    answer = Completion(text="a", finish_reason="stop", prompt_tokens=16, completion_tokens=1)
    cut, whole = (
        json.loads(ok_line(RowHead(0, 0, truncated=count), answer, plan="1")) for count in (14, 0)
    )
    assert cut["truncated_prompt_tokens"] == 14
    assert "truncated_prompt_tokens" not in whole
