"""What a replica is expected to do: by hand where that can be computed, else by what must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from launcher.models.catalogue import BUILTIN
from launcher.models.quantisation import Quantisation
from launcher.models.shapes import ModelShape
from launcher.plan.collectives import Links
from launcher.plan.constants import Gpu, find_gpu
from launcher.plan.cost import Cost, Serving, Workload, cost
from launcher.plan.machine import Machine
from launcher.plan.types import Cut

LLAMA_8B, LLAMA_70B = BUILTIN["llama-3.1-8b"], BUILTIN["llama-3.3-70b"]
QWEN_30B = BUILTIN["qwen3-30b-a3b"]
FP8 = Quantisation(method="modelopt", algorithm="FP8", bits=8)
WORK = Workload(prompt_tokens=1000, new_tokens=500)
SERVING = Serving(engine="vllm", kv_tokens=400_000, max_batch_size=256, max_num_tokens=16384)


def known(name: str, gigabytes: int) -> Gpu:
    gpu = find_gpu(name, gigabytes * 10**9)
    assert gpu is not None
    return gpu


H100, A100, H200 = known("h100", 80), known("a100", 80), known("h200", 141)


def machine(gpu: Gpu = H100, *, per_node: int = 8, node_bytes_s: float | None = 400e9) -> Machine:
    rate = gpu.nvlink_bytes_s or gpu.pcie_bytes_s
    links = Links(
        gpu_bytes_s=rate,
        nvlink=gpu.nvlink_bytes_s is not None,
        node_bytes_s=node_bytes_s,
        per_node=per_node,
    )
    return Machine(gpu=gpu, links=links)


def of(
    shape: ModelShape = LLAMA_8B,
    cut: Cut = Cut(),  # noqa: B008 - frozen
    where: Machine | None = None,
    work: Workload = WORK,
    serving: Serving = SERVING,
) -> Cost:
    return cost(shape, cut, where or machine(), work, serving)


def test_a_token_of_one_sequence_takes_as_long_as_reading_the_weights_once() -> None:
    weights = 2 * (LLAMA_8B.parameters or 0) - 2 * 128256 * 4096  # less the embeddings
    reading = weights / (0.8 * 3.35e12)
    found = of(work=replace(WORK, rows=1))
    assert found.decode_s == pytest.approx(reading + 1e-3, rel=0.05)
    assert found.limit == "weights"
    assert found.batch_limit == "rows"


def test_a_long_prompt_takes_as_long_as_computing_it() -> None:
    computing = 2 * 7.5e9 * 8192 / (0.62 * 989e12)
    found = of(work=replace(WORK, prompt_tokens=8192))
    assert found.prefill_s == pytest.approx(computing, rel=0.3)


def test_the_parts_of_a_step_are_the_whole_step_and_make_its_rate() -> None:
    found = of(LLAMA_70B, Cut(tp=4, pp=2))
    assert sum(found.parts.values()) == pytest.approx(found.step_s)
    assert found.tokens_s == pytest.approx(found.sequences / 2 / found.step_s)
    assert found.tokens_s_gpu == found.tokens_s / 8


def test_gpu_hours_are_those_of_the_least_and_the_most_that_may_come() -> None:
    found = of(work=replace(WORK, doubt=2.0))
    exact = 1_000_000 * 500 / found.tokens_s / 3600
    assert found.gpu_hours(1_000_000) == pytest.approx((exact / 1.5 / 2, exact * 1.5 * 2))


@pytest.mark.parametrize(
    ("serving", "rows", "sequences", "limit"),
    [
        ({"kv_tokens": 125_000}, None, 100, "kv-cache"),  # of 1250 tokens at a time
        ({"max_batch_size": 64}, None, 64, "max-batch-size"),
        ({"max_num_tokens": 300}, None, 100, "max-num-tokens"),  # a step has 2 prompt tokens each
        ({}, 10, 10, "rows"),
    ],
)
def test_what_bounds_the_sequences_in_flight_is_named(
    serving: dict[str, int], rows: int | None, sequences: float, limit: str
) -> None:
    found = of(work=replace(WORK, rows=rows), serving=replace(SERVING, **serving))  # type: ignore[arg-type]
    assert found.sequences == pytest.approx(sequences)
    assert found.batch_limit == limit


def test_an_engine_that_keeps_room_for_all_tokens_holds_fewer_sequences() -> None:
    serving = replace(SERVING, engine="tensorrt-llm", kv_tokens=150_000)
    assert of(serving=serving).sequences == pytest.approx(100)
    most = replace(WORK, most_new_tokens=2000)
    assert of(work=most, serving=serving).sequences == pytest.approx(50)


def test_lengths_that_differ_fill_the_cache_with_the_long_ones() -> None:
    serving = replace(SERVING, kv_tokens=150_000)
    assert of(serving=serving).sequences == pytest.approx(120)
    assert of(work=replace(WORK, spread=1.0), serving=serving).sequences == pytest.approx(100)


def test_eight_bits_are_faster_where_the_gpu_computes_in_them_and_only_smaller_elsewhere() -> None:
    eight = replace(LLAMA_8B, quantisation=FP8)
    few, many = replace(WORK, rows=1), replace(WORK, prompt_tokens=8000)
    assert of(eight).tokens_s > 1.2 * of().tokens_s
    ampere = machine(A100)
    assert of(eight, where=ampere, work=few).tokens_s > 1.5 * of(where=ampere, work=few).tokens_s
    assert of(eight, where=ampere, work=many).tokens_s < of(where=ampere, work=many).tokens_s


def test_a_batch_touches_more_and_more_of_the_experts() -> None:
    read = [of(QWEN_30B, work=replace(WORK, rows=rows)).decode_s for rows in (1, 8, 64)]
    assert read[1] > 2 * read[0]
    assert read[2] < 8 * read[1]


def test_a_window_bounds_what_is_read_of_a_long_context() -> None:
    gemma = BUILTIN["gemma-3-27b"]
    everything = replace(gemma, sliding_window=None, full_attention_layers=gemma.layers)
    work = replace(WORK, prompt_tokens=30_000, rows=8)
    windowed, full = (of(shape, Cut(tp=2), work=work) for shape in (gemma, everything))
    assert windowed.parts["kv-cache"] < full.parts["kv-cache"] / 4


def test_latent_attention_is_read_by_each_rank_unless_they_share_out_the_sequences() -> None:
    shape, cut = BUILTIN["deepseek-v3"], Cut(tp=8, ep=8)
    work = replace(WORK, rows=256)
    alike = replace(SERVING, engine="tensorrt-llm", max_batch_size=256)
    shared = replace(alike, attention_dp=True)
    each, own = (of(shape, cut, machine(H200), work, serving) for serving in (alike, shared))
    assert own.parts["kv-cache"] < each.parts["kv-cache"]


def test_stages_over_nodes_beat_a_tensor_cut_over_nodes() -> None:
    nodes = machine(per_node=4, node_bytes_s=100e9)
    stages, ranks = (of(LLAMA_70B, cut, nodes) for cut in (Cut(tp=4, pp=2), Cut(tp=8)))
    assert stages.tokens_s > 1.5 * ranks.tokens_s
    assert ranks.limit == "links"


def test_stages_beat_a_tensor_cut_over_slots_if_there_is_enough_for_all_of_them() -> None:
    cards = machine(known("l40s", 48))
    serving = replace(SERVING, kv_tokens=2_000_000, max_batch_size=1024)
    stages, ranks = (of(LLAMA_70B, cut, cards, serving=serving) for cut in (Cut(pp=8), Cut(tp=8)))
    assert stages.tokens_s > ranks.tokens_s


def test_a_stage_too_many_layers_long_holds_up_the_others() -> None:
    even, uneven = (
        of(
            replace(
                LLAMA_70B,
                layers=layers,
                attention_layers=layers,
                dense_layers=layers,
                full_attention_layers=layers,
            ),
            Cut(tp=4, pp=2),
        )
        for layers in (80, 81)
    )
    assert uneven.step_s > even.step_s * 1.01


SHAPES = st.sampled_from([LLAMA_8B, LLAMA_70B, QWEN_30B, replace(LLAMA_70B, quantisation=FP8)])
CUTS = st.sampled_from([Cut(), Cut(tp=2), Cut(tp=8), Cut(pp=2), Cut(tp=4, pp=2), Cut(tp=2, pp=4)])
WORKS = st.builds(
    Workload,
    prompt_tokens=st.floats(1, 8000),
    new_tokens=st.floats(1, 4000),
    spread=st.floats(0, 1.5),
)
ENGINES = st.sampled_from(["vllm", "tensorrt-llm"])


@given(SHAPES, CUTS, WORKS, ENGINES, st.floats(1, 8))
def test_more_bandwidth_is_never_slower(
    shape: ModelShape, cut: Cut, work: Workload, engine: str, times: float
) -> None:
    fast = replace(H100, hbm_bytes_s=H100.hbm_bytes_s * times)
    serving = replace(SERVING, engine=engine)
    slow = of(shape, cut, machine(), work, serving)
    found = of(shape, cut, machine(fast), work, serving)
    assert found.tokens_s >= slow.tokens_s * (1 - 1e-9)
    assert found.decode_s <= slow.decode_s * (1 + 1e-9)


@given(SHAPES, WORKS, ENGINES, st.sampled_from([2, 4, 8]), st.floats(5e9, 400e9))
def test_a_tensor_cut_over_the_fabric_is_never_faster_than_inside_a_node(
    shape: ModelShape, work: Workload, engine: str, tp: int, rate: float
) -> None:
    serving = replace(SERVING, engine=engine)
    inside, spread = (
        of(shape, Cut(tp=tp), machine(per_node=n, node_bytes_s=rate), work, serving)
        for n in (tp, tp // 2)
    )
    assert spread.tokens_s <= inside.tokens_s


@given(SHAPES, CUTS, WORKS, ENGINES, st.integers(1, 512), st.integers(1, 512))
def test_a_larger_batch_is_never_slower_until_the_cache_is_full_and_then_alike(
    shape: ModelShape, cut: Cut, work: Workload, engine: str, size: int, more: int
) -> None:
    # Beyond vLLM's graphs a step with experts is longer: that is a test of its own.
    assume(engine != "vllm" or shape.experts is None)
    small, large = (
        of(shape, cut, work=work, serving=replace(SERVING, engine=engine, max_batch_size=batch))
        for batch in (size, size + more)
    )
    assert large.tokens_s >= small.tokens_s * (1 - 1e-9)
    if small.batch_limit == "kv-cache":
        assert large == small


def test_a_step_with_experts_that_no_graph_holds_waits_until_they_are_started() -> None:
    work = replace(WORK, prompt_tokens=50, new_tokens=100)  # a row of a step brings half a token
    few, many = (replace(SERVING, max_batch_size=rows) for rows in (340, 350))
    graph, none = (of(QWEN_30B, work=work, serving=serving) for serving in (few, many))
    assert graph.parts["engine"] == pytest.approx(1e-3 + 340 * 8e-6)
    assert none.limit == "engine"
    assert none.step_s == pytest.approx(48 * 2.5e-3)
    halves = of(QWEN_30B, Cut(pp=2), work=work, serving=replace(many, max_batch_size=700))
    assert halves.step_s == pytest.approx(none.step_s / 2, rel=0.1)
    dense = of(LLAMA_8B, work=work, serving=many)
    assert dense.parts["engine"] == pytest.approx(1e-3 + 350 * 8e-6)


@given(SHAPES, CUTS, WORKS, ENGINES)
def test_a_cost_is_within_its_own_range_and_of_positive_parts(
    shape: ModelShape, cut: Cut, work: Workload, engine: str
) -> None:
    found = of(shape, cut, work=work, serving=replace(SERVING, engine=engine))
    least, most = found.tokens_s_range
    assert 0 < least < found.tokens_s < most
    assert all(part >= 0 for part in found.parts.values())
    assert found.parts[found.limit] == max(found.parts.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serving": replace(SERVING, engine="echo")}, "echo"),
        ({"serving": replace(SERVING, kv_tokens=1200)}, "holds 1200 tokens, a row 1250"),
        ({"cut": Cut(pp=2), "where": machine(per_node=1, node_bytes_s=None)}, "not known"),
        ({"shape": replace(LLAMA_8B, attention_layers=8)}, "do not attend"),
    ],
)
def test_what_cannot_be_told_is_not_guessed(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [{"prompt_tokens": 0}, {"new_tokens": 0.5}, {"doubt": 0.9}, {"new_tokens": -3}]
)
def test_a_workload_of_nothing_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        replace(WORK, **bad)  # type: ignore[arg-type]
