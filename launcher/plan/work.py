"""What a model reads and computes for a token, before it is cut.

Norms, biases and activations are not among it: `launcher.plan.constants.ACTIVATION_PASSES` stands
for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from launcher.models.shapes import ModelShape
from launcher.plan.constants import Gpu, Precision

__all__ = [
    "Matrices",
    "Part",
    "computed_in",
    "decode_attention_flops",
    "is_quantised",
    "kv_elements",
    "matrices",
    "prefill_attention_flops",
    "stored_bytes",
    "touched",
]

Part = Literal["attention", "mlp", "experts", "head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrices:
    """Weights of a model by what reads them, in elements of the whole model.

    Attributes
    ----------
    attention, mlp, head
        Every token passes all of them; ``mlp`` has the shared experts and routers too.
    expert
        One routed expert in each layer that has any; there are ``experts`` of them and
        ``per_token`` answer a token.
    """

    attention: int
    mlp: int
    head: int
    expert: int = 0
    experts: int = 0
    per_token: int = 0


def matrices(shape: ModelShape) -> Matrices:
    """The weights of ``shape`` by part; embeddings are looked up, not multiplied."""
    hidden = shape.hidden_size
    mlp = shape.dense_layers * 3 * hidden * shape.intermediate_size
    head = shape.vocab_size * hidden
    attention = shape.attention_layers * _attention(shape)
    if (moe := shape.experts) is None:
        return Matrices(attention=attention, mlp=mlp, head=head)
    layers = len(moe.layers)
    always = moe.count * hidden + moe.shared * 3 * hidden * moe.shared_intermediate_size
    return Matrices(
        attention=attention,
        mlp=mlp + layers * always,
        head=head,
        expert=layers * 3 * hidden * moe.intermediate_size,
        experts=moe.count,
        per_token=moe.per_token,
    )


def _attention(shape: ModelShape) -> int:
    hidden, heads = shape.hidden_size, shape.heads
    if (latent := shape.latent_attention) is None:
        return 2 * hidden * shape.head_dim * (heads + shape.kv_heads)
    queries = heads * (latent.nope_head_dim + latent.rope_head_dim)
    rank = latent.q_lora_rank
    query = hidden * queries if rank is None else rank * (hidden + queries)
    values = heads * latent.value_head_dim
    key_value = latent.kv_lora_rank * (heads * latent.nope_head_dim + values)
    compressed = hidden * (latent.kv_lora_rank + latent.rope_head_dim)
    return query + compressed + key_value + values * hidden


def touched(model: Matrices, tokens: float) -> float:
    """How many of a layer's experts ``tokens`` reach, if each takes its own at random."""
    if not model.experts:
        return 0.0
    return model.experts * (1 - math.pow(1 - model.per_token / model.experts, tokens))


def stored_bytes(shape: ModelShape, part: Part) -> float:
    """Bytes of one weight of ``part``, with its scales.

    The head stays as it is in all formats, and all but the experts in MXFP4 (gpt-oss). Scales
    are a byte for a group in MXFP4 and NVFP4 (OCP Microscaling Formats 1.0; NVIDIA
    TensorRT-Model-Optimizer), two and half a zero point in AWQ and GPTQ, four for a block.
    """
    plain = 4.0 if shape.torch_dtype == "float32" else 2.0
    stored = shape.quantisation
    if not is_quantised(shape, part) or stored is None or stored.bits is None:
        return plain
    weight = stored.bits / 8
    if stored.block_size:
        return weight + 4 / stored.block_size**2
    if stored.group_size:
        return weight + (1 if "FP4" in stored.algorithm else 2.5) / stored.group_size
    return weight


def is_quantised(shape: ModelShape, part: Part) -> bool:
    """Whether the weights of ``part`` are stored in fewer bits than they were trained in."""
    stored = shape.quantisation
    if stored is None or part == "head":
        return False
    return part == "experts" or "MXFP4" not in stored.algorithm


def computed_in(shape: ModelShape, part: Part, gpu: Gpu) -> Precision:
    """In what the products with ``part`` are computed on ``gpu``.

    Formats of weights alone (AWQ, GPTQ) and those that the GPU has no units for are widened to
    BF16. MXFP4 meets activations of eight bits where there are units for four.
    """
    stored = shape.quantisation
    if stored is None or not is_quantised(shape, part) or "W4A16" in stored.algorithm:
        return "bf16"
    if "FP8" in stored.algorithm:
        return "fp8" if "fp8" in gpu.flops else "bf16"
    if "FP4" in stored.algorithm and "fp4" in gpu.flops:
        return "fp8" if "MXFP4" in stored.algorithm else "fp4"
    return "bf16"


def _layers_seen(shape: ModelShape, context: float) -> tuple[tuple[int, float], ...]:
    """How many attention layers look back at how many tokens."""
    full = shape.full_attention_layers
    window = context if shape.sliding_window is None else min(context, shape.sliding_window)
    return (full, context), (shape.attention_layers - full, window)


def kv_elements(shape: ModelShape, context: float) -> float:
    """Elements of the KV cache that a token reads after ``context`` tokens, all layers."""
    each = shape.kv_elements_per_token / shape.attention_layers
    return each * sum(layers * seen for layers, seen in _layers_seen(shape, context))


def decode_attention_flops(shape: ModelShape, context: float) -> float:
    """Operations of one token's attention to ``context`` tokens, all layers and heads.

    Latent attention works on the compressed cache here (DeepSeek-V2, arXiv 2405.04434, 2.1).
    """
    seen = sum(layers * tokens for layers, tokens in _layers_seen(shape, context))
    if (latent := shape.latent_attention) is not None:
        return 2 * shape.heads * (2 * latent.kv_lora_rank + latent.rope_head_dim) * seen
    return 4 * shape.heads * shape.head_dim * seen


def prefill_attention_flops(shape: ModelShape, prompt: float) -> float:
    """Operations of the attention of a whole prompt of ``prompt`` tokens, masked half left out."""
    width = 2 * shape.head_dim
    if (latent := shape.latent_attention) is not None:
        width = shape.head_dim + latent.value_head_dim
    pairs = sum(layers * seen * (prompt - seen / 2) for layers, seen in _layers_seen(shape, prompt))
    return 2 * shape.heads * width * pairs
