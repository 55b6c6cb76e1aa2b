from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import SpecError
from launcher.models.catalogue import BUILTIN, find_builtin
from launcher.models.quantisation import Quantisation
from launcher.models.shapes import ModelShape, shape_from_config

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"

# What the publishers' checkpoints add up to: text model, without multi-token prediction.
PARAMETERS = {
    "deepseek-r1": 671_026_419_200,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200,
    "gemma-3-27b": 27_009_002_240,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.1-405b-fp8": 405_853_388_800,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b": 70_553_706_496,
    "llama-4-maverick": 400_711_848_960,
    "llama-4-scout": 107_769_861_120,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x22b": 140_620_634_112,
    "mixtral-8x7b": 46_702_792_704,
    "phi-4": 14_659_507_200,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
}
KV_ELEMENTS = {
    "deepseek-v2": 34_560,
    "deepseek-v3": 35_136,
    "gemma-3-27b": 253_952,
    "gpt-oss-120b": 36_864,
    "llama-3.1-405b": 258_048,
    "llama-3.1-8b": 65_536,
    "llama-4-maverick": 98_304,
    "mixtral-8x22b": 114_688,
    "phi-4": 102_400,
    "qwen3-235b-a22b": 96_256,
    "smollm2-135m": 11_520,
}
TINY: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
}


def tiny(**keys: Any) -> ModelShape:
    return shape_from_config("tiny", {**TINY, **keys})


def published(name: str) -> ModelShape:
    return shape_from_config(name, json.loads((CONFIGS / f"{name}.json").read_text()))


