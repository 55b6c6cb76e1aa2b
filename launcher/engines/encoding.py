"""Which engines' prompts can be made into tokens without the engine, and how."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from launcher.engines.base import EngineSetup, Request
from launcher.engines.prompting import encode, first_line
from launcher.errors import Problem, RunError

__all__ = ["encodes_apart", "load_encoder"]

# With any of these vLLM's tokenizer may be another one (vllm/tokenizers/registry.py, 0.20 to 0.33).
_OTHERS_OF_VLLM = frozenset(
    {
        "config_format",
        "hf_config_path",
        "revision",
        "skip_tokenizer_init",
        "tokenizer",
        "tokenizer_mode",
        "tokenizer_revision",
        "trust_remote_code",
    }
)
# The same of TensorRT-LLM, which loads it with transformers, or from the adapter of a LoRA
# (tensorrt_llm/llmapi/llm.py, _try_load_tokenizer).
_OTHERS_OF_TENSORRT_LLM = frozenset(
    {
        "custom_tokenizer",
        "lora_config",
        "revision",
        "skip_tokenizer_init",
        "tokenizer",
        "tokenizer_mode",
        "tokenizer_revision",
        "trust_remote_code",
    }
)
_OTHER_FILES = ("tekken.json", "tokenizer.model.v*")


def encodes_apart(engine: str, setup: EngineSetup) -> bool:
    """Whether the checkpoint's own tokenizer makes the very tokens that the engine would."""
    path = Path(setup.model_path or "")
    if not (path / "tokenizer.json").is_file():
        return False
    if engine == "transformers":
        return True
    if any(next(path.glob(pattern), None) for pattern in _OTHER_FILES):
        return False
    if engine == "vllm":
        replaced = os.environ.get("VLLM_USE_FASTOKENS", "0") != "0"
        return not replaced and not _OTHERS_OF_VLLM & setup.options.keys()
    return engine == "tensorrt-llm" and not _OTHERS_OF_TENSORRT_LLM & setup.options.keys()


def load_encoder(setup: EngineSetup) -> Callable[[Request], list[int]]:
    """What makes a request's text or turns into token ids; raises `RowError` as `encode`.

    Raises
    ------
    RunError
        ``engine.import`` without transformers, ``engine.model`` for a tokenizer that it cannot
        read.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from transformers import AutoTokenizer
    except ImportError as exc:
        message = f"transformers cannot be imported to tokenise prompts: {first_line(exc)}"
        hint = "install transformers where the engine runs"
        raise RunError(Problem("engine.import", message, hint=hint)) from exc
    try:
        tokenizer = AutoTokenizer.from_pretrained(setup.model_path, local_files_only=True)
    except Exception as exc:
        message = f"cannot read the tokenizer of {setup.model_path}: {first_line(exc)}"
        raise RunError(Problem("engine.model", message)) from exc
    return partial(encode, tokenizer)
