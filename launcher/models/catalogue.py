"""Models that can be planned without a checkpoint at hand, by their publishers' names.

The values are those of each publisher's ``config.json`` on the Hugging Face hub: meta-llama,
mistralai, Qwen, openai, google, microsoft, HuggingFaceTB, deepseek-ai and, of what ends in
``-fp8``, nvidia. What differs between the base and the instruct version of a model (its longest
context) is absent. Gemma 3 has the vocabulary of its tokenizer, without the 64 image tokens of
the multimodal checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from launcher.models.shapes import ModelShape, shape_from_config

__all__ = ["BUILTIN", "find_builtin"]

_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)
_LLAMA_4 = {
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 8192,
}
_GPT_OSS = {
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    },
}
_DEEPSEEK = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
_DEEPSEEK_V3 = _DEEPSEEK | {
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
# nvidia/Llama-3.1-405B-Instruct-FP8, hf_quant_config.json. Meta's own is an fbgemm_fp8.
_MODELOPT_FP8 = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}
# `architectures` of a publisher's config, by `model_type`.
_CLASSES = {
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gpt_oss": "GptOssForCausalLM",
    "llama": "LlamaForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def _mixture(count: int, per_token: int, width: int | None = None) -> dict[str, Any]:
    """Experts in every layer, as wide as ``intermediate_size`` where no width is given."""
    keys = {"num_experts": count, "num_experts_per_tok": per_token}
    return keys if width is None else keys | {"moe_intermediate_size": width}


# name, model_type, layers, hidden, heads, KV heads, head, MLP, vocabulary, other keys
_Row = tuple[str, str, int, int, int, int, int, int, int, Mapping[str, Any]]
_ROWS: tuple[_Row, ...] = (
    ("llama-3.1-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, {}),
    ("llama-3.1-70b", "llama", 80, 8192, 64, 8, 128, 28672, 128256, {}),
    ("llama-3.3-70b", "llama", 80, 8192, 64, 8, 128, 28672, 128256, {}),
    ("llama-3.1-405b", "llama", 126, 16384, 128, 8, 128, 53248, 128256, {}),
    ("llama-3.1-405b-fp8", "llama", 126, 16384, 128, 8, 128, 53248, 128256, _MODELOPT_FP8),
    ("smollm2-135m", "llama", 30, 576, 9, 3, 64, 1536, 49152, {"tie_word_embeddings": True}),
    ("mistral-7b-v0.1", "mistral", 32, 4096, 32, 8, 128, 14336, 32000, {"sliding_window": 4096}),
    ("mistral-7b-v0.3", "mistral", 32, 4096, 32, 8, 128, 14336, 32768, {}),
    ("mixtral-8x7b", "mixtral", 32, 4096, 32, 8, 128, 14336, 32000, _mixture(8, 2)),
    ("mixtral-8x22b", "mixtral", 56, 6144, 48, 8, 128, 16384, 32000, _mixture(8, 2)),
    ("qwen2.5-7b", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, {}),
    ("qwen2.5-72b", "qwen2", 80, 8192, 64, 8, 128, 29568, 152064, {}),
    ("qwen3-8b", "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, {}),
    ("qwen3-32b", "qwen3", 64, 5120, 64, 8, 128, 25600, 151936, {}),
    ("qwen3-30b-a3b", "qwen3_moe", 48, 2048, 32, 4, 128, 6144, 151936, _mixture(128, 8, 768)),
    ("qwen3-235b-a22b", "qwen3_moe", 94, 4096, 64, 4, 128, 12288, 151936, _mixture(128, 8, 1536)),
    ("gpt-oss-20b", "gpt_oss", 24, 2880, 64, 8, 64, 2880, 201088, _GPT_OSS | {"num_experts": 32}),
    ("gpt-oss-120b", "gpt_oss", 36, 2880, 64, 8, 64, 2880, 201088, _GPT_OSS | {"num_experts": 128}),
    ("gemma-3-27b", "gemma3", 62, 5376, 32, 16, 128, 21504, 262144, {"sliding_window": 1024}),
    ("phi-4", "phi3", 40, 5120, 40, 10, 128, 17920, 100352, {}),
    (
        *("llama-4-scout", "llama4", 48, 5120, 40, 8, 128, 8192, 202048),
        _LLAMA_4 | {"num_local_experts": 16, "interleave_moe_layer_step": 1},
    ),
    (
        *("llama-4-maverick", "llama4", 48, 5120, 40, 8, 128, 8192, 202048),
        _LLAMA_4 | {"num_local_experts": 128, "interleave_moe_layer_step": 2},
    ),
    (
        *("deepseek-v2", "deepseek_v2", 60, 5120, 128, 128, 192, 12288, 102400),
        _DEEPSEEK
        | {
            "n_routed_experts": 160,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1536,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
        },
    ),
    ("deepseek-v3", "deepseek_v3", 61, 7168, 128, 128, 192, 18432, 129280, _DEEPSEEK_V3),
    ("deepseek-r1", "deepseek_v3", 61, 7168, 128, 128, 192, 18432, 129280, _DEEPSEEK_V3),
)


def _shape(row: _Row) -> ModelShape:
    name, model_type, *sizes, others = row
    config = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "torch_dtype": "bfloat16",
    }
    return shape_from_config(name, config | dict(zip(_SIZES, sizes, strict=True)) | dict(others))


BUILTIN: Mapping[str, ModelShape] = MappingProxyType({row[0]: _shape(row) for row in _ROWS})
"""Shapes by lower-case name, such as ``llama-3.1-405b`` or ``deepseek-v3``."""


def find_builtin(name: str) -> ModelShape | None:
    """The built-in shape of that name in any case, or None.

    >>> find_builtin("Mixtral-8x22B").experts.count
    8
    """
    return BUILTIN.get(name.lower())
