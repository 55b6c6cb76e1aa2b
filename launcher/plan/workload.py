"""The rows of a job, as far as planning goes by them. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ANSWER_SHARE", "ANSWER_SPREAD", "CHARACTERS_PER_TOKEN", "UNKNOWN_PROMPTS", "Prompts"]

ANSWER_SHARE = 0.5
"""Of the most tokens that an answer may have, what answers are taken to have on average. Nobody
knows before a run; half as many and twice as many are both usual."""

ANSWER_SPREAD = 0.5
"""Their standard deviation over their mean: answers end where they end, neither all alike nor
spread as widely as those of a chat."""

CHARACTERS_PER_TOKEN = 4
"""About, in English text (OpenAI, "What are tokens and how to count them?")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Prompts of a job, by a sample.

    Attributes
    ----------
    mean, p95
        Tokens of a prompt.
    most_new
        The most tokens that an answer of the sample may have.
    rows
        In all of the input; None where nothing tells.
    source
        How all this is known, in words.
    """

    mean: float
    p95: int
    most_new: int
    rows: int | None
    source: str


UNKNOWN_PROMPTS = Prompts(
    mean=1000.0, p95=2000, most_new=512, rows=None, source="assumed: no row could be read"
)
