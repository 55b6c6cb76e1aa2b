"""What TensorRT-LLM cannot read or compute, told before a job waits in a queue."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import pytest

import launcher.plan.trtllm_checks
from launcher.errors import Problem
from launcher.models.catalogue import BUILTIN
from launcher.models.quantisation import Quantisation
from launcher.models.shapes import ModelShape
from launcher.plan.trtllm_checks import check_model, compute_capability, without_heads
from launcher.plan.types import Cut

LLAMA = BUILTIN["llama-3.1-8b"]


def check(
    shape: ModelShape | None, gpu: str | None = None, cut: Cut | None = None, **options: Any
) -> list[tuple[str, str, str]]:
    """Severity, code and key of everything that speaks against it."""
    found = check_model(shape, cut or Cut(), gpu, options)
    return [(problem.severity, problem.code, ".".join(path)) for problem, path in found]


def of_class(name: str) -> ModelShape:
    return replace(LLAMA, classes=(name,))


def quantised(method: str, algorithm: str = "", *, block: int | None = None) -> ModelShape:
    how = Quantisation(
        method=method, bits=8, algorithm=algorithm or method.upper(), block_size=block
    )
    return replace(LLAMA, quantisation=how)


def test_the_examples_of_the_module_hold() -> None:
    assert doctest.testmod(launcher.plan.trtllm_checks).failed == 0


# --- architectures


@pytest.mark.parametrize("name", sorted(BUILTIN.keys() - {"deepseek-v2"}))
def test_a_model_of_the_catalogue_runs(name: str) -> None:
    assert check(BUILTIN[name]) == []


@pytest.mark.parametrize("name", ["SmolLM3ForCausalLM", "DeepseekV2ForCausalLM"])
def test_what_only_another_backend_has_is_refused_with_another_engine_to_use(name: str) -> None:
    ((problem, path),) = check_model(of_class(name), Cut(), None, {})
    assert (problem.severity, problem.code, path) == ("error", "model.architecture", ("model",))
    assert name in problem.message
    assert problem.hint is not None
    assert "vllm" in problem.hint


@pytest.mark.parametrize("name", ["Qwen2ForRewardModel", "BertForSequenceClassification"])
def test_a_model_that_writes_no_text_is_refused(name: str) -> None:
    assert check(of_class(name)) == [("error", "model.architecture", "model")]


@pytest.mark.parametrize("name", ["Qwen3_5MoeForCausalLM", "NobodyKnowsForCausalLM"])
def test_a_model_of_new_versions_or_of_nobody_is_left_to_the_engine_with_a_warning(
    name: str,
) -> None:
    assert check(of_class(name)) == [("warning", "model.architecture", "model")]


def test_the_first_class_of_a_checkpoint_counts_and_none_is_no_fault() -> None:
    both = replace(LLAMA, classes=("LlamaForCausalLM", "SmolLM3ForCausalLM"))
    assert check(both) == []
    assert check(replace(LLAMA, classes=())) == []
    assert check(None) == []


# --- formats


@pytest.mark.parametrize("method", ["fbgemm_fp8", "awq", "gptq", "bitsandbytes", "quip"])
def test_a_format_that_no_version_reads_is_refused_with_one_that_all_read(method: str) -> None:
    ((problem, _),) = check_model(quantised(method), Cut(), None, {})
    assert (problem.severity, problem.code) == ("error", "model.quantisation")
    assert method in problem.message
    assert problem.hint is not None
    assert "hf_quant_config.json" in problem.hint


@pytest.mark.parametrize("method", ["fp8", "nvfp4", "compressed-tensors", "mxfp8"])
def test_a_format_of_new_versions_is_a_warning(method: str) -> None:
    assert check(quantised(method)) == [("warning", "model.quantisation", "model")]


@pytest.mark.parametrize(
    "shape",
    [
        quantised("modelopt", "FP8"),
        quantised("modelopt", "W4A16_AWQ"),
        quantised("fp8", block=128),
        quantised("mxfp4"),
        quantised("unknown"),
    ],
)
def test_a_format_that_all_versions_read_is_taken(shape: ModelShape) -> None:
    assert check(shape) == []


def test_other_blocks_than_those_of_128_are_refused() -> None:
    assert check(quantised("fp8", block=64)) == [("error", "model.quantisation", "model")]


# --- GPUs

HAVE = {
    "NVFP4": "b200 gb300 rtx-pro-6000",
    "FP8": "l40s h100 gh200 b200 rtx-5090",
    "FP8_PB_WO": "h100 h200 b200",
    "FP8_PER_CHANNEL_PER_TOKEN": "h100",
    "W4A16_AWQ": "a100 a40 l40s h100",
    "W4A8_AWQ": "l40s h100",
    "MXFP4": "h100 b200 rtx-pro-6000",
}
LACK = {
    "NVFP4": "h100 l40s a100",
    "FP8": "a100 a40",
    "FP8_PB_WO": "a100 l40s",
    "FP8_PER_CHANNEL_PER_TOKEN": "l40s a100",
    "W4A8_AWQ": "a100",
}
UNLISTED = {
    "FP8_PB_WO": "rtx-pro-6000",
    "FP8_PER_CHANNEL_PER_TOKEN": "b200",
    "W4A16_AWQ": "b200 rtx-5090",
    "MXFP4": "a100",
}


def pairs(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(algorithm, gpu) for algorithm, gpus in table.items() for gpu in gpus.split()]


@pytest.mark.parametrize(("algorithm", "gpu"), pairs(HAVE))
def test_a_gpu_that_has_the_format_is_taken(algorithm: str, gpu: str) -> None:
    assert check(quantised("modelopt", algorithm), gpu) == []


@pytest.mark.parametrize(("algorithm", "gpu"), pairs(LACK))
def test_a_gpu_that_lacks_the_format_is_refused(algorithm: str, gpu: str) -> None:
    expected = [("error", "plan.gpu-quantisation", "model")]
    assert check(quantised("modelopt", algorithm), gpu) == expected


@pytest.mark.parametrize(("algorithm", "gpu"), pairs(UNLISTED))
def test_a_gpu_that_only_the_table_lacks_is_a_warning(algorithm: str, gpu: str) -> None:
    expected = [("warning", "plan.gpu-quantisation", "model")]
    assert check(quantised("modelopt", algorithm), gpu) == expected


def test_deepseeks_own_blocks_are_block_scaled_too() -> None:
    assert check(BUILTIN["deepseek-r1"], "h100") == []
    assert check(BUILTIN["deepseek-r1"], "a100") == [("error", "plan.gpu-quantisation", "model")]


@pytest.mark.parametrize("gpu", ["v100", "Tesla T4", "p100"])
def test_gpus_from_before_ampere_are_refused_whatever_the_model(gpu: str) -> None:
    assert check(LLAMA, gpu) == [("error", "plan.gpu-too-old", "model")]
    assert check(None, gpu) == [("error", "plan.gpu-too-old", "model")]


def test_of_a_gpu_that_is_not_known_and_of_plain_weights_nothing_is_said() -> None:
    assert check(quantised("modelopt", "NVFP4"), "mi300x") == []
    assert check(LLAMA, "a100") == []
    assert check(quantised("modelopt", "MIXED_PRECISION"), "a100") == []


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA H100 80GB HBM3", 90),
        ("nvidia_a100-sxm4-40gb", 80),
        ("RTX 6000 Ada", 89),
        ("NVIDIA RTX PRO 6000 Blackwell", 120),
        ("rtx-6000", None),  # of Turing, perhaps
        ("a1000", None),
    ],
)
def test_gpus_are_known_by_the_words_of_their_names(name: str, capability: int | None) -> None:
    assert compute_capability(name) == capability


# --- layers and heads


@pytest.mark.parametrize(
    ("layers", "wrong"),
    [([16, 16], None), ([20, 12], None), ([32], "1 stages"), ([16, 17], "33"), ("16", "'16'")],
)
def test_the_layers_of_each_stage_add_up(layers: object, wrong: str | None) -> None:
    found = list(check_model(LLAMA, Cut(pp=2), None, {"pp_partition": layers}))
    assert [p.code for p, _ in found] == (["engine.options"] if wrong else [])
    assert [path for _, path in found] == ([("engine_options", "pp_partition")] if wrong else [])
    assert wrong is None or wrong in found[0][0].message


def test_heads_need_not_divide_where_each_rank_has_all_of_the_attention() -> None:
    found = [Problem(code, "m") for code in ("plan.tp-heads", "plan.tp-kv-heads", "plan.ep-tp")]
    assert without_heads(found, {}) == found
    assert without_heads(found, {"enable_attention_dp": True}) == found[2:]
