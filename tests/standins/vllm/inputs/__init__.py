"""As ``vllm/inputs/engine.py`` of 0.24.0."""

from __future__ import annotations

from typing import Any


def tokens_input(
    prompt_token_ids: list[int], *, prompt: str | None = None, cache_salt: str | None = None
) -> dict[str, Any]:
    inputs: dict[str, Any] = {"type": "token", "prompt_token_ids": prompt_token_ids}
    if prompt is not None:
        inputs["prompt"] = prompt
    if cache_salt is not None:
        inputs["cache_salt"] = cache_salt
    return inputs
