"""What a cut takes of a GPU, against sizes that are known and runs that were logged."""

from __future__ import annotations

import doctest
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import launcher.plan.engine_memory
from launcher.models.catalogue import BUILTIN
from launcher.models.quantisation import Quantisation
from launcher.models.shapes import ModelShape
from launcher.models.weights import Slice, end_bytes, layer_bytes, sizes_known
from launcher.plan.engine_memory import ENGINES, GIB, EngineMemory, cuda_bytes, engine_memory
from launcher.plan.memory import MARGIN, Fit, StageMemory, fit, stage_layers, stage_memory
from launcher.plan.types import Cut

PAGE = Path(__file__).parents[2] / "docs/reference/memory.md"
LLAMA = BUILTIN["llama-3.1-8b"]
H100, H200 = int(79.1 * GIB), int(139.8 * GIB)
FP8_BLOCKS = BUILTIN["deepseek-v3"].quantisation
# Heads as tests/wide_smollm2.py widens them, so that two GPUs can share them.
WIDE = replace(BUILTIN["smollm2-135m"], heads=12, kv_heads=4)


def memory_of(
    shape: ModelShape, engine: str, options: Mapping[str, Any], gpu_bytes: int, model: str = "h100"
) -> EngineMemory:
    return engine_memory(engine, shape, options, gpu_bytes=gpu_bytes, gpu_model=model)


def stages_of(
    shape: ModelShape,
    cut: Cut,
    engine: str = "tensorrt-llm",
    options: Mapping[str, Any] | None = None,
    gpu_bytes: int = H100,
) -> tuple[StageMemory, ...]:
    found = stage_memory(shape, cut, memory_of(shape, engine, options or {}, gpu_bytes), gpu_bytes)
    assert found is not None
    return found


def fit_of(
    shape: ModelShape,
    cut: Cut,
    engine: str = "tensorrt-llm",
    options: Mapping[str, Any] | None = None,
    gpu_bytes: int = H100,
    prompt: int = 0,
    output: int = 512,
) -> Fit:
    memory = memory_of(shape, engine, options or {}, gpu_bytes)
    found = fit(shape, cut, memory, gpu_bytes, prompt=prompt, output=output)
    assert found is not None
    return found


def test_the_examples_of_the_module_hold() -> None:
    assert doctest.testmod(launcher.plan.engine_memory).failed == 0


# --- what is not known


