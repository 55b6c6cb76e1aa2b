"""Log probabilities of new tokens, in the form in which OpenAI's chat completions give them.

They are those of the model's own distribution, before temperature and cuts, as in OpenAI's API and
by vLLM's default (``vllm/config/model.py``, ``logprobs_mode``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from launcher.errors import RowError

__all__ = ["LEAST", "Speller", "by_id", "entry", "given", "listed", "spelled", "speller"]

Speller = Callable[[int], str]
"""The text of a token id, and its bytes where they are known: fields of a JSON object."""

LEAST = -9999.0
"""Stands for minus infinity, which JSON does not have, as in OpenAI's API."""

# Written as they come: objects for the likeliest tokens of each would take twice as long, in
# the thread that also answers for all other rows.
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_KEPT_TOKENS = 2**16
_PART = "\ufffd"  # what decoders write for bytes that are no whole character
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token of sentencepiece that is one byte
_SPACE = "\u2581"  # sentencepiece writes it for a space, which a token decoded alone loses
# The bytes that byte-level tokens spell by their own character; the others, in their order, by
# those from U+0100 (openai/gpt-2, ``src/encoder.py``, bytes_to_unicode).
_OWN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_REST = (byte for byte in range(256) if byte not in _OWN)
_BYTE_OF = {chr(byte): byte for byte in _OWN} | {chr(256 + n): byte for n, byte in enumerate(_REST)}


def entry(spell: Speller, token: int, logprob: float, top: Iterable[tuple[int, float]]) -> str:
    """What is said of one new token, in JSON; ``top`` are the likeliest ones, best first."""
    likeliest = ",".join([f"{{{_one(spell, other, its)}}}" for other, its in top])
    return f'{{{_one(spell, token, logprob)},"top_logprobs":[{likeliest}]}}'


def _one(spell: Speller, token: int, logprob: float) -> str:
    # This way round it is LEAST for NaN too, which JSON has not either.
    return f'{spell(token)},"logprob":{float(max(LEAST, logprob))!r}'


def listed(entries: Iterable[str]) -> str:
    """``entries`` as `Completion` has them."""
    return f"[{','.join(entries)}]"


def spelled(text: str) -> str:
    """A token's text and its bytes, null for those of a token that is part of a character."""
    return _fields(text, None if _PART in text else list(text.encode(errors="replace")))


def by_id(token: int) -> str:
    """A token's name where nothing tells its text, as vLLM's server writes it."""
    return _fields(f"token_id:{token}", None)


def _fields(text: str, data: list[int] | None) -> str:
    return _JSON.encode({"token": text, "bytes": data})[1:-1]


def speller(tokenizer: Any) -> Speller:
    """How tokens of ``tokenizer``, one of transformers or like it, are spelled."""
    pieces = getattr(tokenizer, "convert_ids_to_tokens", None)

    @lru_cache(_KEPT_TOKENS)
    def spell(token: int) -> str:
        text: str = tokenizer.decode([token])
        piece = pieces([token])[0] if pieces else None
        if not isinstance(piece, str):
            return spelled(text)
        if piece.startswith(_SPACE) and not text.startswith(" "):
            return spelled(f" {text}")
        return _fields(text, _bytes(piece)) if _PART in text else spelled(text)

    return spell


def _bytes(piece: str) -> list[int] | None:
    if found := _BYTE.fullmatch(piece):
        return [int(found[1], 16)]
    known = [_BYTE_OF.get(char) for char in piece]
    return [byte for byte in known if byte is not None] if None not in known else None


def _ranked(logprobs: Iterable[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """The ``count`` likeliest of pairs of a token id and its log probability, best first."""
    return sorted(logprobs, key=itemgetter(1), reverse=True)[:count]


def given(
    spell: Speller, tokens: Sequence[int], positions: Any, count: int, *, library: str
) -> str:
    """The entries, from what vLLM and TensorRT-LLM give.

    Parameters
    ----------
    tokens
        Ids of the new tokens.
    positions
        For each of them a mapping of token ids to objects with ``logprob``: at least the
        ``count`` likeliest tokens and the chosen one, which may be beside them.

    Raises
    ------
    RowError
        ``engine_error`` when there are fewer positions than tokens, or one lacks its token.
    """
    # TensorRT-LLM takes a stop text's tokens away, and leaves what is told of them
    # (executor/result.py, _handle_sequence).
    positions = list(positions or ())[: len(tokens)]
    told = sum(
        isinstance(each, Mapping) and token in each
        for token, each in zip(tokens, positions, strict=False)
    )
    if told != len(tokens):
        message = f"{library} gave {told} log probabilities for {len(tokens)} tokens"
        raise RowError("engine_error", message)
    return listed(
        entry(
            spell,
            token,
            each[token].logprob,
            _ranked([(other, its.logprob) for other, its in each.items()], count),
        )
        for token, each in zip(tokens, positions, strict=True)
    )
