"""As ``tensorrt_llm/sampling_params.py`` @000a01de, less what needs torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad: str | list[str] | None = None
    bad_token_ids: list[int] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    top_p_min: float | None = None
    top_p_reset_ids: int | None = None
    top_p_decay: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    beam_search_diversity_rate: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: int | None = None
    no_repeat_ngram_size: int | None = None
    min_p: float | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    exclude_input_from_output: bool = True
    return_perf_metrics: bool = False
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    _stop_word_ids: list[list[int]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.pad_id is None:
            self.pad_id = self.end_id
        self.best_of = self.best_of or self.n
        if self.best_of < self.n:
            raise ValueError(
                f"In beam search, beam_width ({self.n}) must be less than or equal to best_of "
                f"({self.best_of})"
            )

    def _setup(self, tokenizer: Any) -> None:
        """Done before a request leaves the proxy, with the tokenizer there is."""
        if self.end_id is None:
            self.end_id = tokenizer.eos_token_id
            self.pad_id = tokenizer.pad_token_id
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        self._stop_word_ids = [tokenizer.encode(s, add_special_tokens=False) for s in stops]

    @property
    def is_greedy(self) -> bool:
        return self.top_k == 1 or not (self.temperature or self.top_p or self.top_k)

    def stops(self) -> list[tuple[int | str, list[int]]]:
        """By its reason, what ends an answer: the words and the ids."""
        words = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [
            *((i, [i]) for i in self.stop_token_ids or ()),
            *zip(words, self._stop_word_ids, strict=True),
        ]