UNKNOWN = {
    "tensors": replace(LLAMA, small_tensors=None),
    "bits": replace(LLAMA, quantisation=Quantisation(method="unknown", bits=None)),
    "layers with a state": replace(LLAMA, attention_layers=4),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_of_what_is_not_known_nothing_is_said(what: str) -> None:
    shape = UNKNOWN[what]
    assert not sizes_known(shape)
    engine = memory_of(shape, "vllm", {}, H100)
    assert stage_memory(shape, Cut(), engine, H100) is None
    assert fit(shape, Cut(), engine, H100, prompt=1, output=1) is None


# --- stages


@pytest.mark.parametrize(
    ("engine", "pp", "layers"),
    [
        ("tensorrt-llm", 2, (31, 30)),
        ("tensorrt-llm", 4, (16, 15, 15, 15)),
        ("vllm", 2, (31, 30)),
        ("vllm", 4, (15, 15, 16, 15)),
        ("vllm", 1, (61,)),
    ],
)
def test_layers_are_spread_as_the_engine_spreads_them(
    engine: str, pp: int, layers: tuple[int, ...]
) -> None:
    shape = BUILTIN["deepseek-v3"]
    assert stage_layers(shape, pp, memory_of(shape, engine, {}, H100)) == layers


def test_layers_that_options_spread_are_spread_so() -> None:
    given = memory_of(LLAMA, "tensorrt-llm", {"pp_partition": [20, 12]}, H100)
    assert stage_layers(LLAMA, 2, given) == (20, 12)
    env = {"VLLM_PP_LAYER_PARTITION": "10,22"}
    given = engine_memory("vllm", LLAMA, {}, gpu_bytes=H100, env=env)
    assert stage_layers(LLAMA, 2, given) == (10, 22)
    assert stage_layers(LLAMA, 4, given) == (8, 8, 8, 8)


def test_the_ends_of_a_pipeline_hold_the_vocabulary() -> None:
    first, middle, _, last = stages_of(LLAMA, Cut(pp=4))
    matrix = LLAMA.vocab_size * LLAMA.hidden_size * 2
    assert first.weights - middle.weights == matrix
    assert last.weights - middle.weights == matrix + LLAMA.hidden_size * 2


def test_one_matrix_that_serves_both_ends_is_there_twice_in_a_pipeline() -> None:
    shape = BUILTIN["smollm2-135m"]
    (whole,) = stages_of(shape, Cut())
    stages = stages_of(shape, Cut(pp=2))
    matrix = shape.vocab_size * shape.hidden_size * 2
    assert sum(stage.weights for stage in stages) - whole.weights == matrix


# --- engines


def test_the_engines_mean_different_things_by_their_share() -> None:
    half = {"kv_cache_config": {"free_gpu_memory_fraction": 0.5}}
    (free,) = stages_of(LLAMA, Cut(), options=half)
    rest = free.capacity - free.weights - free.activations - free.reserve
    assert free.kv_bytes == rest // 2
    (whole,) = stages_of(LLAMA, Cut(), "vllm", {"gpu_memory_utilization": 0.5})
    used = whole.weights + whole.activations + whole.reserve + whole.graphs
    assert whole.kv_bytes == int(whole.capacity * 0.5) - used


def test_the_share_is_taken_as_tensorrt_llm_takes_it() -> None:
    # A log of December 2025 in docs/reference/memory.md: 119.70 GiB, of which all but the KV
    # cache of the measurement took 113.65 - 0.56; 5.95 GiB came of it.
    total, peak, own = (int(gib * GIB) for gib in (119.70, 113.65, 0.56))
    (stage,) = stages_of(LLAMA, Cut(), gpu_bytes=total)
    shape = replace(LLAMA, stored=None)
    engine = memory_of(
        shape, "tensorrt-llm", {"kv_cache_config": {"free_gpu_memory_fraction": 0.9}}, total
    )
    others = stage.weights + stage.activations
    engine = replace(engine, reserve_bytes=peak - own - others)
    found = stage_memory(shape, Cut(), engine, total)
    assert found is not None
    assert found[0].kv_bytes / GIB == pytest.approx(5.95, abs=0.01)


def test_a_size_that_is_given_is_the_size() -> None:
    given = {"kv_cache_memory_bytes": 8 * GIB}
    (stage,) = stages_of(LLAMA, Cut(), "vllm", given)
    assert stage.kv_bytes == stage.kv_least_bytes == stage.kv_most_bytes == 8 * GIB
    most = {"kv_cache_config": {"max_gpu_total_bytes": GIB}}
    assert stages_of(LLAMA, Cut(), options=most)[0].kv_bytes == GIB
    tokens = {"kv_cache_config": {"max_tokens": 3200}}
    assert stages_of(LLAMA, Cut(), options=tokens)[0].kv_tokens == 3200
    large = {"kv_cache_config": {"max_tokens": 10**9}}
    assert stages_of(LLAMA, Cut(), options=large)[0].kv_tokens < 10**9


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [None, "many", -1, 0, True, 1.5, [], {}])
def test_options_of_a_wrong_kind_are_for_others_to_refuse(engine: str, value: Any) -> None:
    names = (
        *("kv_cache_config", "max_num_tokens", "max_batch_size", "max_seq_len", "pp_partition"),
        *("max_num_batched_tokens", "max_num_seqs", "max_model_len", "gpu_memory_utilization"),
        *("kv_cache_memory_bytes", "block_size", "kv_cache_dtype"),
    )
    (stage,) = stages_of(LLAMA, Cut(), engine, dict.fromkeys(names, value))
    (usual,) = stages_of(LLAMA, Cut(), engine)
    assert stage.weights == usual.weights
    assert stage.kv_tokens > 0


