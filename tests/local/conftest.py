from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from local_engines import LIMIT

from launcher.engines.smollm2 import prepare
from launcher.errors import SpecError


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The converted SmolLM2-135M-Instruct, made once for all runs on this machine."""
    if importlib.util.find_spec("torch") is None:
        _unavailable("torch is not installed")
    cache = os.environ.get("HPC_LLM_MODEL_CACHE", "~/.cache/hpc-llm/models")
    try:
        return prepare(Path(cache).expanduser() / "smollm2-135m")
    except SpecError as exc:
        _unavailable(str(exc))


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    assert "transformers" not in [thread.name for thread in threading.enumerate()]


@pytest.fixture(scope="session")
def tiny(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 64 positions with SmolLM2's tokenizer: for lengths, not for answers."""
    return _random_model(smollm2, tmp_path_factory.mktemp("tiny"), vocab_size=49152)


@pytest.fixture(scope="session")
def broken(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with fewer embeddings than its tokenizer has tokens: it dies of any prompt."""
    return _random_model(smollm2, tmp_path_factory.mktemp("broken"), vocab_size=4)


def _random_model(smollm2: Path, target: Path, *, vocab_size: int) -> Path:
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_positions=LIMIT,
        vocab_size=vocab_size,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    # What a checkpoint may bring along; none of it is the job's sampling.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 9.0
    model.generation_config.repetition_penalty = 50.0
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(smollm2, local_files_only=True).save_pretrained(target)
    return target


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
