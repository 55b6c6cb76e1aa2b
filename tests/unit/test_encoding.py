"""Which prompts are made into tokens apart from the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.engines.base import EngineSetup
from launcher.engines.encoding import encodes_apart
from launcher.plan.types import Cut


def apart(engine: str, path: Path | None, **options: Any) -> bool:
    model = None if path is None else str(path)
    return encodes_apart(engine, EngineSetup(model_path=model, cut=Cut(), options=options))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("VLLM_USE_FASTOKENS", raising=False)
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("engine", ["transformers", "vllm", "tensorrt-llm"])
def test_the_prompts_of_a_checkpoint_with_a_fast_tokenizer_are_encoded_apart(
    checkpoint: Path, engine: str
) -> None:
    assert apart(engine, checkpoint, dtype="float32", max_model_len=64)


@pytest.mark.parametrize("engine", ["transformers", "vllm", "tensorrt-llm", "echo"])
def test_without_a_fast_tokenizer_they_are_not(tmp_path: Path, engine: str) -> None:
    assert not apart(engine, tmp_path)
    assert not apart(engine, None)


def test_an_engine_of_which_nothing_is_known_makes_its_own(checkpoint: Path) -> None:
    assert not apart("echo", checkpoint)


@pytest.mark.parametrize(
    "option",
    [
        "config_format",
        "hf_config_path",
        "revision",
        "skip_tokenizer_init",
        "tokenizer",
        "tokenizer_mode",
        "tokenizer_revision",
        "trust_remote_code",
    ],
)
def test_options_that_may_give_vllm_another_tokenizer_leave_it_to_vllm(
    checkpoint: Path, option: str
) -> None:
    assert not apart("vllm", checkpoint, **{option: "x"})


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model.v3"])
def test_files_that_give_vllm_another_tokenizer_leave_it_to_vllm(
    checkpoint: Path, name: str
) -> None:
    (checkpoint / name).write_text("{}")
    assert not apart("vllm", checkpoint)
    assert apart("transformers", checkpoint)


def test_a_variable_that_gives_vllm_another_tokenizer_leaves_it_to_vllm(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_FASTOKENS", "1")
    assert not apart("vllm", checkpoint)
    monkeypatch.setenv("VLLM_USE_FASTOKENS", "0")
    assert apart("vllm", checkpoint)


@pytest.mark.parametrize(
    "option",
    [
        "custom_tokenizer",
        "lora_config",
        "revision",
        "skip_tokenizer_init",
        "tokenizer",
        "tokenizer_mode",
        "tokenizer_revision",
        "trust_remote_code",
    ],
)
def test_options_that_may_give_tensorrt_llm_another_tokenizer_leave_it_to_tensorrt_llm(
    checkpoint: Path, option: str
) -> None:
    assert not apart("tensorrt-llm", checkpoint, **{option: "x"})
