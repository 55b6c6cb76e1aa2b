"""What the weights of a model take on one GPU, layer by layer.

How each tensor is cut is the engines' common way, which is Megatron-LM's (arXiv 1909.08053): the
first matrices of attention and MLP by columns, the last ones by rows. Not cut at all are norms,
routers and the low-rank projections of latent attention (vLLM ``model_executor/models/
deepseek_v2.py``, ``ReplicatedLinear``; TensorRT-LLM ``_torch/modules/attention.py``, ``MLA``).
KV heads are repeated where there are fewer of them than ranks.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launcher.models.quantisation import Quantisation
from launcher.models.shapes import Experts, LatentAttention, ModelShape, SmallTensors, StoredWeights

__all__ = [
    "Slice",
    "end_bytes",
    "layer_bytes",
    "sizes_known",
    "stored_weights",
    "weight_bytes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one GPU holds of a layer.

    Attributes
    ----------
    tp
        Parts of everything but routed experts.
    ep, moe_tp
        Groups of routed experts, and parts of each of them.
    plain_bits
        Bits of a weight that is not quantised.
    loaded
        As an engine keeps it: with padded experts and the matrices that it derives.
    """

    tp: int = 1
    ep: int = 1
    moe_tp: int = 1
    plain_bits: int = 16
    loaded: bool = True


def sizes_known(shape: ModelShape) -> bool:
    """Whether `layer_bytes` is more than a guess: the tensors were seen, or the config tells all.

    Of layers that keep a state instead of a KV cache nothing is known, not even with tensors.
    """
    if shape.attention_layers < shape.layers:
        return False
    how = shape.quantisation
    told = shape.small_tensors is not None and (how is None or how.bits is not None)
    return told or shape.stored is not None


def weight_bytes(shape: ModelShape) -> int:
    """Bytes of all weights as they are stored; 0 where they are not known."""
    if not sizes_known(shape):
        return 0
    whole = Slice(loaded=False)
    return sum(layer_bytes(shape, whole)) + sum(end_bytes(shape, whole, joined=True))


@functools.lru_cache(maxsize=512)
def layer_bytes(shape: ModelShape, part: Slice) -> tuple[int, ...]:
    """Bytes of each layer on one GPU, its scales included.

    Where the checkpoint's tensors were seen their size counts, and only how they are cut is
    computed.
    """
    layer = functools.cache(functools.partial(_layer, shape))
    as_stored = Slice(plain_bits=_stored_bits(shape), loaded=False)
    found = []
    for index, kind in enumerate(_kinds(shape)):
        computed, derived = layer(kind, part)
        if shape.stored is not None:
            computed *= shape.stored.layers[index] / layer(kind, as_stored)[0]
        found.append(round(computed + derived))
    return tuple(found)


