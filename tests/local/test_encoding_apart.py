"""Prompts made into tokens apart from the engine are those that the engine makes itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_driving import Cli, write_job
from local_engines import chat, setup, text, with_engine

import launcher
from launcher.engines.base import Completion, Engine, Request
from launcher.engines.encoding import encodes_apart, load_encoder

pytestmark = pytest.mark.local

WORDS = ["What is the capital of France?", "Größe: 3 °C, 你好 🙂", "  two\n\nlines\t", "a" * 300]


@pytest.mark.parametrize("make", [chat, text])
def test_the_engine_answers_its_own_tokens_and_those_made_apart_alike(
    smollm2: Path, make: Callable[..., Request]
) -> None:
    """Turns and bare text; that there are as many tokens is said by the engine."""
    assert encodes_apart("transformers", setup(smollm2))
    encode = load_encoder(setup(smollm2))
    own = [make(str(n), words, max_tokens=6) for n, words in enumerate(WORDS)]
    apart = [Request(id=f"{r.id}'", sampling=r.sampling, tokens=encode(r)) for r in own]
    assert len({len(r.tokens or ()) for r in apart}) == len(WORDS)

    async def body(engine: Engine) -> list[Completion]:
        return [await engine.generate(request) for request in (*own, *apart)]

    answers = with_engine(smollm2, body)
    assert answers[len(own) :] == answers[: len(own)]
    assert [a.prompt_tokens for a in answers[: len(own)]] == [len(r.tokens or ()) for r in apart]


def test_a_job_answers_as_the_engine_does_that_makes_its_own_tokens(
    smollm2: Path, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    cli = Cli(tmp_path / "home", {"PYTHONPATH": str(Path(launcher.__file__).parents[1])})
    job = write_job(
        cli.home,
        rows=[{"text": words} for words in WORDS],
        engine="transformers",
        model=str(smollm2),
        input={"path": "in.jsonl", "prompt": "{{ text }}"},
        sampling={"max_tokens": 6},
        engine_options={"device": "cpu", "dtype": "float32"},
    )
    assert cli("submit", job, "--wait").code == 0

    async def body(engine: Engine) -> list[str]:
        rows = [chat(str(n), words, max_tokens=6) for n, words in enumerate(WORDS)]
        return [answer.text for answer in await asyncio.gather(*map(engine.generate, rows))]

    assert cli.texts(cli.home / "run") == with_engine(smollm2, body)
