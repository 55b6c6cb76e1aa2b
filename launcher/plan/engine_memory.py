"""How the engines divide the memory of a GPU, as their options say.

The same word means different things to them. vLLM's ``gpu_memory_utilization`` is a share of the
whole GPU, from which weights and all that a step needs are taken first
(``v1/worker/gpu_worker.py``, ``determine_available_memory``; ``v1/worker/utils.py``,
``request_memory``). TensorRT-LLM's ``free_gpu_memory_fraction`` is a share of what weights and a
step leave free (``_torch/pyexecutor/_util.py``, ``_cal_max_memory``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.models.shapes import ModelShape
from launcher.plan.trtllm_options import with_defaults

__all__ = ["ENGINES", "GIB", "EngineMemory", "cuda_bytes", "engine_memory"]

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """What an engine does with the memory of a GPU.

    Attributes
    ----------
    fraction, of_free
        The share that the KV cache and, unless ``of_free``, everything else may take.
    kv_limit_bytes
        Size of the KV cache where that is given; ``exactly`` where it is not only an upper bound.
    kv_limit_tokens
        The same in tokens, as an upper bound.
    kv_bits, plain_bits
        Of one element of the KV cache, and of a weight that is not quantised.
    block
        Tokens of one block of the KV cache.
    windows
        Whether layers with a sliding window keep no more than that.
    pooled
        Layers with a window share blocks with the others: in groups of as many layers, of which
        the last is filled up; and while a prompt is read they hold a whole step beside the window.
    tokens, sequences, length
        Largest step in tokens and in sequences; the longest sequence, None for the model's.
    whole_length
        The engine does not start unless the KV cache holds one sequence of that length.
    reserve_bytes
        CUDA's context, libraries and workspaces; with ``peers_bytes`` more beside other GPUs.
    graphs_bytes
        CUDA graphs.
    logit_bytes
        Bytes for each logit of a full step while tokens are drawn.
    draws_inside
        Whether graphs and logits are counted before the KV cache is sized.
    outside_share
        Of the whole GPU, what the engine takes beyond its own count.
    layers
        How many layers each stage gets, where options say so.
    uneven_first
        Whether the first stages get the layers that are left over, or those before the last one.
    attention_dp
        Each rank of a TP group holds all of attention, and the sequences that it attends for.
    """

    fraction: float
    of_free: bool
    kv_bits: float
    plain_bits: int
    block: int
    windows: bool
    tokens: int
    sequences: int
    length: int | None
    whole_length: bool
    reserve_bytes: int
    peers_bytes: int
    graphs_bytes: int
    logit_bytes: int
    draws_inside: bool
    outside_share: float
    uneven_first: bool
    kv_limit_bytes: int | None = None
    exactly: bool = False
    kv_limit_tokens: int | None = None
    layers: tuple[int, ...] = ()
    attention_dp: bool = False
    pooled: bool = False


def engine_memory(
    engine: str,
    shape: ModelShape,
    options: Mapping[str, Any],
    *,
    gpu_bytes: int,
    gpu_model: str = "",
    env: Mapping[str, str] | None = None,
) -> EngineMemory:
    """What ``engine`` does with ``options`` on a GPU that has ``gpu_bytes``.

    Parameters
    ----------
    engine
        One of `ENGINES`.
    gpu_bytes
        As `cuda_bytes` has it.
    gpu_model
        As the site file has it: vLLM's defaults depend on it.
    env
        The engine's environment: vLLM takes the layers of stages from there.
    """
    return ENGINES[engine](shape, options, gpu_bytes, gpu_model.lower(), env or {})


# Of the size that a GPU is sold with, which counts GiB, what CUDA says that it has: H100 79.1 of
# 80, H200 139.8 of 141, A100 79.2 of 80 and 39.4 of 40, RTX 4090 23.6 of 24. Cards without HBM
# give a sixteenth to error correction: A40 44.35 and L40S 44.5 of 48.
_USABLE, _USABLE_WITH_ECC = 0.985, 0.92
_WITH_ECC = ("a40", "l40", "l4", "a10", "a6000", "a5000", "a4000", "a2", "a16")
# Sold as 192, 192 and 288 by some: nvidia-smi has 183359, 189471 and 275040 MiB, and CUDA 0.4 %
# less than nvidia-smi (on an H200).
_MOST_GIB = {"b200": 178.3, "gb200": 184.3, "b300": 267.5, "gb300": 267.5}


def cuda_bytes(model: str, sold_bytes: int) -> int:
    """What CUDA reports as the whole memory of a GPU that is sold with ``sold_bytes``.

    ``80GB`` of a data sheet are 80 GiB, and ``80GiB`` of a site file are the same.

    >>> round(cuda_bytes("h100", 80 * 10**9) / GIB, 1)
    78.8
    """
    gibibytes = sold_bytes / GIB if sold_bytes % GIB == 0 else sold_bytes / 10**9
    name = model.lower().replace("rtx-", "").replace("rtx", "")
    has_ecc = name.startswith(_WITH_ECC) and "a100" not in name
    usable = gibibytes * (_USABLE_WITH_ECC if has_ecc else _USABLE)
    most = next((most for known, most in _MOST_GIB.items() if name.startswith(known)), usable)
    return int(min(usable, most) * GIB)


# Of `dtype` and `torch_dtype`.
_PLAIN_BITS: Mapping[str, int] = {"float32": 32, "float": 32}


def _kv_bits(shape: ModelShape, asked: object, plain_bits: int) -> float:
    """Bits of an element: as asked for, else as the checkpoint says, else as is computed."""
    word = str(asked or "auto").lower()
    if word != "auto":
        # An NVFP4 element shares eight bits of scale with fifteen others.
        named = {"fp8": 8, "int8": 8, "nvfp4": 4.5, "float32": 32}
        return next((bits for name, bits in named.items() if word.startswith(name)), 16)
    own = shape.quantisation.kv_bits if shape.quantisation else None
    return {None: plain_bits, 4: 4.5}.get(own, own or plain_bits)


def _count(options: Mapping[str, Any], name: str) -> int | None:
    """A whole number above 0; None where there is none, of which others complain if they must."""
    value = options.get(name)
    return value if type(value) is int and value > 0 else None


def _share(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    return default


def _counts(values: object) -> tuple[int, ...]:
    listed = values if isinstance(values, (list, tuple)) else ()
    return tuple(value for value in listed if type(value) is int)


def _tensorrt_llm(
    shape: ModelShape,
    options: Mapping[str, Any],
    gpu_bytes: int,  # noqa: ARG001 - the others' parameters
    gpu_model: str,  # noqa: ARG001 - the same
    env: Mapping[str, str],  # noqa: ARG001 - the same
) -> EngineMemory:
    given = with_defaults(options)
    own = given["kv_cache_config"]
    cache = own if isinstance(own, Mapping) else {}
    dtype = given.get("dtype", "auto")
    plain_bits = _PLAIN_BITS.get(str(shape.torch_dtype if dtype == "auto" else dtype), 16)
    return EngineMemory(
        # 0.9 where its options were replaced as a whole.
        fraction=_share(cache, "free_gpu_memory_fraction", 0.9),
        of_free=True,
        kv_bits=_kv_bits(shape, cache.get("dtype"), plain_bits),
        plain_bits=plain_bits,
        block=_count(cache, "tokens_per_block") or 32,
        # Only where the windows are given are the others' blocks freed.
        windows=bool(cache.get("max_attention_window")),
        tokens=_count(given, "max_num_tokens") or 8192,
        sequences=_count(given, "max_batch_size") or 2048,
        length=_count(given, "max_seq_len"),
        whole_length=False,
        # Measured by aiconfigurator: about 0.55 GiB (sdk/backends/trtllm_backend.py, which then
        # takes 3.5); CUDA's context and cuBLAS are not in that. NCCL: 0.34 to 0.39 GiB there.
        reserve_bytes=3 * GIB // 2,
        peers_bytes=2 * GIB // 5,
        graphs_bytes=GIB if given["cuda_graph_config"] is not None else 0,
        # BF16 and FP32, and their softmax (_torch/pyexecutor/sampler.py).
        logit_bytes=10,
        draws_inside=False,
        outside_share=0.0,
        uneven_first=True,
        kv_limit_bytes=_count(cache, "max_gpu_total_bytes"),
        kv_limit_tokens=_count(cache, "max_tokens"),
        layers=_counts(given.get("pp_partition")),
        attention_dp=given.get("enable_attention_dp") is True,
    )


_CHUNKS = "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE"


def _vllm(
    shape: ModelShape,
    options: Mapping[str, Any],
    gpu_bytes: int,
    gpu_model: str,
    env: Mapping[str, str],
) -> EngineMemory:
    large = gpu_bytes >= 70 * GIB and "a100" not in gpu_model
    # engine/arg_utils.py, get_batch_defaults, as its class LLM asks, whose defaults a job takes.
    tokens = _count(options, "max_num_batched_tokens") or (16384 if large else 8192)
    sequences = _count(options, "max_num_seqs") or (1024 if large else 256)
    size = _count(options, "kv_cache_memory_bytes")
    partition = env.get("VLLM_PP_LAYER_PARTITION", "")
    return EngineMemory(
        # config/cache.py: 0.92 from 0.20 on, 0.9 before it.
        fraction=_share(options, "gpu_memory_utilization", 0.92),
        of_free=False,
        kv_bits=_kv_bits(shape, options.get("kv_cache_dtype"), 16),
        # `auto` lowers float32 to 16 bits (config/model.py, _resolve_auto_dtype).
        plain_bits=_PLAIN_BITS.get(str(options.get("dtype")), 16),
        block=_count(options, "block_size") or 16,
        # Not where layers stay in a chunk (config/vllm.py, attention_chunk_size).
        windows=not options.get("disable_hybrid_kv_cache_manager")
        and (shape.architecture != "llama4" or env.get(_CHUNKS) == "1"),
        tokens=tokens,
        sequences=min(sequences, tokens),
        length=_count(options, "max_model_len"),
        # -1 shortens it to what fits (v1/core/kv_cache_utils.py, _auto_fit_max_model_len).
        whole_length=options.get("max_model_len") != -1,
        # Counted from when CUDA and NCCL are up (gpu_worker.py, init_device): seen 0.02 to 0.26 GiB
        # on one GPU, 0.95 to 1.4 beside others; docs/reference/memory.md has the logs.
        reserve_bytes=3 * GIB // 10,
        peers_bytes=6 * GIB // 5,
        # Estimated from 0.20 on (gpu_worker.py, profile_cudagraph_memory): 0.2 to 0.6 GiB for
        # dense models, more with experts.
        graphs_bytes=0 if options.get("enforce_eager") else 3 * GIB // 4,
        # BF16 and FP32, their softmax and the noise that draws (v1/sample/sampler.py; v1/sample/
        # ops/topk_topp_sampler.py, forward_native). It was 36 while top-k sorted, up to 0.19.
        logit_bytes=14,
        draws_inside=True,
        # CUDA's context, NCCL and what the allocator keeps. Seen: 2.2 to 4.4 %.
        outside_share=0.045,
        uneven_first=False,
        kv_limit_bytes=size,
        exactly=size is not None,
        layers=_counts([int(part) for part in partition.split(",") if part.strip().isdecimal()]),
        # v1/core/kv_cache_utils.py, _get_kv_cache_groups_uniform_page_size;
        # v1/kv_cache_interface.py, SlidingWindowSpec.max_admission_blocks_per_request
        pooled=True,
    )


def _transformers(
    shape: ModelShape,
    options: Mapping[str, Any],
    gpu_bytes: int,  # noqa: ARG001 - the others' parameters
    gpu_model: str,  # noqa: ARG001 - the same
    env: Mapping[str, str],  # noqa: ARG001 - the same
) -> EngineMemory:
    asked = options.get("dtype", "auto")
    plain_bits = _PLAIN_BITS.get(str(shape.torch_dtype if asked == "auto" else asked), 16)
    return EngineMemory(
        # launcher/engines/continuous.py; cohorts take their cache as they grow.
        fraction=_share(options, "cache_memory", 0.7),
        of_free=True,
        kv_bits=plain_bits,
        plain_bits=plain_bits,
        block=32,
        windows=False,
        tokens=8192,
        sequences=_count(options, "max_batch_size") or 256,
        length=None,
        whole_length=False,
        reserve_bytes=GIB,
        peers_bytes=2 * GIB // 5,
        graphs_bytes=0,
        logit_bytes=10,
        draws_inside=False,
        outside_share=0.0,
        uneven_first=True,
    )


ENGINES: Mapping[str, Callable[..., EngineMemory]] = {
    "tensorrt-llm": _tensorrt_llm,
    "transformers": _transformers,
    "vllm": _vllm,
}
"""The engines that have a KV cache."""
