"""The engine transformers, driven on the CPU without a run around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from launcher.engines.base import Engine, EngineSetup, Request
from launcher.engines.registry import create
from launcher.errors import RunError
from launcher.plan.types import Cut, Sampling

__all__ = ["FRANCE", "LIMIT", "chat", "run_code", "setup", "text", "unreachable", "with_engine"]

T = TypeVar("T")
LIMIT = 64  # positions of the tiny model


def setup(path: Path | None, **options: Any) -> EngineSetup:
    return EngineSetup(
        model_path=str(path) if path else None,
        cut=Cut(),
        threads=1,  # two on busy cores wait for each other: many times slower
        # Sums in bfloat16 depend on the padding enough to turn an answer over.
        options={"device": "cpu", "dtype": "float32", **options},
    )


async def unreachable(_: Engine) -> None:
    pytest.fail("the engine started")


def with_engine(path: Path | None, body: Callable[[Engine], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        engine = create("transformers", setup(path, **options))
        try:
            await engine.start()
            return await body(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def chat(name: str, content: str, **sampling: Any) -> Request:
    return Request(
        id=name,
        messages=({"role": "user", "content": content},),
        sampling=Sampling(**{"max_tokens": 12, **sampling}),
    )


def text(name: str, content: str, **sampling: Any) -> Request:
    return Request(id=name, text=content, sampling=Sampling(**{"max_tokens": 12, **sampling}))


def run_code(error: RunError) -> str:
    return error.problems[0].code


FRANCE = chat("france", "What is the capital of France?")
