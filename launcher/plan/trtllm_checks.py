"""Whether TensorRT-LLM's PyTorch backend takes a checkpoint, and its GPUs what is in it.

Told from a checkpoint's small files alone. An error is what no version read here can do; what
some can, or what is not known, is a warning, and the engine decides.

Sources, of NVIDIA/TensorRT-LLM: the tables of ``docs/source/models/supported-models.md`` as
published for 1.0.0, 1.3.0rc13, 1.3.0rc20, 1.3.0rc24 and 1.4.0rc1, and @00b6d5a2;
``tensorrt_llm/_torch/models/_arch_index.py`` @065ff9e9; ``_update_from_hf_quant_config`` in
``tensorrt_llm/llmapi/llm_utils.py`` of 1.0 and of 2026; ``docs/source/features/
quantization.md`` @09d4c79b, "Hardware Support Matrix".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from launcher.errors import Problem
from launcher.models.quantisation import Quantisation
from launcher.models.shapes import ModelShape
from launcher.plan.types import Cut

__all__ = ["check_model", "compute_capability", "without_heads"]

_ALWAYS = """
DeciLMForCausalLM DeepseekV3ForCausalLM Exaone4ForCausalLM Gemma3ForCausalLM
Gemma3ForConditionalGeneration HCXVisionForCausalLM Llama4ForConditionalGeneration
LlamaForCausalLM LlavaLlamaModel LlavaNextForConditionalGeneration
Mistral3ForConditionalGeneration MistralForCausalLM MixtralForCausalLM
MllamaForConditionalGeneration NemotronForCausalLM NemotronNASForCausalLM Qwen2ForCausalLM
Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration Qwen3ForCausalLM
Qwen3MoeForCausalLM
"""
# Not in the tables of 1.0.0; in those of the 1.2 line and of the first candidates of 1.3, or in
# the index without a row in any table.
_SINCE_1_2 = """
DeepseekV32ForCausalLM ExaoneMoEForCausalLM Glm4MoeForCausalLM GptOssForCausalLM
MiniMaxM2ForCausalLM NemotronHForCausalLM NemotronH_Nano_VL_V2 Phi3ForCausalLM Phi4MMForCausalLM
PixtralForConditionalGeneration Qwen2MoeForCausalLM Qwen3NextForCausalLM
Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration SeedOssForCausalLM
Starcoder2ForCausalLM
"""
# First met in a table, or in the index, of a release candidate of 1.3 or later.
_SINCE_1_3 = """
AfmoeForCausalLM Cohere2ForCausalLM DeepseekV4ForCausalLM Exaone4_5_ForConditionalGeneration
ExaoneMoeForCausalLM Gemma4ForCausalLM Gemma4ForConditionalGeneration
Gemma4UnifiedForConditionalGeneration GlmMoeDsaForCausalLM HunYuanDenseV1ForCausalLM
HunYuanMoEV1ForCausalLM KimiK25ForConditionalGeneration KimiK3ForConditionalGeneration
KimiLinearForCausalLM LagunaForCausalLM MiniCPMV4_6ForConditionalGeneration
MiniMaxM3SparseForCausalLM MiniMaxM3SparseForConditionalGeneration MistralLarge3ForCausalLM
NemotronHPuzzleForCausalLM NemotronH_Nano_Omni_Reasoning_V3 Qwen3_5ForCausalLM
Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration
Step3p5ForCausalLM Step3p7ForConditionalGeneration
"""
# In the tables with a footnote: AutoDeploy, another backend of TensorRT-LLM, has them. The
# index of the PyTorch backend, which raises "Unknown architecture", has none of them.
_OTHER_BACKEND = """
DeepseekV2ForCausalLM ExaoneForCausalLM Gemma3nForConditionalGeneration Glm4MoeLiteForCausalLM
GraniteForCausalLM GraniteMoeHybridForCausalLM InternLM3ForCausalLM Olmo3ForCausalLM
OpenELMForCausalLM SkyworkR1V2ForConditionalGeneration SmolLM3ForCausalLM
"""
# `ModelConfig.is_generation_model` (tensorrt_llm/_torch/model_config.py @008e0af8), and towers.
_WRITES_NOTHING = """
BertForSequenceClassification CLIPVisionModel HCXVisionModel LlamaForTextEmbedding
PixtralVisionModel Qwen2ForProcessRewardModel Qwen2ForRewardModel Qwen3ForTextEmbedding
SiglipVisionModel
"""


def check_model(
    shape: ModelShape | None, cut: Cut, gpu: str | None, options: Mapping[str, Any]
) -> Iterator[tuple[Problem, tuple[str, ...]]]:
    """What speaks against this model under TensorRT-LLM, each with its key of the job file.

    Parameters
    ----------
    shape, gpu
        The model, and the GPUs as the site file calls them; None where nothing is known.
    options
        ``engine_options`` of the job.

    Yields
    ------
    tuple
        ``model.architecture``, ``model.quantisation``, ``plan.gpu-too-old``,
        ``plan.gpu-quantisation`` or ``engine.options``.
    """
    found = [] if shape is None else [*_architecture(shape), *_format(shape)]
    found += [] if gpu is None else _gpu(shape, gpu)
    yield from ((problem, ("model",)) for problem in found)
    if wrong := _partition(shape, cut, options.get("pp_partition")):
        hint = "list the layers of each stage, or remove it: then they are spread evenly"
        yield Problem("engine.options", wrong, hint=hint), ("engine_options", "pp_partition")


def without_heads(found: list[Problem], options: Mapping[str, Any]) -> list[Problem]:
    """``found`` less what is wrong with heads, where attention is not cut.

    Under ``enable_attention_dp`` each rank of a TP group has all of it (``Mapping.dp_size`` in
    ``tensorrt_llm/mapping.py``).
    """
    if not options.get("enable_attention_dp"):
        return found
    return [p for p in found if p.code not in ("plan.tp-heads", "plan.tp-kv-heads")]


def _architecture(shape: ModelShape) -> Sequence[Problem]:
    if not shape.classes:
        return []
    name = shape.classes[0]  # the engine looks at the first alone (modeling_auto.py @01bffee1)
    code, what = "model.architecture", f"{shape.name} is a {name}"
    if name in _OTHER_BACKEND.split():
        message = f"{what}, which the PyTorch backend of TensorRT-LLM does not have"
        return [Problem(code, message, hint="use engine vllm or transformers for this model")]
    if name in _WRITES_NOTHING.split():
        message = f"{what}, which gives scores or vectors and writes no text"
        return [Problem(code, message, hint="choose a model that generates text")]
    if name in _SINCE_1_3.split():
        message = f"{what}, which TensorRT-LLM has only had since the 1.3 line"
        hint = "check that the image has tensorrt_llm 1.3 or later"
    elif name in (_ALWAYS + _SINCE_1_2).split():
        return []
    else:
        message = f"{what}, which is in no list of what TensorRT-LLM runs that is known here"
        hint = "try a few rows first, with `submit --limit`, or use engine vllm"
    return [Problem(code, message, hint=hint, severity="warning")]


# `quant_method` that every version reads, and those that came later. "unknown" has none.
_METHODS = ("modelopt", "fp8", "mxfp4", "unknown")
_LATER_METHODS = ("compressed-tensors", "mxfp8", "nvfp4")


def _format(shape: ModelShape) -> Sequence[Problem]:
    name, found, code = shape.name, shape.quantisation, "model.quantisation"
    if found is None:
        return []
    hint = "use a checkpoint that ModelOpt quantised (with hf_quant_config.json), or a plain one"
    if found.method not in (*_METHODS, *_LATER_METHODS):
        message = (
            f"{name} is quantised by {found.method}, and TensorRT-LLM reads only ModelOpt's, "
            "block-scaled fp8 and mxfp4"
        )
        return [Problem(code, message, hint=hint)]
    tensor_scaled = found.method == "fp8" and found.block_size is None
    if found.method in _LATER_METHODS or tensor_scaled:
        kind = "fp8 without blocks" if tensor_scaled else found.method
        message = f"{name} is quantised as {kind}, which only the newest TensorRT-LLM reads"
        return [Problem(code, message, hint=hint, severity="warning")]
    if found.block_size not in (None, 128):
        message = (
            f"{name} has scales of blocks of {found.block_size}, and TensorRT-LLM reads 128 only"
        )
        return [Problem(code, message, hint=hint)]
    return []


# developer.nvidia.com/cuda-gpus and /cuda-legacy-gpus, and, for what is sold in some countries
# only (H20, H800, A800, L20), the chip that they are.
_CAPABILITIES = {
    "p100": 60,
    "v100": 70,
    "t4": 75,
    "a100": 80,
    "a800": 80,
    "a30": 80,
    "a2": 86,
    "a10": 86,
    "a10g": 86,
    "a16": 86,
    "a40": 86,
    "a6000": 86,
    "l4": 89,
    "l20": 89,
    "l40": 89,
    "l40s": 89,
    "4090": 89,
    "h20": 90,
    "h100": 90,
    "h200": 90,
    "h800": 90,
    "gh200": 90,
    "b200": 100,
    "gb200": 100,
    "b300": 103,
    "gb300": 103,
    "5090": 120,
    "gb10": 121,
}
_OLDEST = 80  # nvidia.github.io/TensorRT-LLM/supported-hardware.html: from Ampere on


def compute_capability(model: str) -> int | None:
    """Ten times the compute capability of the GPU that a site file calls ``model``, if known.

    >>> compute_capability("h100"), compute_capability("NVIDIA A100-SXM4-80GB")
    (90, 80)
    >>> compute_capability("rtx-pro-6000-blackwell"), compute_capability("mi300x")
    (120, None)
    """
    words = re.findall(r"[a-z0-9]+", model.lower())
    if "6000" in words or "rtx6000" in words:  # three generations have one
        return 120 if "blackwell" in words or "pro" in words else 89 if "ada" in words else None
    return next((_CAPABILITIES[word] for word in words if word in _CAPABILITIES), None)


class _Recipe(NamedTuple):
    """``least``: no older GPU has it. ``gaps``: newer ones that the table leaves out."""

    words: str
    least: int
    gaps: frozenset[int] = frozenset()


_BLACKWELL = frozenset({100, 103, 120, 121})
_RECIPES: Mapping[str, _Recipe] = {
    "NVFP4": _Recipe("NVFP4", 100),
    "NVFP4_AWQ": _Recipe("NVFP4", 100),
    # The table has it on Blackwell alone; the code runs it on Hopper too, with Triton's experts
    # (`resolve_moe_backend` in tensorrt_llm/_torch/model_config.py @008e0af8).
    "MXFP4": _Recipe("MXFP4", 80, frozenset({80, 86, 89})),
    "FP8": _Recipe("FP8", 89),
    "FP8_BLOCK_SCALES": _Recipe("block-scaled FP8", 90, frozenset({120, 121})),
    "FP8_PER_CHANNEL_PER_TOKEN": _Recipe("row-scaled FP8", 90, _BLACKWELL),
    "W4A8_AWQ": _Recipe("AWQ of 4 bits with FP8 activations", 89, _BLACKWELL),
    "W4A16_AWQ": _Recipe("AWQ of 4 bits", 80, _BLACKWELL),
    "W4A8_GPTQ": _Recipe("GPTQ of 4 bits with FP8 activations", 89, _BLACKWELL),
    "W4A16_GPTQ": _Recipe("GPTQ of 4 bits", 80, _BLACKWELL),
}


def _recipe(found: Quantisation) -> _Recipe | None:
    name = found.algorithm
    if name == "FP8_PB_WO" or (name == "FP8" and found.block_size is not None):
        name = "FP8_BLOCK_SCALES"
    return _RECIPES.get(name)


def _gpu(shape: ModelShape | None, model: str) -> Sequence[Problem]:
    capability = compute_capability(model)
    if capability is None:
        return []
    if capability < _OLDEST:
        message = f"TensorRT-LLM runs on Ampere and newer GPUs, and {model} is older"
        return [Problem("plan.gpu-too-old", message, hint="use engine vllm or transformers here")]
    recipe = _recipe(shape.quantisation) if shape and shape.quantisation else None
    if shape is None or recipe is None:
        return []
    hint = "choose a partition with other GPUs, or a checkpoint in a format that these have"
    severity: Literal["error", "warning"] = "error"
    if capability < recipe.least:
        message = f"{shape.name} is {recipe.words}, which {model} GPUs do not have"
    elif capability in recipe.gaps:
        message = f"{shape.name} is {recipe.words}, which TensorRT-LLM does not list for {model}"
        severity = "warning"
    else:
        return []
    return [Problem("plan.gpu-quantisation", message, hint=hint, severity=severity)]


def _partition(shape: ModelShape | None, cut: Cut, layers: object) -> str | None:
    """What is wrong with the layers of each stage, if anything.

    ``Mapping.pp_layers`` (``tensorrt_llm/mapping.py``) would raise once the weights load.
    """
    if layers is None:
        return None
    if not isinstance(layers, list) or not all(type(n) is int and n > 0 for n in layers):
        return f"pp_partition is {layers!r}, not a list of whole numbers"
    if len(layers) != cut.pp:
        return f"pp_partition has {len(layers)} stages, and parallelism.pp is {cut.pp}"
    if shape is not None and sum(layers) != shape.layers:
        return f"pp_partition adds up to {sum(layers)} layers, and {shape.name} has {shape.layers}"
    return None
