"""The prompts a model will really get, special tokens and all, before any GPU is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launcher.chat import Messages, final_text
from launcher.data.prompts import Prompt, PromptBuilder
from launcher.data.rows import first_rows
from launcher.errors import RowError
from launcher.prepare import Prepared

__all__ = ["PreviewRow", "preview"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRow:
    """One row as the model would get it.

    Attributes
    ----------
    row
        Its file (index in the input's list) and byte offset.
    text
        The final prompt, or None for an error row. Without a chat template at hand, the turns.
    error
        Code and message where the row would become an error record.
    """

    row: tuple[int, int]
    id: str | None
    text: str | None
    max_tokens: int | None
    error: str | None


def preview(prepared: Prepared, limit: int) -> list[PreviewRow]:
    """The first ``limit`` rows of the job's input as final prompts."""
    identity = prepared.identity
    builder = PromptBuilder(identity.prompt, identity.sampling)
    as_text = final_text(prepared.resolution.plan.model_path)
    return [_row(builder, row, as_text) for row in first_rows(identity.inputs, limit)]


def _row(builder: PromptBuilder, row: Any, as_text: Callable[[Messages], str]) -> PreviewRow:
    place = (row.file, row.offset)
    try:
        prompt: Prompt = builder.build(row)
        text = as_text(prompt.messages) if prompt.messages is not None else prompt.text
        if prompt.tokens is not None:
            text = f"token ids {' '.join(map(str, prompt.tokens))}"
    except RowError as exc:
        error = f"{exc.code}: {exc.message}"
        return PreviewRow(row=place, id=None, text=None, max_tokens=None, error=error)
    return PreviewRow(
        row=place, id=prompt.id, text=text, max_tokens=prompt.sampling.max_tokens, error=None
    )
