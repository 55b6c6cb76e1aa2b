"""What a language model is made of, as its ``config.json`` tells it.

Only the text part counts: vision towers and next-token-prediction heads are no part of a
shape. Knows no files and no engines.

Key names and defaults are those of transformers (``src/transformers/models/<model_type>/
configuration_<model_type>.py``); tensors are those of ``modeling_<model_type>.py`` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.models.keys import Keys
from launcher.models.quantisation import Quantisation, quantisation

__all__ = [
    "Experts",
    "LatentAttention",
    "ModelShape",
    "SmallTensors",
    "StoredWeights",
    "shape_from_config",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The mixture-of-experts layers of a model.

    Attributes
    ----------
    count, per_token
        Routed experts of one layer, and how many of them answer a token.
    intermediate_size
        Width of one routed expert.
    layers
        Indices of the layers that have experts, ascending; the others are dense.
    shared, shared_intermediate_size
        Experts that answer every token, and the width of each.
    """

    count: int
    per_token: int
    intermediate_size: int
    layers: tuple[int, ...]
    shared: int = 0
    shared_intermediate_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2 and later).

    The cache holds ``kv_lora_rank + rope_head_dim`` elements for a token and layer, the same
    on every tensor-parallel rank. ``q_lora_rank`` is None where queries are not compressed.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    rope_head_dim: int
    nope_head_dim: int
    value_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallTensors:
    """The biases, norms and gates that an architecture has beside its matrices."""

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    expert_bias: bool = False
    router_bias: bool = False
    shared_gate: bool = False
    qk_norm: bool = False
    sinks: bool = False
    norms: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """Bytes of a checkpoint's tensors, without those of multi-token prediction.

    Attributes
    ----------
    layers
        Of each layer of the text model.
    embedding, head
        Of the vocabulary's two matrices; ``head`` is 0 where one serves both ends.
    rest
        Everything else: the last norm, and what sees and hears.
    """

    layers: tuple[int, ...]
    embedding: int
    head: int
    rest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of one model.

    Attributes
    ----------
    architecture
        ``model_type`` of the text model, such as ``llama`` or ``deepseek_v3``.
    classes
        ``architectures`` of the checkpoint, such as ``LlamaForCausalLM``: what engines go by.
    layers, attention_layers, dense_layers
        All layers; those with attention, and so with a KV cache; those with a dense MLP.
    head_dim
        Elements of one query head; with latent attention both of its parts together.
    intermediate_size
        Width of the MLP in dense layers.
    sliding_window
        Tokens that the other attention layers look back (or the chunk they stay in).
    full_attention_layers
        Attention layers that see the whole sequence.
    max_position_embeddings, torch_dtype
        None where the config does not tell.
    small_tensors
        None where the tensors of the architecture are not known.
    stored
        What the tensors of the checkpoint take; None where only the config is known.
    """

    name: str
    architecture: str
    layers: int
    attention_layers: int
    dense_layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    full_attention_layers: int
    sliding_window: int | None = None
    experts: Experts | None = None
    latent_attention: LatentAttention | None = None
    quantisation: Quantisation | None = None
    max_position_embeddings: int | None = None
    torch_dtype: str | None = None
    small_tensors: SmallTensors | None = None
    classes: tuple[str, ...] = ()
    stored: StoredWeights | None = None

    @property
    def parameters(self) -> int | None:
        """How many weights the text model has, or None where its tensors are not known.

        Equals the totals that the publishers' safetensors indices add up to, without
        multi-token-prediction layers and vision towers.
        """
        small = self.small_tensors
        if small is None:
            return None
        layer = _attention_parameters(self, small) + small.norms * self.hidden_size
        total = _embedding_parameters(self) + self.layers * layer
        total += self.dense_layers * _mlp_parameters(self, small)
        if self.experts is not None:
            total += len(self.experts.layers) * _expert_parameters(self, self.experts, small)
        return total

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to the KV cache, all layers and heads together.

        Layers with a sliding window stop growing at ``sliding_window`` tokens.
        """
        if (latent := self.latent_attention) is not None:
            return self.attention_layers * (latent.kv_lora_rank + latent.rope_head_dim)
        return 2 * self.attention_layers * self.kv_heads * self.head_dim