def end_bytes(shape: ModelShape, part: Slice, *, joined: bool) -> tuple[int, int]:
    """Bytes on one GPU of what is before the first layer, and of what is behind the last one.

    Parameters
    ----------
    joined
        Both ends are on the same GPU, where one matrix may serve them.

    Notes
    -----
    vLLM pads the vocabulary to 64 (``vocab_parallel_embedding.py``), TensorRT-LLM to ``tp``.
    """
    shared = shape.tied_embeddings and joined
    rows = -(-shape.vocab_size // 64) * 64
    matrix = -(-rows // part.tp) * shape.hidden_size * part.plain_bits / 8
    if (stored := shape.stored) is None:
        head = matrix * _bits(shape, "lm_head", part.plain_bits) / part.plain_bits
        return round(matrix), round(head * (not shared) + shape.hidden_size * part.plain_bits / 8)
    scale = matrix / (shape.vocab_size * shape.hidden_size * _stored_bits(shape) / 8)
    head = stored.embedding if shape.tied_embeddings else stored.head
    return round(stored.embedding * scale + stored.rest), round(head * scale * (not shared))


_BITS = {"float32": 32, "float64": 64}


def _stored_bits(shape: ModelShape) -> int:
    return _BITS.get(shape.torch_dtype or "", 16)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Whether a layer has experts, and the bits of its weights with their share of a scale.

    None is what is not quantised.
    """

    sparse: bool
    attention: float | None
    mlp: float | None
    experts: float | None


@functools.lru_cache(maxsize=64)
def _kinds(shape: ModelShape) -> tuple[_Kind, ...]:
    sparse = frozenset(shape.experts.layers if shape.experts else ())
    same = not (shape.quantisation and shape.quantisation.excluded)
    kind = functools.cache(functools.partial(_kind, shape))
    return tuple(kind(0 if same else index, index in sparse) for index in range(shape.layers))


def _kind(shape: ModelShape, index: int, sparse: bool) -> _Kind:  # noqa: FBT001 - cached
    base = f"model.layers.{index}"
    experts = "block_sparse_moe" if shape.architecture == "mixtral" else "mlp"
    # OpenAI's checkpoints quantise nothing else, which the format does not say.
    only_experts = shape.quantisation is not None and shape.quantisation.method == "mxfp4"
    return _Kind(
        sparse=sparse,
        attention=None if only_experts else _quantised(shape, f"{base}.self_attn.o_proj"),
        mlp=None if only_experts else _quantised(shape, f"{base}.mlp.down_proj"),
        experts=_quantised(shape, f"{base}.{experts}.experts.0.down_proj"),
    )


def _bits(shape: ModelShape, module: str, plain: int) -> float:
    # Only compressed-tensors and ModelOpt quantise heads, and then say what they leave out.
    how = shape.quantisation
    if how is None or how.method not in {"compressed-tensors", "modelopt"} or not how.excluded:
        return plain
    return _quantised(shape, module) or plain


def _quantised(shape: ModelShape, module: str) -> float | None:
    how = shape.quantisation
    if how is None or how.bits is None or _is_excluded(module, how.excluded):
        return None
    return how.bits + _scale_bits(how)


# A group's scale is 8 bits in the two formats of 4-bit floats, else 16; AWQ and GPTQ add a zero.
_SCALE_BITS = {"MXFP4": 8, "NVFP4": 8}


def _scale_bits(how: Quantisation) -> float:
    if how.block_size:
        return 32 / how.block_size**2
    if not how.group_size:
        return 0.0
    named = next((bits for name, bits in _SCALE_BITS.items() if name in how.algorithm), None)
    zero = how.bits or 0 if how.method in {"awq", "gptq"} else 0
    return (16 + zero if named is None else named) / how.group_size


def _is_excluded(module: str, patterns: Iterable[str]) -> bool:
    return any(_matches(module, pattern) for pattern in patterns)


def _matches(module: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if "*" in pattern:
        return any(fnmatch.fnmatchcase(module, p) for p in (pattern, f"{pattern}.*"))
    return f".{pattern}." in f".{module}."


def _layer(shape: ModelShape, kind: _Kind, part: Slice) -> tuple[float, float]:
    """Bytes of the layer's tensors, and of those that the engine derives from them."""
    small = shape.small_tensors or SmallTensors()
    attention, derived = _attention(shape, small, kind.attention, part)
    total = attention + small.norms * shape.hidden_size * part.plain_bits / 8
    if kind.sparse and shape.experts is not None:
        total += _experts(shape, shape.experts, small, kind, part)
    elif shape.dense_layers:
        bias = small.mlp_bias * (2 * shape.intermediate_size / part.tp + shape.hidden_size)
        weights = 3 * shape.hidden_size * shape.intermediate_size / part.tp
        total += (weights * (kind.mlp or part.plain_bits) + bias * part.plain_bits) / 8
    return total, derived if part.loaded else 0.0


def _attention(
    shape: ModelShape, small: SmallTensors, bits: float | None, part: Slice
) -> tuple[float, float]:
    if shape.latent_attention is not None:
        return _latent(shape, shape.latent_attention, small, bits, part)
    queries = shape.heads * shape.head_dim / part.tp
    keys = shape.kv_heads * shape.head_dim / min(part.tp, shape.kv_heads)
    plain = small.qkv_bias * (queries + 2 * keys) + small.output_bias * shape.hidden_size
    plain += small.qk_norm * 2 * shape.head_dim + small.sinks * shape.heads / part.tp
    matrices = 2 * shape.hidden_size * (queries + keys)
    return (matrices * (bits or part.plain_bits) + plain * part.plain_bits) / 8, 0.0


def _latent(
    shape: ModelShape,
    latent: LatentAttention,
    small: SmallTensors,
    bits: float | None,
    part: Slice,
) -> tuple[float, float]:
    hidden, heads, rank = shape.hidden_size, shape.heads / part.tp, latent.q_lora_rank
    queries = heads * (latent.nope_head_dim + latent.rope_head_dim)
    compressed = latent.kv_lora_rank + latent.rope_head_dim
    up = latent.kv_lora_rank * heads * (latent.nope_head_dim + latent.value_head_dim)
    matrices = hidden * queries if rank is None else (hidden + queries) * rank
    matrices += hidden * compressed + up + heads * latent.value_head_dim * hidden
    plain = latent.kv_lora_rank + (rank or 0)
    plain += small.qkv_bias * ((rank or 0) + compressed) + small.output_bias * hidden
    # Decoding multiplies by the two halves of `up` on their own, which engines keep beside it
    # (vLLM mla_attention.py, W_UK_T and W_UV; TensorRT-LLM k_b_proj_trans and v_b_proj).
    total = (matrices * (bits or part.plain_bits) + plain * part.plain_bits) / 8
    return total, up * part.plain_bits / 8


# Kernels for MXFP4 want whole tiles (vLLM fused_moe/oracle/mxfp4.py,
# mxfp4_round_up_hidden_size_and_intermediate_size, Marlin's).
_TILES = (256, 128)


def _experts(
    shape: ModelShape, experts: Experts, small: SmallTensors, kind: _Kind, part: Slice
) -> float:
    hidden, width = float(shape.hidden_size), experts.intermediate_size / part.moe_tp
    count = experts.count / part.ep
    bias = small.expert_bias * count * (2 * width + hidden)
    router = experts.count * (shape.hidden_size + small.router_bias)
    plain = bias + router + small.shared_gate * shape.hidden_size
    shared = 3 * hidden * experts.shared * experts.shared_intermediate_size / part.tp
    if part.loaded and shape.quantisation is not None and shape.quantisation.method == "mxfp4":
        hidden, width = (
            -(-size // tile) * tile for size, tile in zip((hidden, width), _TILES, strict=True)
        )
    routed = 3 * hidden * width * count * (kind.experts or part.plain_bits)
    return (routed + shared * (kind.mlp or part.plain_bits) + plain * part.plain_bits) / 8


_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_OTHER_SENSES = re.compile(r"vision|visual|audio|multi_modal")


def stored_weights(tensors: Mapping[str, int], shape: ModelShape) -> StoredWeights | None:
    """The bytes of ``tensors``, which are by name; None where these are not the usual names.

    Layers behind the last one predict further tokens, and are not loaded without being asked
    for.
    """
    layers, embedding, head, rest = [0] * shape.layers, 0, 0, 0
    for name, size in tensors.items():
        found = _LAYER.search(name)
        if _OTHER_SENSES.search(name):
            rest += size
        elif found is not None:
            if int(found[1]) < shape.layers:
                layers[int(found[1])] += size
        elif "embed" in name:
            embedding += size
        elif "lm_head" in name:
            head += size
        else:
            rest += size
    if not all(layers) or not embedding or not (head or shape.tied_embeddings):
        return None
    return StoredWeights(layers=tuple(layers), embedding=embedding, head=head, rest=rest)
