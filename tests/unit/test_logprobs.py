"""Entries of log probabilities, and how tokens are spelled in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.engines.logprobs import LEAST, by_id, entry, given, spelled, speller
from launcher.errors import RowError


class Tokenizer:
    """Tokens by number, each with its piece, and the text that it is decoded to alone."""

    def __init__(self, *tokens: tuple[str, str]) -> None:
        self._tokens = tokens
        self.decoded: list[int] = []

    def decode(self, ids: Sequence[int]) -> str:
        self.decoded += ids
        return "".join(self._tokens[i][1] for i in ids)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._tokens[i][0] for i in ids]


def at(**logprobs: float) -> dict[int, Any]:
    return {ord(token): SimpleNamespace(logprob=its) for token, its in logprobs.items()}


def letter(token: int) -> str:
    return spelled(chr(token))


@pytest.mark.parametrize("value", [float("-inf"), float("nan"), -1e30])
def test_what_json_has_not_is_the_least(value: float) -> None:
    found = json.loads(entry(letter, 97, value, [(98, value)]))
    assert found["logprob"] == found["top_logprobs"][0]["logprob"] == LEAST


@pytest.mark.parametrize(
    ("piece", "text", "found"),
    [
        ("\u0120caf\u00c3\u00a9", " café", (" café", [32, 99, 97, 102, 195, 169])),
        ("\u2581Hello", "Hello", (" Hello", [32, 72, 101, 108, 108, 111])),
        ("\u2581Hello", " Hello", (" Hello", [32, 72, 101, 108, 108, 111])),
        ("\u00f0\u0141", "\ufffd", ("\ufffd", [0xF0, 0x9F])),  # the half of an emoji
        ("<0xE2>", "\ufffd", ("\ufffd", [0xE2])),
        ("漢", "\ufffd", ("\ufffd", None)),
        ("<|im_end|>", "<|im_end|>", ("<|im_end|>", list(b"<|im_end|>"))),
    ],
)
def test_tokens_are_spelled_with_their_bytes(piece: str, text: str, found: Any) -> None:
    fields = json.loads(f"{{{speller(Tokenizer((piece, text)))(0)}}}")
    assert (fields["token"], fields["bytes"]) == found


def test_each_token_is_decoded_once() -> None:
    tokenizer = Tokenizer(("a", "a"), ("b", "b"))
    spell = speller(tokenizer)
    assert [spell(i) for i in (0, 1, 0, 1)] == [spelled("a"), spelled("b")] * 2
    assert tokenizer.decoded == [0, 1]


def test_without_a_tokenizer_tokens_are_named_by_their_ids() -> None:
    found = json.loads(entry(by_id, 7, -1.0, []))
    assert (found["token"], found["bytes"]) == ("token_id:7", None)


def test_the_likeliest_are_in_order_and_those_of_a_stop_text_are_left_out() -> None:
    positions = [at(c=-3.0, a=-1.0, b=-2.0), at(a=-0.5), at(z=-1.0)]
    found = json.loads(given(letter, [ord("c"), ord("a")], positions, 2, library="X"))
    assert [each["token"] for each in found] == ["c", "a"]
    assert [other["token"] for other in found[0]["top_logprobs"]] == ["a", "b"]


@pytest.mark.parametrize("positions", [None, [], [at(b=-1.0)], [-1.0]])
def test_a_token_of_which_nothing_is_told_is_the_rows_error(positions: Any) -> None:
    with pytest.raises(RowError, match="X gave 0 log probabilities for 1 tokens") as caught:
        given(letter, [ord("a")], positions, 1, library="X")
    assert caught.value.code == "engine_error"