def _embedding_parameters(shape: ModelShape) -> int:
    matrices = 1 if shape.tied_embeddings else 2
    return matrices * shape.vocab_size * shape.hidden_size + shape.hidden_size


def _attention_parameters(shape: ModelShape, small: SmallTensors) -> int:
    if shape.latent_attention is not None:
        return _latent_attention_parameters(shape, shape.latent_attention, small)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return (
        2 * shape.hidden_size * (queries + keys)
        + small.qkv_bias * (queries + 2 * keys)
        + small.output_bias * shape.hidden_size
        + small.qk_norm * 2 * shape.head_dim
        + small.sinks * shape.heads
    )


def _latent_attention_parameters(
    shape: ModelShape, latent: LatentAttention, small: SmallTensors
) -> int:
    hidden, heads, rank = shape.hidden_size, shape.heads, latent.q_lora_rank
    queries = heads * (latent.nope_head_dim + latent.rope_head_dim)
    values = heads * latent.value_head_dim
    compressed = latent.kv_lora_rank + latent.rope_head_dim
    query = hidden * queries if rank is None else hidden * rank + rank + rank * queries
    key_value = latent.kv_lora_rank * (1 + heads * latent.nope_head_dim + values)
    bias = small.qkv_bias * ((rank or 0) + compressed) + small.output_bias * hidden
    return query + hidden * compressed + key_value + values * hidden + bias


def _mlp_parameters(shape: ModelShape, small: SmallTensors) -> int:
    bias = small.mlp_bias * (2 * shape.intermediate_size + shape.hidden_size)
    return 3 * shape.hidden_size * shape.intermediate_size + bias


def _expert_parameters(shape: ModelShape, experts: Experts, small: SmallTensors) -> int:
    hidden, width = shape.hidden_size, experts.intermediate_size
    expert = 3 * hidden * width + small.expert_bias * (2 * width + hidden)
    router = experts.count * (hidden + small.router_bias)
    shared = experts.shared * 3 * hidden * experts.shared_intermediate_size
    return experts.count * expert + router + shared + small.shared_gate * hidden


@dataclass(frozen=True, slots=True)
class _Family:
    """What a ``config.json`` of one ``model_type`` leaves unsaid."""

    tensors: SmallTensors | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


