"""What GPU benchmarks are given: a model's shape, rows, an environment, and the machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu_watch import gpu_lines, gpus_seen

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 32000
SHAPES: Mapping[str, Mapping[str, int]] = {
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": VOCABULARY,
    },
    "8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
}
MEAN_TOKENS, SPREAD = 128, 64
WORDS = ("time", "people", "way", "water", "work", "part", "place", "year", "group", "case")

Form = Literal["ids", "text", "chat"]


def make_model(folder: Path, shape: str, *, tokenizer: bool) -> None:
    """A checkpoint without weights. No token ends an answer: each row makes all of its tokens."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "eos_token_id": None,  # 2 where it is not said
        **SHAPES[shape],
    }
    if tokenizer:
        config["vocab_size"] = take_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))


def take_tokenizer(target: Path) -> int:
    """Copy SmolLM2's tokenizer, less its end of text; how many tokens it has."""
    home = os.environ.get("HPC_LLM_MODEL_CACHE", "~/.cache/hpc-llm/models")
    source = Path(home).expanduser() / "smollm2-135m"
    for path in (*source.glob("tokenizer*"), *source.glob("chat_template*")):
        shutil.copy(path, target)
    settings = target / "tokenizer_config.json"
    endless = json.loads(settings.read_bytes()) | {"eos_token": None, "pad_token": None}
    settings.write_text(json.dumps(endless))
    return int(json.loads((source / "config.json").read_bytes())["vocab_size"])


def write_rows(path: Path, count: int, form: Form) -> None:
    """OpenAI batch lines whose prompts are 64 to 255 token ids, or as many words."""
    draw = random.Random(0)
    drawn: Sequence[Any] = range(10, VOCABULARY) if form == "ids" else WORDS
    with path.open("w") as file:
        for number in range(count):
            prompt = draw.choices(drawn, k=draw.randint(64, 255))
            # Rows of one length would end in waves.
            most = draw.randint(MEAN_TOKENS - SPREAD, MEAN_TOKENS + SPREAD)
            body: dict[str, Any] = {"model": "bench", "max_tokens": most, "temperature": 0.0}
            url = "/v1/completions"
            if form == "chat":
                url = "/v1/chat/completions"
                body["messages"] = [{"role": "user", "content": " ".join(prompt)}]
            else:
                body["prompt"] = prompt if form == "ids" else " ".join(prompt)
            line = {"custom_id": f"row-{number}", "method": "POST", "url": url, "body": body}
            file.write(json.dumps(line) + "\n")


def environment(*before: Path) -> dict[str, str]:
    places = [*map(str, before), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # without compiled kernels it would build them
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return {**own, **os.environ, "PYTHONPATH": ":".join(places)}


def machine_slots() -> dict[str, Any]:
    """What the site file says of this machine: the GPUs that this process may use."""
    count = len(gpus_seen())
    if not count:
        return {"slots": 2}
    return {"gpus": {"model": "this", "per_node": count, "topology": "all-to-all"}}


def machine() -> dict[str, Any]:
    versions = {}
    for name in ("vllm", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return {
        "gpus": gpu_lines(*query),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **versions,
    }