def faults(config: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as err:
        shape_from_config("tiny", config)
    assert {p.code for p in err.value.problems} == {"model.config"}
    return [p.message for p in err.value.problems]


def test_a_token_is_answered_by_no_more_experts_than_there_are() -> None:
    [message] = faults({**TINY, "num_experts": 2, "num_experts_per_tok": 3})
    assert "num_experts_per_tok = 3, not a whole number of at most 2" in message


def test_every_builtin_has_as_many_parameters_as_its_publisher_says() -> None:
    assert {name: shape.parameters for name, shape in BUILTIN.items()} == PARAMETERS


@pytest.mark.parametrize(("name", "elements"), KV_ELEMENTS.items())
def test_a_token_takes_this_much_of_the_kv_cache(name: str, elements: int) -> None:
    assert BUILTIN[name].kv_elements_per_token == elements


def test_builtins_are_found_in_any_case_under_their_own_lower_case_names() -> None:
    assert find_builtin("Llama-3.1-405B") is BUILTIN["llama-3.1-405b"]
    assert find_builtin("llama-9") is None
    assert all(name == shape.name == name.lower() for name, shape in BUILTIN.items())


@pytest.mark.parametrize(
    "name",
    [
        *("llama-3.1-8b", "smollm2-135m", "mistral-7b-v0.1", "mixtral-8x7b", "qwen2.5-7b"),
        *("qwen3-8b", "deepseek-v2", "deepseek-v3", "phi-4", "gpt-oss-20b", "llama-4-maverick"),
    ],
)
def test_a_checkpoint_has_the_shape_of_its_builtin(name: str) -> None:
    ours, theirs = BUILTIN[name], published(name)
    for field in (
        *("architecture", "layers", "attention_layers", "dense_layers", "hidden_size", "heads"),
        *("kv_heads", "head_dim", "intermediate_size", "vocab_size", "tied_embeddings"),
        *("full_attention_layers", "sliding_window", "experts", "latent_attention"),
        *("small_tensors", "parameters", "kv_elements_per_token", "quantisation"),
        "classes",
    ):
        assert getattr(theirs, field) == getattr(ours, field), field


def test_a_qwen2_moe_counts_its_shared_expert_and_the_gate_before_it() -> None:
    shape = published("qwen1.5-moe-a2.7b")
    assert shape.parameters == 14_315_784_192
    assert shape.experts is not None
    assert (shape.experts.shared, shape.experts.shared_intermediate_size) == (1, 5632)


def test_gemma_3_is_read_from_its_text_config_and_the_defaults_of_its_type() -> None:
    shape = published("gemma-3-27b")
    # The multimodal checkpoint has 64 more embeddings than the tokenizer has tokens.
    assert shape.parameters == PARAMETERS["gemma-3-27b"] + 64 * 5376
    assert (shape.full_attention_layers, shape.sliding_window) == (10, 1024)
    assert (shape.tied_embeddings, shape.torch_dtype) == (True, "bfloat16")


def test_of_a_nemotron_h_only_the_attention_layers_have_a_cache_and_nothing_is_counted() -> None:
    shape = published("nemotron-h-4b")
    assert (shape.layers, shape.attention_layers, shape.dense_layers) == (52, 4, 24)
    assert shape.kv_elements_per_token == 2 * 4 * 8 * 128
    assert shape.parameters is None


def searched(*blocks: dict[str, Any]) -> dict[str, Any]:
    """A Nemotron as its search left it: nulls where layers differ."""
    return {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "vocab_size": 128256,
        "num_key_value_heads": None,
        "intermediate_size": None,
        "num_hidden_layers": len(blocks),
        "block_configs": list(blocks),
    }


def test_a_nemotron_whose_layers_differ_has_those_of_the_widest_and_is_not_counted() -> None:
    grouped = {"n_heads_in_group": 8, "no_op": False, "replace_with_linear": False}
    none = {"n_heads_in_group": None, "no_op": True, "replace_with_linear": False}
    shape = shape_from_config(
        "nas",
        searched(
            {"attention": grouped, "ffn": {"ffn_mult": 5.25, "no_op": False}},
            {"attention": none, "ffn": {"ffn_mult": 1.3125, "no_op": False}},
            {"attention": grouped, "ffn": {"ffn_mult": None, "no_op": True}},
        ),
    )
    assert (shape.heads, shape.kv_heads, shape.intermediate_size) == (64, 8, 28672)
    assert (shape.layers, shape.attention_layers, shape.full_attention_layers) == (3, 2, 2)
    assert shape.parameters is None


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"attention": {"n_heads_in_group": 8}},
        {"attention": 1, "ffn": 2},
        {"attention": {"n_heads_in_group": "8"}, "ffn": {"ffn_mult": 1.0}},
        {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": "much"}},
        {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": float("nan")}},
        {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": float("inf")}},
    ],
)
def test_blocks_that_tell_no_widths_are_refused(block: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        shape_from_config("nas", searched(block))
    assert {problem.code for problem in caught.value.problems} == {"model.config"}


def test_a_nemotron_h_with_experts_places_them_by_its_pattern() -> None:
    shape = tiny(
        model_type="nemotron_h",
        num_hidden_layers=5,
        hybrid_override_pattern="ME*E-",
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=6,
        n_shared_experts=1,
        moe_shared_expert_intermediate_size=10,
    )
    assert shape.experts is not None
    assert shape.experts.layers == (1, 3)
    assert shape.experts.shared_intermediate_size == 10


@pytest.mark.parametrize("pattern", ["M*", "M*-X"])
def test_a_layer_pattern_that_does_not_describe_the_layers_is_refused(pattern: str) -> None:
    messages = faults({**TINY, "num_hidden_layers": 4, "hybrid_override_pattern": pattern})
    assert len(messages) == 1
    assert pattern in messages[0]


@pytest.mark.parametrize(
    ("keys", "layers"),
    [
        ({}, (0, 1, 2, 3, 4, 5)),
        ({"first_k_dense_replace": 2}, (2, 3, 4, 5)),
        ({"decoder_sparse_step": 2}, (1, 3, 5)),
        ({"mlp_only_layers": [0, 5]}, (1, 2, 3, 4)),
        ({"interleave_moe_layer_step": 3}, (2, 5)),
        ({"moe_layers": [1, 4]}, (1, 4)),
    ],
)
def test_experts_sit_in_the_layers_that_the_config_names(
    keys: dict[str, Any], layers: tuple[int, ...]
) -> None:
    shape = tiny(num_hidden_layers=6, num_experts=4, num_experts_per_tok=2, **keys)
    assert shape.experts is not None
    assert shape.experts.layers == layers
    assert shape.dense_layers == 6 - len(layers)


def test_no_experts_and_null_experts_make_a_dense_model() -> None:
    assert tiny(num_experts=0).experts is None
    assert tiny(num_local_experts=None).experts is None


@pytest.mark.parametrize(
    ("keys", "window", "full"),
    [
        ({"sliding_window": 4}, 4, 6),
        ({"sliding_window": 4, "use_sliding_window": False}, None, 6),
        ({"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2}, 4, 2),
        ({"sliding_window": 4, "sliding_window_pattern": 3}, 4, 2),
        ({"attention_chunk_size": 4, "no_rope_layers": [1, 0, 1, 0, 1, 1]}, 4, 2),
        ({"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 3}, 4, 3),
        ({"model_type": "mistral", "sliding_window": 4}, 4, 0),
        ({"model_type": "mistral", "sliding_window": None}, None, 6),
        ({"model_type": "gpt_oss", "sliding_window": 4}, 4, 3),
        ({"model_type": "llama4", "attention_chunk_size": 4, "no_rope_layers": []}, 4, 1),
    ],
)
def test_windows_apply_to_the_layers_that_the_config_names(
    keys: dict[str, Any], window: int | None, full: int
) -> None:
    shape = tiny(num_hidden_layers=6, **keys)
    assert (shape.sliding_window, shape.full_attention_layers) == (window, full)


def test_layers_of_linear_attention_have_no_cache() -> None:
    shape = tiny(num_hidden_layers=4, layer_types=["linear_attention"] * 3 + ["full_attention"])
    assert (shape.attention_layers, shape.full_attention_layers) == (1, 1)
    assert shape.kv_elements_per_token == 2 * 1 * 4


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            Quantisation(method="fp8", bits=8, algorithm="FP8", block_size=128),
        ),
        (
            {"quant_method": "fbgemm_fp8"},
            Quantisation(method="fbgemm_fp8", bits=8, algorithm="FBGEMM_FP8"),
        ),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
            Quantisation(method="awq", bits=4, algorithm="AWQ", group_size=128),
        ),
        (
            {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": True},
            Quantisation(method="gptq", bits=8, algorithm="GPTQ"),
        ),
        (
            {"quant_method": "mxfp4"},
            Quantisation(method="mxfp4", bits=4, algorithm="MXFP4", group_size=32),
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
            Quantisation(
                method="modelopt",
                bits=4,
                algorithm="NVFP4",
                group_size=16,
                excluded=("lm_head",),
            ),
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"},
            Quantisation(method="modelopt", bits=8, algorithm="FP8_PB_WO", block_size=128),
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
            Quantisation(method="modelopt", bits=8, algorithm="FP8", kv_bits=8),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "kv_cache_scheme": {"num_bits": 8, "type": "float"},
                "ignore": ["lm_head"],
            },
            Quantisation(
                method="compressed-tensors",
                bits=None,
                algorithm="COMPRESSED-TENSORS",
                excluded=("lm_head",),
                kv_bits=8,
            ),
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ", "group_size": 128},
            Quantisation(method="modelopt", bits=4, algorithm="W4A8_AWQ", group_size=128),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "block_structure": [128, 128]}}
                },
            },
            Quantisation(
                method="compressed-tensors",
                bits=8,
                algorithm="COMPRESSED-TENSORS",
                block_size=128,
            ),
        ),
        ({"quant_method": "quip"}, Quantisation(method="quip", bits=None, algorithm="QUIP")),
    ],
)
def test_a_quantised_checkpoint_tells_bits_and_blocks(
    config: dict[str, Any], expected: Quantisation
) -> None:
    assert tiny(quantization_config=config).quantisation == expected