@pytest.mark.parametrize(
    ("engine", "options", "quantisation", "bits"),
    [
        ("vllm", {"kv_cache_dtype": "fp8_e4m3"}, None, 8),
        ("vllm", {}, None, 16),
        ("tensorrt-llm", {"kv_cache_config": {"dtype": "fp8"}}, None, 8),
        ("tensorrt-llm", {"kv_cache_config": {"dtype": "nvfp4"}}, None, 4.5),
        ("tensorrt-llm", {}, Quantisation(method="modelopt", bits=8, kv_bits=8), 8),
        ("vllm", {"kv_cache_dtype": "bfloat16"}, Quantisation(method="x", bits=8, kv_bits=8), 16),
    ],
)
def test_elements_of_the_cache(
    engine: str, options: Mapping[str, Any], quantisation: Quantisation | None, bits: float
) -> None:
    shape = replace(LLAMA, quantisation=quantisation)
    (stage,) = stages_of(shape, Cut(), engine, options)
    assert stage.kv_per_token == LLAMA.kv_elements_per_token * bits / 8


def test_latent_attention_keeps_the_same_on_every_gpu() -> None:
    shape = BUILTIN["deepseek-v3"]
    eight, sixteen = (stages_of(shape, Cut(tp=tp), gpu_bytes=H200)[0] for tp in (8, 16))
    assert eight.kv_per_token == sixteen.kv_per_token == 70272


def test_a_window_ends_the_growth_of_its_layers() -> None:
    shape = BUILTIN["gpt-oss-120b"]
    (stage,) = stages_of(shape, Cut(), "vllm", {"gpu_memory_utilization": 0.95})
    assert stage.kv_per_token == 73728
    # Beyond 128 tokens, and the block that is begun, only half of the layers grow.
    assert stage.sequence_bytes(4096) - stage.sequence_bytes(2048) == 2048 * 36864
    (unbounded,) = stages_of(shape, Cut())
    assert unbounded.sequence_bytes(4096) == 4096 * 73728
    options = {"gpu_memory_utilization": 0.95}
    short, long = (
        fit_of(shape, Cut(), "vllm", options, H100, prompt=prompt) for prompt in (64, 65536)
    )
    assert 1.9 * stage.kv_tokens < long.kv_tokens < 2 * stage.kv_tokens
    assert short.kv_tokens < long.kv_tokens


@pytest.mark.parametrize(
    ("model", "pp", "full", "windowed"),
    [("gemma-3-27b", 1, 10, 60), ("gemma-3-27b", 2, 5, 30), ("gpt-oss-20b", 1, 12, 12)],
)
def test_vllm_fills_up_groups_of_layers_that_have_windows(
    model: str, pp: int, full: int, windowed: int
) -> None:
    shape = BUILTIN[model]
    each = 2 * shape.head_dim * shape.kv_heads * 2
    for stage in stages_of(shape, Cut(pp=pp), "vllm", gpu_bytes=H200):
        assert stage.kv_in_windows == windowed * each
        assert stage.kv_per_token == (full + windowed) * each
    whole = stages_of(shape, Cut(), "vllm", {"disable_hybrid_kv_cache_manager": True}, H200)
    assert whole[0].kv_per_token == shape.kv_elements_per_token * 2


def test_vllm_does_not_start_unless_windows_hold_a_whole_step_beside_them() -> None:
    shape = BUILTIN["gemma-3-27b"]
    options = {"max_model_len": 65536, "max_num_batched_tokens": 16384}
    (stage,) = stages_of(shape, Cut(), "vllm", options)
    (small,) = stages_of(shape, Cut(), "vllm", options | {"max_num_batched_tokens": 2048})
    more = stage.longest_bytes(65536) - stage.sequence_bytes(65536)
    assert more == 16384 * stage.kv_in_windows
    assert small.longest_bytes(65536) == stage.longest_bytes(65536) - 14336 * stage.kv_in_windows
    assert stage.longest_bytes(1000) == stage.sequence_bytes(1000)
    (other,) = stages_of(shape, Cut(), "tensorrt-llm")
    assert other.longest_bytes(65536) == other.sequence_bytes(65536)


