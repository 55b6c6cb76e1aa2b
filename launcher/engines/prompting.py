"""What a request's text or turns are in the model's tokens."""

from __future__ import annotations

from typing import Any

from launcher.engines.base import Request
from launcher.errors import RowError

__all__ = ["encode", "first_line"]


def encode(tokenizer: Any, request: Request) -> list[int]:
    """Token ids of a prompt that is text or turns; both can be slow.

    Raises
    ------
    RowError
        ``template_error`` when the model's chat template fails on the turns, ``engine_error``
        when the tokenizer refuses the text.
    """
    text = request.text if request.messages is None else _templated(tokenizer, request)
    if not isinstance(text, str):  # tokenizers that are no Hugging Face ones give ids
        return list(text or ())
    try:
        return list(tokenizer.encode(text, add_special_tokens=request.messages is None))
    except Exception as exc:
        raise RowError("engine_error", f"the tokenizer failed: {first_line(exc)}") from exc


def _templated(tokenizer: Any, request: Request) -> Any:
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in request.messages or ()],
            add_generation_prompt=True,
            tokenize=False,
        )
    except Exception as exc:  # a template is a program: it can raise anything
        message = f"the model's chat template failed: {first_line(exc)}"
        raise RowError("template_error", message) from exc


def first_line(exc: BaseException) -> str:
    """The exception in one line: its type and the first line of what it says."""
    lines = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {lines[0]}" if lines else type(exc).__name__
