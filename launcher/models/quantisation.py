"""How a checkpoint's weights are stored, as its config tells it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from launcher.models.keys import Keys

__all__ = ["Quantisation", "quantisation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How the weights of the linear layers are stored.

    Attributes
    ----------
    method
        ``quant_method`` of the checkpoint: ``fp8``, ``awq``, ``gptq``, ``mxfp4``, ``modelopt`` …
    algorithm
        ModelOpt's ``quant_algo``, else ``method``, in capitals: ``FP8``, ``W4A16_AWQ`` …
    bits
        Bits of one weight without its scales, or None where the config does not tell.
    group_size
        Weights of one row that share a scale (AWQ, GPTQ, MXFP4, NVFP4).
    block_size
        Edge of the square of weights that shares a scale (block-scaled FP8). Each shard of a
        weight must be whole blocks.
    excluded
        Modules that stay as they were, as the config has them: names, the beginnings of names,
        globs (ModelOpt) or ``re:`` and a regular expression (compressed-tensors).
    kv_bits
        Bits of one element of the KV cache, where the checkpoint decides that.
    """

    method: str
    bits: int | None
    algorithm: str = ""
    group_size: int | None = None
    block_size: int | None = None
    excluded: tuple[str, ...] = ()
    kv_bits: int | None = None


_BITS = re.compile(r"(?:^W|FP|INT)(\d+)")
# FP8_PB_WO is ModelOpt's name of what TensorRT-LLM calls FP8_BLOCK_SCALES
# (tensorrt_llm/quantization/mode.py); both have blocks of 128 x 128.
_BLOCKS = {"FP8_PB_WO": 128, "FP8_BLOCK_SCALES": 128}
# OCP Microscaling Formats 1.0; NVIDIA TensorRT-Model-Optimizer, nvfp4_tensor.py
_GROUPS = {"MXFP4": 32, "NVFP4": 16}
# By format: fbgemm_fp8, awq and mxfp4; compressed-tensors; ModelOpt; block-scaled FP8.
_EXCLUDED = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")


def quantisation(keys: Keys) -> Quantisation | None:
    """How the weights of the model with the config ``keys`` are stored; None where plainly."""
    own = keys.section("quantization_config")
    own = own if own.values else keys.section("quantization")
    if not own.values:
        return None
    method = own.text("quant_method") or ("modelopt" if "quant_algo" in own else "unknown")
    algorithm = (own.text("quant_algo") or method).upper()
    weights = _weight_scheme(own)
    digits = _BITS.search(algorithm)
    blocks = own.items("weight_block_size", int) or weights.items("block_structure", int)
    group = own.values.get("group_size", weights.values.get("group_size"))
    # GPTQ writes -1 where one scale serves a whole row.
    group = None if group == -1 else own.optional("group_size") or weights.optional("group_size")
    default_group = next((n for key, n in _GROUPS.items() if key in algorithm), None)
    return Quantisation(
        method=method,
        bits=own.optional("bits")
        or weights.optional("num_bits")
        or (int(digits[1]) if digits else None),
        algorithm=algorithm,
        group_size=group or default_group,
        block_size=math.lcm(*blocks) if blocks else _BLOCKS.get(algorithm),
        excluded=tuple(name for key in _EXCLUDED for name in own.items(key, str)),
        kv_bits=_kv_bits(own),
    )


def _kv_bits(own: Keys) -> int | None:
    """What ModelOpt's file and compressed-tensors say of the KV cache."""
    scheme = own.values.get("kv_cache_scheme")
    if scheme is not None and isinstance(scheme, dict):
        return own.section("kv_cache_scheme").optional("num_bits")
    digits = _BITS.search(own.text("kv_cache_quant_algo") or "")
    return int(digits[1]) if digits else None


def _weight_scheme(own: Keys) -> Keys:
    """``weights`` of the first group, where compressed-tensors and ModelOpt describe them."""
    groups = own.section("config_groups")
    return groups.section(next(iter(groups.values), "")).section("weights")
