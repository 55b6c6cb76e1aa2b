"""The stand-in for TensorRT-LLM, and checkpoints that say how it behaves.

What ``write_checkpoint(folder, **standin)`` understands:

``latency_s``
    How long an answer takes; ``max_batch_size`` of them at once.
``stage_s``
    How long each stage of the start takes.
``kv_tokens``
    The room in the KV pool: less than ``max_seq_len`` of it cuts ``max_seq_len``.
``leader="deaf"``
    The leader does not stop when it is told to.
``journal=path``
    A file that gets a line ``asked …`` and ``answered …`` for each request.
``fault={"what": …, "when": …, "rank": …, "text": …}``
    What goes wrong, when, and in which rank (in all without ``rank``). ``when`` is ``start``, one
    of `STAGES`, ``shutdown``, or a number of answers. ``what`` is

    - ``oom``, at a stage: the engine's explanation of it
    - ``raise``: an exception with ``text``. During the start the rank says ``Failed to initialize
      executor on rank``, later ``MpiCommSession rank1 task […] failed with exception``; either way
      it then waits for the others, and only what rank 0 raises during the start comes back
    - ``hang``: it waits for ever
    - ``exit`` and ``kill``: its process is gone
    - ``abort``: ``MPI_Abort``, as the handlers of SIGABRT and SIGSEGV call it
    - ``forward``, after so many answers: all active requests end in a RequestError with ``text``,
      and nothing that comes later is answered
    - ``die``, after so many answers: the proxy is told that the engine is dead

Prompts that are not answered: ``fail`` (RequestError), ``wait`` (never, unless it is aborted),
``late`` (ends as ``timeout``). One that leaves no room below ``max_seq_len`` is a RequestError too,
and so is one longer than ``max_num_tokens``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["LAUNCH_SCRIPTS", "STAGES", "STANDINS", "packages", "python_path", "write_checkpoint"]

STANDINS = Path(__file__).parent / "standins"
LAUNCH_SCRIPTS = {
    variant: STANDINS / "trtllm_launch" / variant / "trtllm-llmapi-launch" for variant in "AB"
}
STAGES = (
    "Model",
    "Sampler",
    "Initial KV cache (temporary for KV cache size estimation)",
    "Additional executor resources (temporary for KV cache size estimation)",
    "Model resources created during usage",
    "KV cache",
    "Additional executor resources",
)
_PACKAGES = Path("/srv/hpc-llm-mpi/trtllm")
_WHEELS = ("mpi4py>=4,<5", "pyzmq>=26,<28")


def packages() -> Path:
    """What the stand-in needs over MPI, outside of any virtual environment; made once a machine."""
    if not (_PACKAGES / "zmq").is_dir():
        shutil.rmtree(_PACKAGES, ignore_errors=True)
        made = _PACKAGES.with_suffix(f".{os.getpid()}")
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
        words = ("install", "--no-deps", "--only-binary=:all:", "--target", made, *_WHEELS)
        subprocess.run([*pip, *words], check=True)
        made.rename(_PACKAGES)
    return _PACKAGES


def python_path(*, mpi: bool = True) -> str:
    """``PYTHONPATH`` under which jobs find the stand-in before any real TensorRT-LLM.

    Without ``mpi`` it has no MPI, which is enough for one rank in the caller's process.
    """
    added = [str(STANDINS), *([str(packages())] if mpi else [])]
    return os.pathsep.join([*added, *filter(None, [os.environ.get("PYTHONPATH")])])


def write_checkpoint(
    folder: Path, *, tokenizer: bool = True, experts: int = 0, **standin: Any
) -> Path:
    """A checkpoint that takes 64 tokens; ``standin`` says how the engine behaves with it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 8,
        "vocab_size": 300,
        "max_position_embeddings": 64,
        "torch_dtype": "bfloat16",
    }
    if experts:
        config |= {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": experts,
            "num_experts_per_tok": 2,
        }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "standin.cfg").write_text(json.dumps(standin))
    if tokenizer:
        (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return folder