def test_modelopts_own_file_is_understood_when_merged_into_the_config() -> None:
    shape = tiny(producer={"name": "modelopt"}, quantization={"quant_algo": "FP8"})
    assert shape.quantisation == Quantisation(method="modelopt", bits=8, algorithm="FP8")


def test_the_quantisation_beside_a_text_config_is_the_text_models() -> None:
    outer = {"model_type": "llama4", "quantization_config": {"quant_method": "fp8"}}
    shape = shape_from_config("tiny", {**outer, "text_config": {**TINY, "model_type": "llama4"}})
    assert shape.quantisation == Quantisation(method="fp8", bits=8, algorithm="FP8")


def test_quantisation_does_not_change_how_many_parameters_there_are() -> None:
    assert published("qwen3-235b-a22b-fp8").parameters == PARAMETERS["qwen3-235b-a22b"]


def test_biases_are_counted() -> None:
    queries, keys = 2 * 4, 1 * 4
    biased = tiny(attention_bias=True, mlp_bias=True).parameters
    plain = tiny().parameters
    assert biased is not None
    assert plain is not None
    assert biased - plain == 2 * (queries + 2 * keys + 8) + 2 * (2 * 16 + 8)


def test_an_unknown_type_with_the_usual_keys_is_read_but_not_counted() -> None:
    shape = tiny(model_type="brand_new")
    assert (shape.architecture, shape.heads, shape.head_dim) == ("brand_new", 2, 4)
    assert shape.parameters is None


