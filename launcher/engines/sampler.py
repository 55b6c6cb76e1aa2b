"""Draws the next token of every row of a batch by that row's own parameters and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from launcher.plan.types import Sampling

__all__ = ["GREEDY_BELOW", "Draw", "RowSampler", "Scored", "score"]

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them overflows float32 (vLLM,
``vllm/v1/sample/sampler.py``, ``_SAMPLING_EPS``, draws the same line)."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How one row's tokens are drawn, and the generator that its seed has started."""

    sampling: Sampling
    generator: Any

    @classmethod
    def of(cls, sampling: Sampling, device: Any) -> Draw | None:
        """None for a greedy row. ``device`` is that of the logits."""
        import torch

        if sampling.temperature < GREEDY_BELOW:
            return None
        return cls(sampling, torch.Generator(device).manual_seed(sampling.seed % 2**63))


class RowSampler:
    """A logits processor that makes the argmax of each row its draw.

    Adding Gumbel noise to ``logits / temperature`` and taking the largest is a draw from their
    softmax. The noise of a row comes from a generator of its own, so that its draws depend on
    its seed and logits, never on its neighbours. Greedy rows pass through untouched.

    Parameters
    ----------
    draws
        One per row of the batch, in order; None for a greedy row.
    device
        The torch device that the logits are on.

    Notes
    -----
    Called as ``transformers.LogitsProcessor`` is: ``(input_ids, scores) -> scores``, both of
    ``batch`` rows. It need not be a subclass (``transformers/generation/logits_process.py``,
    ``LogitsProcessorList.__call__``), which keeps the import out of here. Order as there:
    temperature, top-k, then top-p over what is left.
    """

    def __init__(self, draws: Sequence[Draw | None], device: Any) -> None:
        import torch

        drawn = [(i, draw) for i, draw in enumerate(draws) if draw is not None]
        chosen = [draw.sampling for _, draw in drawn]

        def column(values: list[float]) -> Any:
            return torch.tensor(values, device=device)[:, None]

        self._rows = torch.tensor([i for i, _ in drawn], device=device, dtype=torch.long)
        self._generators = [draw.generator for _, draw in drawn]
        self._temperature = column([sampling.temperature for sampling in chosen])
        # Rounding takes a running sum of probabilities over 1, so "all" has to be infinite.
        self._top_k = column([sampling.top_k or float("inf") for sampling in chosen])
        self._top_p = column([s.top_p if s.top_p < 1 else float("inf") for s in chosen])
        self._narrows = any(sampling.top_k or sampling.top_p < 1 for sampling in chosen)

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002 - the hook's signature
        """``scores`` with each drawn row perturbed; shape and device stay."""
        if not self._generators:
            return scores
        logits = scores[self._rows].float() / self._temperature
        drawn = logits + self._noise(logits)
        if self._narrows:
            drawn = drawn.masked_fill(self._unlikely(logits), float("-inf"))
        return scores.index_copy(0, self._rows, drawn.to(scores.dtype))

    def _noise(self, logits: Any) -> Any:
        import torch

        noise = torch.empty_like(logits)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return -noise.log()

    def _unlikely(self, logits: Any) -> Any:
        """True where top-k or top-p of its row drops a token, never for the likeliest one."""
        import torch

        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        drop = torch.arange(logits.shape[-1], device=logits.device) >= self._top_k
        likely = ordered.masked_fill(drop, float("-inf")).softmax(dim=-1)
        drop = drop | (likely.cumsum(dim=-1) - likely >= self._top_p)
        drop[:, 0] = False
        return torch.zeros_like(drop).scatter(-1, order, drop)


class Scored(NamedTuple):
    """A row's new token, its log probability, and the likeliest tokens with theirs, best first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def score(logits: Any, chosen: Any, counts: Sequence[int | None]) -> list[Scored | None]:
    """Log probabilities of the tokens that come next.

    Parameters
    ----------
    logits
        Of the model, ``(batch, vocabulary)``.
    chosen
        What a `RowSampler` has made of them, whose argmax is the new token.
    counts
        For each row how many of the likeliest tokens are to be told, or None: nothing is.
    """
    found: list[Scored | None] = [None] * len(counts)
    rows = [row for row, count in enumerate(counts) if count is not None]
    if not rows:
        return found
    own = logits[rows].float().log_softmax(dim=-1)
    tokens = chosen[rows].argmax(dim=-1, keepdim=True)
    top = own.topk(max(count or 0 for count in counts), dim=-1)
    columns = (tokens[:, 0], own.gather(-1, tokens)[:, 0], top.indices, top.values)
    for row, token, logprob, others, theirs in zip(
        rows, *(column.tolist() for column in columns), strict=True
    ):
        likeliest = zip(others[: counts[row]], theirs, strict=False)
        found[row] = Scored(token, logprob, list(likeliest))
    return found