def test_vllm_keeps_whole_chunks_unless_it_is_told_to_give_them_up() -> None:
    shape = BUILTIN["llama-4-scout"]
    name = "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE"
    kept, given_up = (
        engine_memory("vllm", shape, {}, gpu_bytes=H200, env=env) for env in ({}, {name: "1"})
    )
    assert not kept.windows
    assert given_up.windows


def test_attention_that_is_not_cut_is_whole_on_each_rank_and_caches_add_up() -> None:
    shape = BUILTIN["deepseek-v3"]
    cut = Cut(tp=8, ep=8)
    together = fit_of(shape, cut, gpu_bytes=H200)
    apart = fit_of(shape, cut, options={"enable_attention_dp": True}, gpu_bytes=H200)
    assert apart.stages[0].weights > together.stages[0].weights + 10 * GIB
    assert apart.stages[0].kv_per_token == together.stages[0].kv_per_token
    assert (together.caches, apart.caches) == (1, 8)
    assert apart.kv_tokens == apart.stages[0].kv_tokens
    assert apart.sequences > 4 * together.sequences


@pytest.mark.parametrize(
    ("model", "sold", "gib"),
    [
        ("h100", 80 * 10**9, 79.1),
        ("h100", 80 * GIB, 79.1),
        ("h200", 141 * 10**9, 139.8),
        ("a100", 40 * 10**9, 39.4),
        ("gh200", 96 * 10**9, 94.5),
        ("a40", 48 * 10**9, 44.35),
        ("l40s", 48 * 10**9, 44.5),
        ("rtx-4090", 24 * 10**9, 23.6),
        ("b200", 192 * 10**9, 178.3),
        ("b200", 180 * 10**9, 178.3),
        ("gb200", 192 * 10**9, 184.3),
    ],
)
def test_gpus_have_what_cuda_reports_of_them(model: str, sold: int, gib: float) -> None:
    assert cuda_bytes(model, sold) / GIB == pytest.approx(gib, rel=0.01)


# --- runs that were logged: docs/reference/memory.md has the table


QUICK = {"enforce_eager": True, "max_model_len": 1024}
GIVEN = QUICK | {"kv_cache_memory_bytes": 8 * GIB}
SHARE = QUICK | {"gpu_memory_utilization": 0.3}
OWN = [
    (BUILTIN["smollm2-135m"], Cut(), GIVEN, 372_816),
    (WIDE, Cut(tp=2), GIVEN, 559_232),
    (WIDE, Cut(pp=2), GIVEN, 559_232),
    (WIDE, Cut(tp=2), SHARE, 2_861_584),
    (WIDE, Cut(pp=2), SHARE, 2_892_624),
]


@pytest.mark.parametrize(("shape", "cut", "options", "seen"), OWN)
def test_the_cache_is_what_vllm_said_on_two_h200(
    shape: ModelShape, cut: Cut, options: Mapping[str, Any], seen: int
) -> None:
    found = fit_of(shape, cut, "vllm", options, H200)
    assert found.kv_tokens == pytest.approx(seen, rel=0.1)
    assert f"| {found.kv_tokens:,} | {seen:,} |" in PAGE.read_text(encoding="utf-8")
    if "kv_cache_memory_bytes" in options:
        assert found.kv_tokens == seen


@dataclass(frozen=True)
class Logged:
    """A run of vLLM before 0.20, and the GiB that it had for its KV cache."""

    shape: ModelShape
    cut: Cut
    options: Mapping[str, Any]
    gib: float


EARLIER = {
    "gpt-oss-120b": Logged(
        BUILTIN["gpt-oss-120b"], Cut(), {"max_num_batched_tokens": 8192}, gib=-2.14
    ),
    "gpt-oss-120b, 1024 tokens": Logged(
        BUILTIN["gpt-oss-120b"],
        Cut(),
        {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024},
        gib=1.71,
    ),
    "qwen3-235b-a22b fp8": Logged(
        replace(BUILTIN["qwen3-235b-a22b"], quantisation=FP8_BLOCKS),
        Cut(tp=4),
        {"max_num_batched_tokens": 8192},
        gib=8.11,
    ),
}