def test_every_missing_key_is_named_at_once() -> None:
    messages = faults({"model_type": "brand_new", "hidden_size": 8})
    for key in (
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("intermediate_size", "vocab_size"),
    ):
        assert sum(key in message for message in messages) == 1, key
    assert len(messages) == 5


def test_the_type_of_the_model_is_required() -> None:
    assert faults({k: v for k, v in TINY.items() if k != "model_type"}) == [
        "config.json of 'tiny' lacks model_type"
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", "2"),
        ("hidden_size", 8.0),
        ("num_attention_heads", True),
        ("vocab_size", 0),
        ("tie_word_embeddings", "yes"),
        ("torch_dtype", 16),
        ("mlp_only_layers", [None]),
        ("quantization_config", "fp8"),
        ("text_config", 5),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(key: str, value: object) -> None:
    messages = faults({**TINY, "num_experts": 2, "num_experts_per_tok": 1, key: value})
    assert any(f"{key} = {value!r}" in message for message in messages)


def test_a_wrong_value_inside_a_section_is_named_by_its_whole_path() -> None:
    config = {**TINY, "quantization_config": {"quant_method": "awq", "bits": "four"}}
    assert "quantization_config.bits = 'four'" in faults(config)[0]


def test_a_head_size_that_does_not_follow_must_be_given() -> None:
    assert "head_dim" in faults({**TINY, "hidden_size": 9})[0]
    assert tiny(hidden_size=9, head_dim=4).head_dim == 4


def test_llama_without_grouped_heads_has_one_kv_head_for_each_query_head() -> None:
    assert tiny(num_key_value_heads=None).kv_heads == 2


@given(
    st.fixed_dictionaries(
        {key: st.none() | st.integers(-1, 9) | st.text(max_size=3) for key in TINY}
    )
)
def test_any_config_gives_a_shape_or_names_what_is_wrong(config: dict[str, Any]) -> None:
    try:
        shape = shape_from_config("tiny", config)
    except SpecError as exc:
        assert all(p.code == "model.config" and p.hint for p in exc.problems)
        return
    assert shape.layers == config["num_hidden_layers"] > 0
    assert shape.kv_elements_per_token > 0
