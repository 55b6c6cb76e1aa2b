"""What the weights of a model take on one GPU, against sizes that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.models.catalogue import BUILTIN
from launcher.models.quantisation import Quantisation
from launcher.models.shapes import ModelShape, StoredWeights
from launcher.models.weights import Slice, end_bytes, layer_bytes, stored_weights
from launcher.plan.engine_memory import GIB

LLAMA = BUILTIN["llama-3.1-8b"]
# Heads as tests/wide_smollm2.py widens them, so that two GPUs can share them.
WIDE = replace(BUILTIN["smollm2-135m"], heads=12, kv_heads=4)


def weights(shape: ModelShape, part: Slice) -> int:
    return sum(layer_bytes(shape, part)) + sum(end_bytes(shape, part, joined=True))


@pytest.mark.parametrize("name", [name for name, s in BUILTIN.items() if s.quantisation is None])
def test_a_model_on_one_gpu_is_its_parameters(name: str) -> None:
    shape = BUILTIN[name]
    assert shape.parameters is not None
    assert weights(shape, Slice(loaded=False)) == 2 * shape.parameters


@pytest.mark.parametrize(
    ("name", "total_size"), [("gpt-oss-20b", 13_761_264_768), ("gpt-oss-120b", 65_248_815_744)]
)
def test_a_quantised_model_is_what_its_index_adds_up_to(name: str, total_size: int) -> None:
    assert weights(BUILTIN[name], Slice(loaded=False)) == total_size


# What vLLM said that loading took, and TensorRT-LLM's "uses … for model weights"; the sources are
# in docs/reference/memory.md.
META_FP8 = Quantisation(
    method="fbgemm_fp8",
    bits=8,
    algorithm="FBGEMM_FP8",
    excluded=(
        *("self_attn", "model.layers.0.mlp", "model.layers.125.mlp"),
        *("lm_head", "embed_tokens"),
    ),
)
LOADED: dict[str, tuple[ModelShape, Slice, float]] = {
    "llama 3 8b": (LLAMA, Slice(), 14.96),
    "llama 3 8b, tp 2": (LLAMA, Slice(tp=2), 7.48),
    # As published in July 2024: with 16 KV heads.
    "llama 3.1 405b fp8, tp 8": (
        replace(BUILTIN["llama-3.1-405b"], kv_heads=16, quantisation=META_FP8),
        Slice(tp=8),
        57.752,
    ),
    "llama 3.1 8b fp8 of nvidia": (
        replace(
            LLAMA,
            quantisation=Quantisation(
                method="modelopt", bits=8, algorithm="FP8", excluded=("lm_head",)
            ),
        ),
        Slice(),
        8.46,
    ),
    "gpt-oss-120b": (BUILTIN["gpt-oss-120b"], Slice(), 65.9651),
    "smollm2 135m, widened, tp 2": (WIDE, Slice(tp=2), 0.14),
}


@pytest.mark.parametrize("name", LOADED)
def test_weights_are_what_engines_say_that_they_loaded(name: str) -> None:
    shape, part, seen_gib = LOADED[name]
    assert weights(shape, part) / GIB == pytest.approx(seen_gib, rel=0.002, abs=0.01)


def test_what_is_not_cut_is_counted_on_each_gpu() -> None:
    shape = BUILTIN["deepseek-v3"]
    whole, part = (sum(layer_bytes(shape, Slice(tp=tp, moe_tp=tp))) for tp in (1, 8))
    latent = shape.latent_attention
    assert latent is not None
    down = shape.hidden_size * (latent.kv_lora_rank + latent.rope_head_dim) * shape.layers
    assert 8 * part > whole + 7 * down


def test_kv_heads_are_repeated_once_there_are_fewer_than_ranks() -> None:
    shape = replace(LLAMA, kv_heads=2)
    two, four = (layer_bytes(shape, Slice(tp=tp))[0] for tp in (2, 4))
    keys = 2 * shape.hidden_size * shape.head_dim * 2
    norms = 2 * shape.hidden_size * 2
    assert four - keys - norms == (two - keys - norms) // 2


def test_experts_take_the_same_however_they_are_spread_but_their_biases() -> None:
    shape = BUILTIN["qwen3-235b-a22b"]
    spread, cut = Slice(tp=8, ep=8), Slice(tp=8, moe_tp=8)
    assert layer_bytes(shape, spread) == layer_bytes(shape, cut)


def test_what_a_format_leaves_out_stays_as_it_was() -> None:
    how = Quantisation(method="modelopt", bits=8, algorithm="FP8")
    all_fp8 = weights(replace(LLAMA, quantisation=how), Slice())
    plain_attention = replace(how, excluded=("model.layers.*.self_attn*",))
    attention = LLAMA.layers * 2 * LLAMA.hidden_size * (32 + 8) * 128
    more = weights(replace(LLAMA, quantisation=plain_attention), Slice()) - all_fp8
    head = LLAMA.vocab_size * LLAMA.hidden_size
    # A list of what is left out says that a head which is not in it is quantised.
    assert more == attention - head


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("lm_head", False),
        ("model.layers.1", False),
        ("model.layers.0", True),
        ("self_attn", True),
        ("model.layers.*.self_attn*", True),
        ("*self_attn*", True),
        ("re:.*self_attn.*", True),
        ("re:self_attn", False),
    ],
)
def test_the_ways_of_naming_what_is_left_out(pattern: str, matches: bool) -> None:  # noqa: FBT001
    how = Quantisation(method="modelopt", bits=8, algorithm="FP8", excluded=(pattern,))
    first = layer_bytes(replace(LLAMA, quantisation=how), Slice())[0]
    none = layer_bytes(replace(LLAMA, quantisation=replace(how, excluded=())), Slice())[0]
    assert (first > none) is matches


@pytest.mark.parametrize(
    ("how", "bits"),
    [
        (Quantisation(method="awq", bits=4, group_size=128, algorithm="AWQ"), 4 + 20 / 128),
        (Quantisation(method="modelopt", bits=4, group_size=16, algorithm="NVFP4"), 4.5),
        (Quantisation(method="fp8", bits=8, block_size=128, algorithm="FP8"), 8 + 32 / 128**2),
    ],
)
def test_scales_are_counted(how: Quantisation, bits: float) -> None:
    plain = layer_bytes(LLAMA, Slice())[0]
    norms = 2 * LLAMA.hidden_size * 2
    small = layer_bytes(replace(LLAMA, quantisation=how), Slice())[0]
    assert small - norms == pytest.approx((plain - norms) * bits / 16, abs=1)


def test_tensors_that_were_seen_count_before_what_the_config_tells() -> None:
    layers = tuple(2 * size for size in layer_bytes(LLAMA, Slice(loaded=False)))
    seen = StoredWeights(layers=layers, embedding=10**9, head=10**9, rest=10**6)
    shape = replace(LLAMA, stored=seen)
    assert layer_bytes(shape, Slice()) == layers
    before, behind = end_bytes(shape, Slice(), joined=True)
    assert (before, behind) == (10**9 + 10**6, 10**9)


def test_tensors_are_sorted_by_the_layer_that_they_are_of() -> None:
    shape = replace(LLAMA, layers=2, attention_layers=2)
    tensors = {
        "model.embed_tokens.weight": 10,
        "model.layers.0.mlp.up_proj.weight": 1,
        "model.layers.1.mlp.up_proj.weight": 2,
        "model.layers.1.mlp.up_proj.weight_scale_inv": 3,
        # A layer that predicts one token more.
        "model.layers.2.mlp.up_proj.weight": 1000,
        "model.vision_tower.layers.0.fc1.weight": 5,
        "model.norm.weight": 4,
        "lm_head.weight": 11,
    }
    found = stored_weights(tensors, shape)
    assert found == StoredWeights(layers=(1, 5), embedding=10, head=11, rest=9)


@pytest.mark.parametrize("missing", ["model.layers.1.w", "model.embed_tokens.weight", "lm_head.w"])
def test_tensors_of_another_naming_are_not_used(missing: str) -> None:
    shape = replace(LLAMA, layers=2, attention_layers=2)
    names = ("model.layers.0.w", "model.layers.1.w", "model.embed_tokens.weight", "lm_head.w")
    assert stored_weights(dict.fromkeys(names, 1), shape) is not None
    assert stored_weights(dict.fromkeys(set(names) - {missing}, 1), shape) is None
