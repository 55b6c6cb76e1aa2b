"""Rows whose answers have a length that only the engine of `makespan.py` knows.

The length is drawn from a hash of the prompt, so that it is the row's own, whoever asks. A prompt
has as many tokens as letters.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from launcher.engines.base import Request

__all__ = ["LENGTHS", "Lengths", "input_lines", "prompts"]

_NORMAL = NormalDist()
_SHORTEST_PROMPT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Log-normal lengths of prompts and answers.

    Attributes
    ----------
    prompt_median, prompt_sigma
        Of the prompt's tokens, and of their logarithm.
    median, sigma
        Of the answer's.
    grows
        Whether ``median`` is a multiple of the row's own prompt, and no count of tokens.
    most
        The job's ``max_tokens``.
    """

    prompt_median: float
    prompt_sigma: float
    median: float
    sigma: float
    most: int
    grows: bool = False

    def prompt(self, number: int) -> str:
        """The prompt of row ``number``."""
        drawn = _log_normal(f"prompt {number}", self.prompt_median, self.prompt_sigma)
        wanted = min(max(int(drawn), _SHORTEST_PROMPT), 8192)
        return f"row {number} ".ljust(wanted, "x")

    def of(self, prompt: str) -> tuple[int, int]:
        """``(prompt, new)`` tokens, as `most` cuts them."""
        median = self.median * len(prompt) if self.grows else self.median
        new = _log_normal(prompt, median, self.sigma)
        return len(prompt), min(max(round(new), 1), self.most)

    def of_request(self, request: Request) -> tuple[int, int]:
        assert request.text is not None
        return self.of(request.text)


LENGTHS: Mapping[str, Lengths] = {
    # Mean 400, 99 % below 2,500. Prompts: mean 161, as ShareGPT has in the paper on vLLM (Kwon et
    # al. 2023, arXiv:2309.06180, figure 11), where answers have a mean of 338 when cut at 1,024.
    "chat": Lengths(
        prompt_median=100, prompt_sigma=0.98, median=math.exp(5.4865), sigma=1.005, most=4096
    ),
    # Mean 2,000 before it is cut, 99 % below 18,000: answers of reasoning models are long, and
    # more spread than others (ServeGen, arXiv:2505.09999); 32,768 is what DeepSeek-R1's card
    # gives them (arXiv:2501.12948).
    "reasoning": Lengths(
        prompt_median=100, prompt_sigma=0.98, median=math.exp(6.756), sigma=1.3, most=32_768
    ),
    # Texts that are translated or written anew: an answer is about as long as its prompt. Made up,
    # so that there is something to be learned; prompts have a mean of 494.
    "growing": Lengths(
        prompt_median=300, prompt_sigma=1.0, median=0.9, sigma=0.35, most=8192, grows=True
    ),
}


def prompts(lengths: Lengths, rows: int) -> list[str]:
    return [lengths.prompt(number) for number in range(rows)]


def input_lines(lengths: Lengths, texts: Sequence[str], *, known: bool) -> bytes:
    """The input file: plain rows, or lines of OpenAI's batch form with a tight ``max_tokens``."""
    lines: list[dict[str, object]] = []
    for number, text in enumerate(texts):
        if known:
            body = {"prompt": text, "max_tokens": lengths.of(text)[1]}
            lines.append({"custom_id": str(number), "url": "/v1/completions", "body": body})
        else:
            lines.append({"id": number, "text": text})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _log_normal(key: str, median: float, sigma: float) -> float:
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    share = (int.from_bytes(digest, "big") + 0.5) / 2**56
    return median * math.exp(sigma * _NORMAL.inv_cdf(share))
