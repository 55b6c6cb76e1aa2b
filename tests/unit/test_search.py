"""Which cut is chosen, what is rejected and why; and what must hold of every answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import ROWS, question

from launcher.models.catalogue import BUILTIN
from launcher.plan.candidates import Candidate, Question
from launcher.plan.engine_memory import GIB
from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.search import TIE, Search, search
from launcher.plan.types import Cut
from launcher.spec.leaves import Bytes
from launcher.spec.site import Fabric


def chosen(*args: Any, **kwargs: Any) -> Candidate:
    found = search(question(*args, **kwargs)).chosen
    assert found is not None
    return found


def sizes(*args: Any, **kwargs: Any) -> tuple[int, int]:
    cut = chosen(*args, **kwargs).cut
    return cut.tp, cut.pp


def rejected(found: Search) -> dict[tuple[int, int], tuple[str, str]]:
    return {(r.cut.tp, r.cut.pp): (r.code, r.reason) for r in found.rejected}


# Well-known answers


@pytest.mark.parametrize("engine", ["tensorrt-llm", "vllm"])
@pytest.mark.parametrize("nodes", [2, 16, None])
def test_405b_in_bf16_is_a_stage_of_eight_on_each_of_two_nodes(
    engine: str, nodes: int | None
) -> None:
    assert sizes("llama-3.1-405b", engine=engine, most_nodes=nodes) == (8, 2)


# (model, GPU, GB of it, GPUs of a node) to (tp, pp): the fewest that leave ten GiB or more for the
# KV cache and all else.
SMALLEST = {
    ("llama-3.1-70b", "h100", 80, 8): (4, 1),
    ("llama-3.1-405b", "h100", 80, 8): (8, 2),
    ("llama-3.1-405b-fp8", "h100", 80, 8): (8, 1),
    ("deepseek-v3", "h100", 80, 8): (8, 2),
    ("deepseek-v3", "h200", 141, 8): (8, 1),
    ("qwen3-235b-a22b", "h100", 80, 8): (8, 1),
    ("mixtral-8x22b", "h100", 80, 8): (8, 1),
    ("llama-4-scout", "h100", 80, 8): (4, 1),
}


@pytest.mark.parametrize(("machine", "cut"), SMALLEST.items(), ids=str)
def test_models_get_the_smallest_cut_with_room_for_a_cache(
    machine: tuple[str, str, int, int], cut: tuple[int, int]
) -> None:
    model, gpu, memory_gb, slots = machine
    assert sizes(model, gpu, memory_gb, slots=slots, most_nodes=2) == cut


def test_a_model_that_one_gpu_holds_is_not_cut() -> None:
    assert sizes("llama-3.1-8b") == (1, 1)
    assert sizes("smollm2-135m", slots=4) == (1, 1)


def test_cards_without_nvlink_get_pipelines() -> None:
    found = search(question("llama-3.1-70b", "l40s", 48, topology="none", link="pcie"))
    assert found.chosen is not None
    assert (found.chosen.cut, found.chosen.nodes) == (Cut(pp=8), 1)
    assert rejected(found)[2, 1][0] == "plan.tp-over-fabric"


def test_tensor_parallelism_stays_among_gpus_that_nvlink_joins_in_pairs() -> None:
    found = search(question("llama-3.1-70b", "a100", 80, slots=4, topology="pairs"))
    assert found.chosen is not None
    assert {c.cut.tp for c in found.kept} == {1, 2}
    assert found.chosen.cut == Cut(tp=2, pp=2)


def test_heads_that_do_not_divide_are_told_once() -> None:
    found = search(question("qwen2.5-7b"))
    codes = [(r.cut, r.code) for r in found.rejected if r.code != "plan.gpu-memory"]
    assert codes == [(Cut(tp=7), "plan.tp-kv-heads"), (Cut(tp=8), "plan.tp-heads")]


@pytest.mark.parametrize("model", ["deepseek-r1", "qwen3-235b-a22b"])
def test_experts_that_would_be_thin_slices_are_kept_whole(model: str) -> None:
    cut = chosen(model).cut
    assert cut.ep == cut.tp == 8


def test_wide_experts_are_cut() -> None:
    assert chosen("mixtral-8x22b").cut.ep == 1


def test_vllm_spreads_experts_over_all_of_a_group_or_not_at_all() -> None:
    found = search(question("qwen3-30b-a3b", engine="vllm"))
    assert {c.cut.ep for c in found.kept} == {1, 2, 4, 8}
    assert all(c.cut.ep in (1, c.cut.tp) for c in found.kept)


def test_transformers_has_no_pipelines_and_gets_the_fewest_gpus() -> None:
    found = search(question("llama-3.1-70b", engine="transformers"))
    assert {c.cut.pp for c in found.kept} == {1}
    assert found.chosen is not None
    assert found.chosen.cut == Cut(tp=4)
    assert "pace of engine transformers" in found.why


# What is rejected, in figures


def test_what_does_not_fit_is_rejected_with_what_it_needs() -> None:
    code, reason = rejected(search(question("llama-3.1-405b")))[8, 1]
    assert code == "plan.gpu-memory"
    assert reason == "needs 99.3 GiB of 78.8 GiB a GPU: 94.5 GiB are weights"


def test_a_cache_too_small_for_one_row_is_no_fit() -> None:
    long = question("llama-3.1-8b", "a10", 24, slots=1, longest=500_000)
    (one,) = (r for r in search(long).rejected if r.cut == Cut())
    assert "a sequence of 500,512 tokens takes 61.1 GiB" in one.reason


def test_where_nothing_fits_nothing_is_chosen() -> None:
    found = search(question("llama-3.1-405b", most_nodes=1))
    assert (found.chosen, found.kept, found.why) == (None, (), "nothing fits")
    assert {r.code for r in found.rejected} == {"plan.gpu-memory"}


def test_a_gpu_that_nobody_knows_gets_the_fewest_that_hold_the_model() -> None:
    found = search(question("llama-3.1-70b", "mi300x", 80))
    assert found.chosen is not None
    assert found.chosen.cost is None
    assert found.chosen.cut == Cut(tp=4)
    assert "the GPU mi300x is not known" in found.why


def test_nodes_whose_network_is_not_known_are_a_last_resort() -> None:
    apart = search(question("llama-3.1-405b", fabric=None))
    assert apart.chosen is not None
    assert (apart.chosen.cut, apart.chosen.cost) == (Cut(tp=8, pp=2), None)
    assert sizes("llama-3.1-405b-fp8", fabric=None) == (8, 1)


def test_fewest_gpus_are_no_fewer_than_leave_room_for_rows() -> None:
    found = search(question("llama-3.1-405b", slots=4, fabric=None, engine="vllm"))
    assert [(c.cut.pp, c.fit.stages[0].kv_bytes > 10 * GIB) for c in found.kept] == [
        (4, True),
        (3, False),
    ]


def test_a_cache_for_short_rows_alone_is_not_worth_a_few_per_cent() -> None:
    short = replace(ROWS, prompt_tokens=400, new_tokens=128, most_new_tokens=256)
    found = search(question("llama-3.1-70b", workload=short, longest=700))
    by_cut = {(c.cut.tp, c.cut.pp): c.tokens_s_gpu or 0 for c in found.kept}
    assert 0.9 < by_cut[2, 1] / by_cut[4, 1] < 1 / 0.9
    assert found.chosen is not None
    assert found.chosen.cut == Cut(tp=4)


# What a stated cut is worth


def test_a_stated_cut_is_proved_and_nothing_else_is_tried() -> None:
    found = search(question("llama-3.1-405b", cut=Cut(tp=8, pp=4)))
    assert [c.cut for c in found.kept] == [Cut(tp=8, pp=4)]
    assert (found.rejected, found.why) == ((), "stated in the job file")


def test_a_stated_cut_that_may_fit_is_kept_and_one_that_cannot_is_not() -> None:
    tight = search(question("llama-3.1-70b", "a100", 40, cut=Cut(tp=4)))
    assert tight.chosen is not None
    assert not tight.chosen.fit.fits
    assert search(question("llama-3.1-405b", cut=Cut(tp=8))).chosen is None


def test_a_stated_cut_that_is_none_is_not_computed() -> None:
    found = search(question("mixtral-8x22b", cut=Cut(tp=8, ep=3)))
    assert [r.code for r in found.rejected] == ["plan.ep-experts"]


# Steps of TensorRT-LLM


def test_a_step_grows_where_it_is_what_limits_the_batch() -> None:
    small = chosen("qwen2.5-7b", cut=Cut())
    large = chosen("llama-3.1-70b", cut=Cut(tp=4))
    assert small.sizes == {"max_batch_size": 1024, "max_num_tokens": 8192}
    assert large.sizes == {"max_batch_size": 512, "max_num_tokens": 8192}


def test_a_step_shrinks_where_only_a_smaller_one_fits() -> None:
    tight = chosen("llama-3.1-70b", "h100", 80, cut=Cut(tp=2))
    assert tight.fit.fits
    assert tight.sizes["max_batch_size"] < 512


def test_sizes_that_the_job_states_are_left_alone() -> None:
    stated = {"max_batch_size": 64, "max_num_tokens": 4096}
    assert chosen("smollm2-135m", options=stated).sizes == {}
    assert "max_batch_size" not in chosen("smollm2-135m", options={"max_batch_size": 64}).sizes
    assert chosen("smollm2-135m", engine="vllm").sizes == {}


def test_layers_that_the_job_spreads_decide_how_many_stages_there_are() -> None:
    layers = {"pp_partition": [40, 40]}
    assert {c.cut.pp for c in search(question("llama-3.1-70b", options=layers)).kept} == {2}


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([1, "a"])
NAMES = """
max_batch_size max_num_tokens max_seq_len kv_cache_config cuda_graph_config dtype pp_partition
enable_attention_dp gpu_memory_utilization max_model_len max_num_seqs kv_cache_dtype block_size
kv_cache_memory_bytes max_num_batched_tokens enforce_eager cache_memory
"""
OPTIONS = st.sampled_from(NAMES.split())


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(OPTIONS, VALUES | st.dictionaries(st.text(), VALUES)),
    st.sampled_from(["tensorrt-llm", "vllm", "transformers"]),
)
def test_options_of_any_kind_break_nothing(options: dict[str, Any], engine: str) -> None:
    search(question("llama-3.1-8b", options=options, engine=engine))


# Nodes that are given whole


def test_gpus_that_stay_idle_count_where_nodes_are_given_whole() -> None:
    node = NodeShape(slots=3, slots_all=4, has_gpus=True, unit="node")
    found = search(question("llama-3.1-8b", slots=4, node=node)).chosen
    assert found is not None
    assert found.gpus == pytest.approx(4 / 3)


# Properties

MODELS = st.sampled_from(sorted(BUILTIN))
GPU_KINDS = (("a100", 40), ("a100", 80), ("h100", 80), ("gh200", 96), ("h200", 141), ("l40s", 48))
LINKS = (("all-to-all", "nvlink4"), ("pairs", "nvlink3"), ("none", "pcie"), (None, None))


@st.composite
def questions(draw: st.DrawFn) -> Question:
    gpu, memory_gb = draw(st.sampled_from(GPU_KINDS))
    topology, link = draw(st.sampled_from(LINKS))
    mean = draw(st.integers(1, 20_000))
    new = draw(st.integers(2, 8_000))
    return question(
        draw(MODELS),
        gpu,
        memory_gb,
        slots=draw(st.integers(1, 8)),
        topology=topology,
        link=link,
        unit=draw(st.sampled_from(["gpu", "node"])),
        engine=draw(st.sampled_from(["tensorrt-llm", "vllm", "transformers"])),
        most_nodes=draw(st.integers(1, 8)),
        workload=replace(ROWS, prompt_tokens=mean, new_tokens=new / 2, most_new_tokens=new),
        longest=2 * mean,
    )


@settings(max_examples=60, deadline=None)
@given(questions())
def test_every_accepted_cut_has_a_layout_within_its_bounds(asked: Question) -> None:
    for candidate in search(asked).kept:
        cut = candidate.cut
        layout = lay_out(cut, 1, asked.node)
        assert layout.allocation.nodes == candidate.nodes <= (asked.most_nodes or 0)
        assert cut.ranks <= candidate.gpus * (1 + 1e-9)
        for stage in range(cut.pp):
            nodes = {p.node for p in layout.placements if p.pp_rank == stage}
            assert len(nodes) == 1


@settings(max_examples=60, deadline=None)
@given(questions())
def test_the_chosen_cut_fits_and_no_rejected_one_does(asked: Question) -> None:
    found = search(asked)
    assert all(candidate.fit.fits for candidate in found.kept)
    for wrong in found.rejected[:5]:
        if wrong.code == "plan.gpu-memory":
            again = search(replace(asked, cut=wrong.cut))
            assert not any(c.fit.fits for c in again.kept)


@settings(max_examples=30, deadline=None)
@given(questions(), st.integers(1, 100))
def test_what_fits_a_gpu_fits_a_larger_one(asked: Question, more_gb: int) -> None:
    memory = Bytes((asked.gpus.memory or 0) + more_gb * 10**9)
    larger = replace(asked, gpus=msgspec.structs.replace(asked.gpus, memory=memory))
    before = {c.cut for c in search(asked).kept if c.nodes == 1}
    assert before <= {c.cut for c in search(larger).kept}


@settings(max_examples=30, deadline=None)
@given(questions())
def test_weights_of_a_gpu_fall_with_every_axis(asked: Question) -> None:
    kept = {c.cut: max(s.weights for s in c.fit.stages) for c in search(asked).kept}
    for cut, weights in kept.items():
        for more in (replace(cut, tp=2 * cut.tp), replace(cut, pp=2 * cut.pp)):
            assert kept.get(more, 0) <= weights


@settings(max_examples=30, deadline=None)
@given(questions())
def test_no_smaller_cut_of_the_same_kind_is_clearly_faster_for_each_gpu(asked: Question) -> None:
    best = search(asked).chosen
    for other in search(asked).kept:
        if best is not None and (other.nodes, other.cut.pp) == (1, 1) and other.gpus < best.gpus:
            least = (1 - TIE) * (other.tokens_s_gpu or 0)
            assert asked.shape.experts or least <= (best.tokens_s_gpu or 0)


# What is said of the choice


def test_what_is_said_of_a_choice_is_what_made_it() -> None:
    short = replace(ROWS, prompt_tokens=400, new_tokens=128, most_new_tokens=256)
    roomy = search(question("llama-3.1-70b", workload=short, longest=700))
    assert "of tp 2, whose KV cache has hardly room for longer rows" in roomy.why
    assert "pp 4 (" in roomy.why
    assert roomy.why.endswith("more) is passed over: a pipeline inside a node")
    few = search(question("llama-3.1-405b", engine="tensorrt-llm", longest=700))
    assert "of tp 8, pp 3, by fewer GPUs" in few.why


@pytest.mark.parametrize("fabric", [None, Fabric(type="infiniband", rate=400, nics=8)])
def test_experts_over_a_few_gpus_do_not_make_pipelines_over_nodes_longer(
    fabric: Fabric | None,
) -> None:
    long = replace(ROWS, prompt_tokens=30_000)
    asked = question("deepseek-r1", engine="vllm", workload=long, longest=30_000, fabric=fabric)
    kept = search(asked).kept
    assert {c.cut.tp for c in kept if c.nodes > 1} == {8}
