"""Finding a model on this machine: a directory, the local hub cache, or the built-in cache."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import Location, Problem, SpecError
from launcher.models.catalogue import find_builtin
from launcher.models.shapes import ModelShape, shape_from_config
from launcher.models.weights import stored_weights
from launcher.preflight.fingerprint import fingerprint
from launcher.resources import model_cache

__all__ = ["Checkpoint", "FoundModel", "find_model"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's directory, with what a plan needs to know of it.

    Attributes
    ----------
    digest
        As `launcher.preflight.fingerprint.Fingerprint` has it.
    hub_cache
        The hub's cache that it lies in: links of a snapshot lead all over it. None elsewhere.
    """

    path: Path
    shape: ModelShape
    chat_template: bool
    digest: str
    hub_cache: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """What is known of a model: its checkpoint where there is one here, else its shape."""

    checkpoint: Checkpoint | None
    shape: ModelShape | None


def find_model(
    name: str,
    *,
    base: Path,
    where: Location | None = None,
    environ: Mapping[str, str] = os.environ,
) -> FoundModel:
    """Look for ``name``: a directory (relative to ``base``), a hub id, or a built-in name.

    Raises
    ------
    SpecError
        ``model.missing`` when there is no such directory or built-in name;
        ``model.not-cached`` for a hub id that is not in the local cache;
        ``model.config`` when its ``config.json`` cannot be used.
    """
    # os.path's, because Path's raise for unknown homes and names too long for any file.
    directory = base / os.path.expanduser(name)  # noqa: PTH111 - as said
    if os.path.isdir(directory):  # noqa: PTH112 - as said
        checkpoint = _read(directory.resolve(), name, where)
        return FoundModel(checkpoint=checkpoint, shape=checkpoint.shape)
    if (shape := find_builtin(name)) is not None:
        cached = model_cache(environ) / name.lower()
        ready = _read(cached, name, where) if (cached / "config.json").is_file() else None
        return FoundModel(checkpoint=ready, shape=ready.shape if ready else shape)
    if _HUB_ID.fullmatch(name):
        cache = _hub_cache(environ)
        checkpoint = _read(_hub_snapshot(cache, name, where), name, where)
        checkpoint = dataclasses.replace(checkpoint, hub_cache=cache)
        return FoundModel(checkpoint=checkpoint, shape=checkpoint.shape)
    hint = "give a checkpoint's directory, or a name from `hpc-llm models list`"
    message = f"there is no directory {directory}, nor a built-in model {name!r}"
    raise SpecError(Problem("model.missing", message, where, hint))


def _hub_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it downloads (its ``constants.py``)."""
    home = environ.get("HF_HOME") or str(Path(environ.get("HOME", "/")) / ".cache/huggingface")
    return Path(environ.get("HF_HUB_CACHE") or Path(home) / "hub").absolute()


def _hub_snapshot(cache: Path, name: str, where: Location | None) -> Path:
    """The snapshot that ``main`` names."""
    entry = cache / f"models--{name.replace('/', '--')}"
    try:
        snapshot = entry / "snapshots" / (entry / "refs/main").read_text().strip()
    except OSError:
        snapshot = entry
    if not (snapshot / "config.json").is_file():
        hint = f"on a machine with internet: `hf download {name}`, with HF_HOME on a shared disk"
        message = f"{name} is not in the hub cache {cache}"
        raise SpecError(Problem("model.not-cached", message, where, hint))
    return snapshot


def _read(directory: Path, name: str, where: Location | None) -> Checkpoint:
    config_path = directory / "config.json"
    try:
        config = _object(config_path) | _modelopt(directory)
        template = _has_chat_template(directory)
    except (OSError, ValueError, RecursionError) as exc:
        hint = "a checkpoint's directory holds config.json, tokenizer files and weights"
        problem = Problem("model.config", f"cannot use {directory}: {exc}", where, hint)
        raise SpecError(problem) from exc
    shape = shape_from_config(name, config)
    return Checkpoint(
        path=directory,
        shape=dataclasses.replace(shape, stored=stored_weights(_tensors(directory), shape)),
        chat_template=template,
        digest=fingerprint(directory).digest,
    )


def _modelopt(directory: Path) -> dict[str, Any]:
    """What ModelOpt says beside ``config.json``: TensorRT-LLM goes by it first.

    (``tensorrt_llm/_torch/model_config.py`` @008e0af8, ``load_modelopt_quant_config``)
    """
    path = directory / "hf_quant_config.json"
    own = _object(path).get("quantization") if path.is_file() else None
    if not isinstance(own, dict) or not own.get("quant_algo"):
        return {}
    return {"quantization_config": {"quant_method": "modelopt", **own}}


# Reads that wait for a parallel file system at the same time, and what safetensors itself takes
# for the longest header (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
_READERS, _LONGEST_HEADER = 8, 100_000_000


def _tensors(directory: Path) -> dict[str, int]:
    """The bytes of each tensor, by the headers of its files alone.

    None of them where a file is missing or no safetensors file: the config tells sizes then,
    and the engine what is wrong.
    """
    index = directory / "model.safetensors.index.json"
    try:
        names = _object(index)["weight_map"].values() if index.is_file() else ["model.safetensors"]
        with ThreadPoolExecutor(_READERS) as pool:
            headers = list(pool.map(_header, (directory / name for name in sorted(set(names)))))
        return {name: size for header in headers for name, size in header.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _header(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"{path} is no safetensors file")
        found = json.loads(file.read(length))
    found.pop("__metadata__", None)
    ends = {name: facts["data_offsets"] for name, facts in found.items()}
    return {name: int(end) - int(start) for name, (start, end) in ends.items()}


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").is_file():
        return True
    tokenizer = directory / "tokenizer_config.json"
    return tokenizer.is_file() and bool(_object(tokenizer).get("chat_template"))


def _object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no JSON object")  # noqa: TRY004 - as json.loads
    return found