# `sliding_window_pattern: n` makes every n-th layer see everything, 0 none.
_ALL_SLIDE = {"sliding_window_pattern": 0}
_FAMILIES = {
    "llama": _Family(SmallTensors()),
    "mistral": _Family(SmallTensors(), _ALL_SLIDE),
    "mixtral": _Family(SmallTensors(), _ALL_SLIDE),
    "phi3": _Family(SmallTensors(), _ALL_SLIDE),
    "qwen2": _Family(SmallTensors(), {"qkv_bias": True, "use_sliding_window": False}),
    "qwen2_moe": _Family(
        SmallTensors(shared_gate=True), {"qkv_bias": True, "use_sliding_window": False}
    ),
    "qwen3": _Family(SmallTensors(qk_norm=True), {"use_sliding_window": False}),
    "qwen3_moe": _Family(SmallTensors(qk_norm=True), {"use_sliding_window": False}),
    "deepseek_v2": _Family(SmallTensors()),
    "deepseek_v3": _Family(SmallTensors(router_bias=True)),
    "kimi_k2": _Family(SmallTensors(router_bias=True)),
    "gemma3": _Family(
        SmallTensors(qk_norm=True, norms=4),
        {
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_oss": _Family(
        SmallTensors(sinks=True, expert_bias=True, router_bias=True),
        {"attention_bias": True, "sliding_window_pattern": 2},
    ),
    "llama4": _Family(SmallTensors(), {"n_shared_experts": 1, "no_rope_layer_interval": 4}),
}
# Where a config without `num_key_value_heads` means one for each query head.
_MULTI_HEAD = frozenset({"llama", "phi3"})


def shape_from_config(name: str, config: Mapping[str, Any]) -> ModelShape:
    """The shape of the model whose ``config.json`` holds ``config``.

    Any ``model_type`` with the usual keys is read. Of ``nemotron_h``, of a Nemotron whose layers
    differ (``block_configs``) and of types that are not known here parameters are not counted.

    Parameters
    ----------
    name
        What the shape is called, and errors call it.
    config
        Decoded ``config.json``. ModelOpt's ``hf_quant_config.json`` may be merged into it.

    Raises
    ------
    SpecError
        ``model.config``, one problem for each key that is missing or ill-typed.
    """
    keys = _text_keys(name, config)
    architecture = keys.text("model_type")
    if architecture is None:
        keys.lacks("model_type")
    architecture = (architecture or "").removesuffix("_text")
    family = _FAMILIES.get(architecture, _Family())
    keys.values = {**family.defaults, **_of_blocks(keys), **keys.values}
    outer = Keys(name, config)
    shape = replace(_shape(keys, architecture, family), classes=outer.items("architectures", str))
    keys.problems += outer.problems
    keys.refuse()
    return shape


def _text_keys(name: str, config: Mapping[str, Any]) -> Keys:
    """The keys of the text model, which multimodal checkpoints nest."""
    outer = Keys(name, config)
    inner = outer.section("text_config")
    if not inner.values:
        return outer
    shared = {key: outer.values[key] for key in _SHARED if key in outer}
    inner.values = {**shared, **inner.values}
    return inner


def _of_blocks(keys: Keys) -> dict[str, Any]:
    """The usual keys of a Nemotron whose layers were searched for: those of its widest layers.

    (nvidia/Llama-3_3-Nemotron-Super-49B-v1, ``modeling_decilm.py``)
    """
    attention, mlps = [], []
    for block in keys.items("block_configs", dict):
        inner = Keys(keys.name, block, "block_configs.")
        inner.problems = keys.problems
        attention.append(inner.section("attention").optional("n_heads_in_group"))
        mlps.append(inner.section("ffn"))
    groups = [group for group in attention if group]
    widths = [mlp.optional("intermediate_size") or _width_of(keys, mlp) for mlp in mlps]
    if not groups or not any(widths):
        return {}
    return {
        "num_key_value_heads": keys.number("num_attention_heads") // min(groups),
        "intermediate_size": max(widths),
        "layer_types": ["full_attention" if group else "none" for group in attention],
    }


def _width_of(keys: Keys, mlp: Keys) -> int:
    """Of an MLP, by its multiple of two thirds of the hidden size, in whole 256s."""
    factor = mlp.values.get("ffn_mult", 0)
    if not isinstance(factor, (int, float)) or not 0 <= factor < 1000:  # noqa: PLR2004
        mlp.wrong("ffn_mult", "a number below 1000")
        return 0
    return -(-int(2 * factor * keys.number("hidden_size") / 3) // 256) * 256


_SHARED = (
    "dtype",
    "model_type",
    "quantization",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
)


def _shape(keys: Keys, architecture: str, family: _Family) -> ModelShape:
    layers = keys.number("num_hidden_layers")
    kinds = _layer_kinds(keys, layers)
    attention_layers = kinds.count("attention") if kinds else layers
    experts = _experts(keys, layers, kinds)
    sparse = len(experts.layers) if experts else 0
    latent = _latent_attention(keys)
    heads = keys.number("num_attention_heads")
    hidden_size = keys.number("hidden_size")
    attention_layers, window, full = _windows(keys, attention_layers)
    multi_head = latent is not None or architecture in _MULTI_HEAD
    return ModelShape(
        name=keys.name,
        architecture=architecture,
        layers=layers,
        attention_layers=attention_layers,
        dense_layers=kinds.count("mlp") if kinds else layers - sparse,
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=keys.number("num_key_value_heads", default=heads if multi_head else None),
        head_dim=_head_dim(keys, latent, hidden_size, heads),
        # Llama 4 keeps the width of its experts under the common name.
        intermediate_size=keys.number("intermediate_size_mlp", "intermediate_size"),
        vocab_size=keys.number("vocab_size"),
        tied_embeddings=keys.flag("tie_word_embeddings"),
        full_attention_layers=full,
        sliding_window=window,
        experts=experts,
        latent_attention=latent,
        quantisation=quantisation(keys),
        max_position_embeddings=keys.optional("max_position_embeddings"),
        torch_dtype=keys.text("torch_dtype", "dtype"),
        small_tensors=_small_tensors(keys, family.tensors),
    )


def _head_dim(keys: Keys, latent: LatentAttention | None, hidden_size: int, heads: int) -> int:
    if latent is not None:
        return latent.nope_head_dim + latent.rope_head_dim
    derived = None if hidden_size % heads else hidden_size // heads
    return keys.number("head_dim", "attention_head_dim", default=derived)


def _small_tensors(keys: Keys, tensors: SmallTensors | None) -> SmallTensors | None:
    attention_bias = keys.flag("attention_bias")
    if tensors is None:
        return None
    return replace(
        tensors,
        qkv_bias=attention_bias or keys.flag("qkv_bias"),
        output_bias=attention_bias,
        mlp_bias=keys.flag("mlp_bias"),
    )


_KINDS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def _layer_kinds(keys: Keys, layers: int) -> tuple[str, ...]:
    """What each layer of a Nemotron-H holds; empty for models whose layers all attend."""
    pattern = keys.text("hybrid_override_pattern") or ""
    kinds = tuple(_KINDS.get(letter, letter) for letter in pattern)
    kinds = kinds or keys.items("layers_block_type", str)
    if kinds and (len(kinds) != layers or not set(kinds) <= set(_KINDS.values())):
        key = "hybrid_override_pattern" if pattern else "layers_block_type"
        keys.wrong(key, f"one known kind for each of {layers} layers")
    return kinds


def _experts(keys: Keys, layers: int, kinds: tuple[str, ...]) -> Experts | None:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    count = keys.number(*names, default=0, least=0)
    placed = tuple(i for i, kind in enumerate(kinds) if kind == "moe")
    placed = placed if kinds else _expert_layers(keys, layers)
    if count == 0 or not placed:
        return None
    width = keys.number("moe_intermediate_size", "intermediate_size")
    own = ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
    shared_width = keys.number(*own, default=width, least=0)
    one = int(shared_width > 0 and own[0] in keys)
    shared = keys.number("n_shared_experts", default=one, least=0)
    per_token = keys.number("num_experts_per_tok")
    if per_token > count:
        keys.wrong(
            "num_experts_per_tok", f"a whole number of at most {count}, the experts of a layer"
        )
    return Experts(
        count=count,
        per_token=per_token,
        intermediate_size=width,
        layers=placed,
        shared=shared,
        shared_intermediate_size=shared_width if shared else 0,
    )


def _expert_layers(keys: Keys, layers: int) -> tuple[int, ...]:
    """Layers with experts, by DeepSeek's keys, Qwen's and Llama 4's: no config mixes them."""
    first = keys.number("first_k_dense_replace", default=0, least=0)
    every = keys.number("moe_layer_freq", default=1)
    step = keys.number("decoder_sparse_step", "interleave_moe_layer_step", default=1)
    dense = keys.items("mlp_only_layers", int)
    listed = keys.items("moe_layers", int) or range(first, layers)
    return tuple(i for i in listed if i % every == 0 and (i + 1) % step == 0 and i not in dense)


def _latent_attention(keys: Keys) -> LatentAttention | None:
    if "kv_lora_rank" not in keys:
        return None
    return LatentAttention(
        q_lora_rank=keys.optional("q_lora_rank"),
        kv_lora_rank=keys.number("kv_lora_rank"),
        rope_head_dim=keys.number("qk_rope_head_dim"),
        nope_head_dim=keys.number("qk_nope_head_dim"),
        value_head_dim=keys.number("v_head_dim"),
    )


_ATTENDING = ("full_attention", "sliding_attention", "chunked_attention")


def _windows(keys: Keys, layers: int) -> tuple[int, int | None, int]:
    """Layers with attention, the window of some of them, and how many see everything."""
    kinds = keys.items("layer_types", str)[:layers]
    attending = sum(kind in _ATTENDING for kind in kinds) if kinds else layers
    window = keys.optional("attention_chunk_size", "sliding_window")
    if window is None or ("use_sliding_window" in keys and not keys.flag("use_sliding_window")):
        return attending, None, attending
    if kinds:
        return attending, window, kinds.count("full_attention")
    if "use_sliding_window" in keys:
        full = min(keys.number("max_window_layers", least=0), layers)
    elif no_rope := keys.items("no_rope_layers", int):
        full = no_rope.count(0)
    else:
        # A type that is not known here may not use its window: then all layers count as full.
        names = ("sliding_window_pattern", "no_rope_layer_interval")
        every = keys.number(*names, default=1, least=0)
        full = layers // every if every else 0
    return attending, window, full