@pytest.mark.parametrize("name", EARLIER)
def test_what_is_no_cache_is_known_to_the_margin(name: str) -> None:
    run = EARLIER[name]
    options = {"gpu_memory_utilization": 0.9, **run.options}
    # They sorted for top-k, and did not count their graphs.
    engine = memory_of(run.shape, "vllm", options, H100)
    engine = replace(engine, logit_bytes=36, graphs_bytes=0)
    found = stage_memory(run.shape, run.cut, engine, H100)
    assert found is not None
    stage = found[0]
    used = stage.weights + stage.activations + stage.reserve
    assert engine.fraction * H100 - used == pytest.approx(run.gib * GIB, abs=MARGIN * H100)


@pytest.mark.parametrize(
    ("share", "tokens", "seen"),
    [(0.9, 4096, 78), (0.5, 4096, 43), (0.9, 1024, 319), (0.9, 8192, 38)],
)
def test_sequences_are_what_aiconfigurator_holds_for_tensorrt_llm(
    share: float, tokens: int, seen: int
) -> None:
    # ai-dynamo/aiconfigurator, test_trtllm_kv_cache_capacity.py: Qwen3-32B-FP8 on one H100.
    how = Quantisation(method="modelopt", bits=8, algorithm="FP8", kv_bits=8)
    shape = replace(BUILTIN["qwen3-32b"], quantisation=how)
    options = {"kv_cache_config": {"free_gpu_memory_fraction": share}}
    found = fit_of(
        shape, Cut(), options=options, prompt=tokens // 2, output=tokens // 2, gpu_bytes=H100
    )
    assert found.sequences == pytest.approx(seen, rel=0.1)
    half = tokens // 2
    row = f"| {share} | {half} + {half} | {found.sequences} | {seen} |"
    assert row in PAGE.read_text(encoding="utf-8")


# --- what fits


# Weights of a GPU in GiB, of the smallest cut that fits GPUs of 80 GB, or 141 GB.
SMALLEST = [
    ("llama-3.1-70b", Cut(tp=4), H100, 32.9),
    ("llama-3.1-405b", Cut(tp=8, pp=2), H100, 47),
    ("llama-3.1-405b-fp8", Cut(tp=8), H100, 47),
    ("deepseek-v3", Cut(tp=16), H100, 39),
    ("deepseek-v3", Cut(tp=8), H200, 78),
    ("qwen3-235b-a22b", Cut(tp=8), H100, 55),
    ("qwen3-235b-a22b", Cut(tp=4, pp=2), H100, 55),
    ("mixtral-8x22b", Cut(tp=4), H100, 65.5),
    ("llama-4-scout", Cut(tp=4), H100, 50),
]


