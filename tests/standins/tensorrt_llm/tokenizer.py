"""For ``tensorrt_llm/llmapi/tokenizer.py`` @89fd9b74: a token is a byte, BOS or EOS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

BOS, EOS = 256, 257


class TransformersTokenizer:
    name_or_path = "standin"
    chat_template: str | None = "{{ messages }}"
    eos_token_id = EOS
    pad_token_id = EOS

    @property
    def tokenizer(self) -> TransformersTokenizer:
        return self

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        truncation: bool | None = None,
        max_length: int | None = None,
    ) -> list[int]:
        ids = [BOS] * add_special_tokens + list(text.encode())
        return ids[:max_length] if truncation else ids

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False, **_: Any) -> str:
        named = {BOS: b"<s>", EOS: b"</s>"}
        kept = (i for i in token_ids if not (skip_special_tokens and i in named))
        return b"".join(named.get(i, bytes([i % 256])) for i in kept).decode(errors="replace")

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **_: Any,
    ) -> str | list[int]:
        for turn in conversation:
            if turn["role"] not in ("system", "user", "assistant"):
                raise ValueError(f"no role {turn['role']}")
        text = "".join(f"<{turn['role']}>{turn['content']}" for turn in conversation)
        text += "<assistant>" * add_generation_prompt
        return self.encode(text, add_special_tokens=False) if tokenize else text
