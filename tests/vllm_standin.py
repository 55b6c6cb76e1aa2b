"""The stand-in for vLLM, and checkpoints that say how it behaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["STANDINS", "Noted", "journal", "python_path", "write_checkpoint", "write_site"]

STANDINS = Path(__file__).parent / "standins"


def python_path() -> str:
    """``PYTHONPATH`` under which jobs find the stand-in before any real vLLM."""
    return os.pathsep.join([str(STANDINS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])


def write_checkpoint(folder: Path, *, tokenizer: bool = True, **standin: Any) -> Path:
    """A checkpoint that takes 64 tokens; ``standin`` says how the engine behaves with it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 300,
        "max_position_embeddings": 64,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    # By no name of a model's files: a run may go on with an engine that behaves otherwise.
    (folder / "standin.cfg").write_text(json.dumps(standin))
    if tokenizer:
        (folder / "tokenizer.model").write_bytes(b"")  # not one that could be read elsewhere
        (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return folder


class Noted(NamedTuple):
    """A line of the stand-in's journal: ``what`` is ``asked`` or ``answered``."""

    pid: int
    what: str
    text: str


def journal(path: Path) -> list[Noted]:
    """What engines of checkpoints with ``journal=path`` were asked, and gave back, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    words = (line.split(" ", 2) for line in lines)
    return [Noted(int(pid), what, text) for pid, what, text in words]


def write_site(path: Path, gpus: int = 2) -> Path:
    """A machine without a scheduler that says it has GPUs."""
    kind = {"model": "h100", "memory": "80GB", "per_node": gpus, "topology": "all-to-all"}
    site = {
        "schema": 1,
        "name": "gpus",
        "scheduler": {"type": "local"},
        "launch": {"with": "none"},
        "partitions": {"gpu": {"nodes": 1, "gpus": kind}},
    }
    path.write_text(yaml.safe_dump(site))
    return path