@pytest.mark.parametrize("engine", ["tensorrt-llm", "vllm"])
@pytest.mark.parametrize(("name", "cut", "gpu_bytes", "gib"), SMALLEST)
def test_the_smallest_cuts_that_fit(
    engine: str, name: str, cut: Cut, gpu_bytes: int, gib: float
) -> None:
    shape = BUILTIN[name]
    found = fit_of(shape, cut, engine, gpu_bytes=gpu_bytes)
    assert found.fits
    assert found.stages[0].weights / GIB == pytest.approx(gib, rel=0.05)
    half = replace(cut, tp=cut.tp // 2)
    assert not fit_of(shape, half, engine, gpu_bytes=gpu_bytes, prompt=16384).fits


def test_what_only_just_fits_does_not_fit() -> None:
    shape = BUILTIN["llama-3.1-70b"]
    found = fit_of(shape, Cut(tp=2))
    assert not found.fits
    assert found.may_fit
    alone = fit_of(shape, Cut())
    assert not alone.fits
    assert not alone.may_fit


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gpu_that_is_full_to_the_last_of_it_is_too_full(engine: str) -> None:
    # The smallest GPU that may do, and the smallest that does, are the margin apart and more.
    sizes = range(16 * GIB, 40 * GIB, GIB // 8)
    may, does = (
        next(size for size in sizes if getattr(fit_of(LLAMA, Cut(), engine, {}, size), what))
        for what in ("may_fit", "fits")
    )
    assert does - may >= MARGIN * does
    (stage,) = stages_of(LLAMA, Cut(), engine, gpu_bytes=does)
    assert stage.free + stage.kv_bytes - stage.kv_least_bytes >= stage.margin


def test_vllm_must_hold_the_longest_sequence_of_the_model() -> None:
    shape = replace(LLAMA, max_position_embeddings=10**6)
    assert not fit_of(shape, Cut(), "vllm").fits
    short = fit_of(shape, Cut(), "vllm", {"max_model_len": 8192})
    assert short.fits
    assert short.longest == 8192
    assert fit_of(shape, Cut(), "vllm", {"max_model_len": -1}).longest == 512
    assert fit_of(shape, Cut()).longest == 512


# --- properties


NAMES = [name for name, shape in BUILTIN.items() if sizes_known(shape)]
SHAPES = st.sampled_from(NAMES).map(BUILTIN.__getitem__)
POWERS = st.sampled_from([1, 2, 4, 8])
ANY_ENGINE = st.sampled_from(sorted(ENGINES))
GPUS = st.integers(16, 300).map(lambda gib: gib * GIB)


@given(SHAPES, POWERS, POWERS, ANY_ENGINE)
def test_more_parts_take_no_more_of_a_gpu(shape: ModelShape, tp: int, pp: int, engine: str) -> None:
    most = max(s.weights for s in stages_of(shape, Cut(tp=tp, pp=pp), engine))
    wider = max(s.weights for s in stages_of(shape, Cut(tp=2 * tp, pp=pp), engine))
    longer = max(s.weights for s in stages_of(shape, Cut(tp=tp, pp=2 * pp), engine))
    assert wider < most
    assert longer < most


@given(SHAPES, POWERS, POWERS, POWERS, ANY_ENGINE, GPUS)
def test_no_part_is_negative_and_none_is_lost(
    shape: ModelShape, tp: int, pp: int, ep: int, engine: str, gpu_bytes: int
) -> None:
    assume(tp % ep == 0 and (ep == 1 or (shape.experts and shape.experts.count % ep == 0)))
    stages = stages_of(shape, Cut(tp=tp, pp=pp, ep=ep), engine, {}, gpu_bytes)
    assert len(stages) == pp
    assert sum(stage.layers for stage in stages) == shape.layers
    whole = Slice(loaded=False)
    least = sum(layer_bytes(shape, whole)) + sum(end_bytes(shape, whole, joined=True)) - tp * pp
    assert tp * sum(s.weights for s in stages) >= least
    for s in stages:
        sizes = (s.weights, s.activations, s.graphs, s.reserve, s.outside, s.margin)
        assert min(*sizes, s.kv_per_token, s.kv_in_windows, s.kv_tokens, s.kv_least_bytes) >= 0
        assert s.kv_least_bytes <= s.kv_bytes <= s.kv_most_bytes
        assert s.may_fit or not s.fits


@given(SHAPES, POWERS, POWERS, ANY_ENGINE, GPUS, st.integers(0, 64).map(lambda gib: gib * GIB))
def test_a_larger_gpu_holds_no_less(
    shape: ModelShape, tp: int, pp: int, engine: str, gpu_bytes: int, more: int
) -> None:
    # One engine on both: vLLM takes larger steps on larger GPUs.
    options = {"max_num_batched_tokens": 8192, "max_num_seqs": 256}
    small, large = (
        fit_of(shape, Cut(tp=tp, pp=pp), engine, options, size)
        for size in (gpu_bytes, gpu_bytes + more)
    )
    assert small.kv_tokens <= large.kv_tokens
    assert small.sequences <= large.sequences
    assert small.fits <= large.fits
    assert small.may_fit <= large.may_fit


@given(SHAPES, POWERS, ANY_ENGINE, GPUS, st.integers(1, 10**5), st.integers(1, 10**5))
def test_longer_rows_are_no_more_at_a_time(
    shape: ModelShape, tp: int, engine: str, gpu_bytes: int, prompt: int, more: int
) -> None:
    short, long = (
        fit_of(shape, Cut(tp=tp), engine, {}, gpu_bytes, prompt=length)
        for length in (prompt, prompt + more)
    )
    assert long.sequences <= short.sequences
    assert long.fits <= short.fits
