from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import Problem
from launcher.models.catalogue import BUILTIN
from launcher.models.quantisation import Quantisation
from launcher.models.shapes import Experts, ModelShape
from launcher.plan.checks import check_cut, nvlink_domain
from launcher.plan.types import Cut

QWEN3_FP8 = replace(
    BUILTIN["qwen3-235b-a22b"], quantisation=Quantisation(method="fp8", bits=8, block_size=128)
)


def check(
    shape: ModelShape | str | None,
    *,
    gpus: int | None = 8,
    domain: int | None = None,
    allow: Collection[str] = (),
    **cut: int,
) -> list[Problem]:
    found = BUILTIN[shape] if isinstance(shape, str) else shape
    return check_cut(found, Cut(**cut), gpus_per_node=gpus, nvlink_domain=domain, allow=allow)


def codes(*args: Any, **kwargs: Any) -> list[str]:
    return [p.code for p in check(*args, **kwargs)]


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ("llama-3.1-405b", Cut(tp=8, pp=2)),
        ("llama-3.1-8b", Cut()),
        ("smollm2-135m", Cut(tp=3)),
        ("mixtral-8x22b", Cut(tp=8, ep=8)),
        ("deepseek-v3", Cut(tp=8, pp=2, ep=8)),
        ("gpt-oss-120b", Cut(tp=8)),
        ("qwen3-235b-a22b", Cut(tp=8)),
        ("llama-3.1-405b", Cut(tp=4, pp=126)),
        (None, Cut(tp=8, pp=500)),
    ],
)
def test_a_sound_cut_has_no_problem(shape: str | None, cut: Cut) -> None:
    found = BUILTIN[shape] if shape else None
    assert check_cut(found, cut, gpus_per_node=8, nvlink_domain=8, allow=()) == []


def test_query_heads_divide_over_tp() -> None:
    problem = check("llama-4-scout", gpus=None, tp=16)[0]
    assert problem.code == "plan.tp-heads"
    assert "40" in problem.message
    assert "tp=16" in problem.message
    assert problem.hint == "choose tp from 1, 2, 4, 8"


def test_smollm2_is_cut_in_three_but_not_in_two() -> None:
    problems = check("smollm2-135m", tp=2)
    assert [p.code for p in problems] == ["plan.tp-heads", "plan.tp-kv-heads"]
    assert {p.hint for p in problems} == {"choose tp from 1, 3"}


@pytest.mark.parametrize("tp", [2, 5, 10, 20])
def test_kv_heads_divide_over_tp_or_are_repeated_evenly(tp: int) -> None:
    assert check("phi-4", gpus=None, tp=tp) == []


def test_kv_heads_that_do_neither_are_refused() -> None:
    assert codes("phi-4", tp=4) == ["plan.tp-kv-heads"]


def test_latent_attention_has_no_kv_heads_to_divide() -> None:
    shape = replace(BUILTIN["deepseek-v2"], kv_heads=3)
    assert check(shape, tp=8) == []


def test_the_mlp_divides_over_tp() -> None:
    problem = check("smollm2-135m", gpus=None, tp=9)[0]
    assert problem.code == "plan.tp-intermediate"
    assert "1536" in problem.message
    assert problem.hint == "choose tp from 1, 3"


def test_the_width_of_experts_divides_over_the_ranks_that_share_one() -> None:
    experts = Experts(count=8, per_token=2, intermediate_size=130, layers=(0, 1))
    shape = replace(BUILTIN["llama-3.1-8b"], experts=experts, dense_layers=0)
    problem = check(shape, tp=8)[0]
    assert problem.code == "plan.tp-intermediate"
    assert "moe_intermediate_size 130" in problem.message
    assert problem.hint == "choose tp from 1, 2 or ep from 4, 8"
    assert check(shape, tp=8, ep=4) == []


def test_only_widths_that_some_layer_has_are_checked() -> None:
    assert check(replace(QWEN3_FP8, intermediate_size=1), tp=4) == []


def test_shards_of_block_scaled_weights_are_whole_blocks() -> None:
    problem = check(QWEN3_FP8, tp=8)[0]
    assert problem.code == "plan.quant-block"
    assert "192" in problem.message
    assert problem.hint == "choose tp from 1, 2, 4 or ep from 2, 4, 8"
    assert check(QWEN3_FP8, tp=8, ep=2) == []


def test_weights_whose_whole_width_is_no_multiple_of_the_block_need_another_checkpoint() -> None:
    fp8 = Quantisation(method="fp8", bits=8, block_size=1000)
    problem = check(replace(BUILTIN["llama-3.1-8b"], quantisation=fp8))[0]
    assert problem.code == "plan.quant-block"
    assert problem.hint is not None
    assert problem.hint.startswith("use a checkpoint")


def test_group_scaled_weights_are_not_held_to_blocks() -> None:
    awq = Quantisation(method="awq", bits=4, group_size=128)
    assert check(replace(QWEN3_FP8, quantisation=awq), tp=8) == []


def test_experts_spread_inside_a_tensor_parallel_group() -> None:
    problems = check("mixtral-8x7b", tp=4, ep=8)
    assert [p.code for p in problems] == ["plan.ep-tp"]
    assert problems[0].hint == "choose ep from 1, 2, 4 or tp 8"


def test_experts_cannot_outgrow_tp_even_where_the_model_is_not_known() -> None:
    assert codes(None, tp=4, ep=3) == ["plan.ep-tp"]


def test_a_dense_model_has_nothing_for_expert_parallelism() -> None:
    problems = check("llama-3.1-8b", tp=8, ep=2)
    assert [(p.code, p.hint) for p in problems] == [("plan.ep-dense", "choose ep 1")]


def test_experts_divide_over_ep() -> None:
    problems = check("mixtral-8x22b", gpus=16, tp=16, ep=16)
    assert [p.code for p in problems] == ["plan.ep-experts"]
    assert problems[0].hint == "choose ep from 1, 2, 4, 8"


def test_there_is_a_layer_for_every_stage() -> None:
    problems = check("smollm2-135m", pp=31)
    assert [p.code for p in problems] == ["plan.pp-layers"]
    assert problems[0].hint == "choose pp from 1 to 30"


def test_tp_beyond_a_node_is_refused_with_what_fits() -> None:
    (problem,) = check("llama-3.1-405b", tp=16)
    assert (problem.code, problem.severity) == ("plan.tp-over-fabric", "error")
    assert problem.hint is not None
    assert problem.hint.startswith("choose tp from 1, 2, 4, 8 ")
    assert "allow: [tp-over-fabric]" in problem.hint


def test_tp_beyond_a_node_is_a_warning_where_it_is_allowed() -> None:
    (problem,) = check("llama-3.1-405b", tp=16, allow=["tp-over-fabric"])
    assert (problem.code, problem.severity) == ("plan.tp-over-fabric", "warning")


@pytest.mark.parametrize(
    ("tp", "gpus", "domain"),
    [(4, 8, 2), (2, 8, 1), (3, 8, 4), (8, 4, 8), (16, None, 8), (16, 8, None)],
)
def test_a_group_that_leaves_the_joined_gpus_is_refused(
    tp: int, gpus: int | None, domain: int | None
) -> None:
    assert codes(None, gpus=gpus, domain=domain, tp=tp) == ["plan.tp-over-fabric"]


@pytest.mark.parametrize(
    ("tp", "gpus", "domain"),
    [(2, 8, 2), (1, 8, 1), (3, 8, 8), (4, 4, 8), (3, 8, None), (16, None, None)],
)
def test_a_group_that_stays_on_the_joined_gpus_is_taken(
    tp: int, gpus: int | None, domain: int | None
) -> None:
    assert check(None, gpus=gpus, domain=domain, tp=tp) == []


def test_everything_that_is_wrong_is_said_at_once() -> None:
    problems = check("smollm2-135m", domain=8, tp=16, ep=5, pp=99)
    assert sorted(p.code for p in problems) == [
        "plan.ep-dense",
        "plan.ep-tp",
        "plan.pp-layers",
        "plan.tp-heads",
        "plan.tp-kv-heads",
        "plan.tp-over-fabric",
    ]
    hints = {p.code: p.hint for p in problems}
    assert hints["plan.tp-heads"] == "choose tp from 1, 3"
    assert hints["plan.ep-dense"] == "choose ep 1"


@pytest.mark.parametrize(
    ("topology", "joined"), [("all-to-all", 8), ("pairs", 2), ("none", 1), (None, None)]
)
def test_the_topology_says_how_many_gpus_nvlink_joins(
    topology: str | None, joined: int | None
) -> None:
    assert nvlink_domain(topology, 8) == joined


def test_one_gpu_has_no_pair() -> None:
    assert nvlink_domain("pairs", 1) == 1


sizes = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 9, 10, 16, 32])
cuts = st.builds(Cut, tp=sizes, pp=sizes, ep=sizes)
shapes = st.sampled_from([*BUILTIN.values(), QWEN3_FP8])


@given(shapes, cuts, sizes)
def test_without_a_problem_every_shard_is_whole(shape: ModelShape, cut: Cut, gpus: int) -> None:
    if check_cut(shape, cut, gpus_per_node=gpus, nvlink_domain=None, allow=()):
        return
    assert cut.tp <= gpus
    assert cut.pp <= shape.layers
    assert shape.heads % cut.tp == 0
    assert cut.tp % cut.ep == 0
    if shape.latent_attention is None:
        assert max(shape.kv_heads, cut.tp) % min(shape.kv_heads, cut.tp) == 0
    block = (shape.quantisation and shape.quantisation.block_size) or 1
    if shape.dense_layers:
        assert shape.intermediate_size % (cut.tp * block) == 0
    if shape.experts is None:
        assert cut.ep == 1
    else:
        assert shape.experts.count % cut.ep == 0
        assert shape.experts.intermediate_size % (cut.tp // cut.ep * block) == 0


@given(shapes, cuts, sizes)
def test_a_value_from_the_hint_rights_what_it_stands_beside(
    shape: ModelShape, cut: Cut, gpus: int
) -> None:
    for problem in check_cut(shape, cut, gpus_per_node=gpus, nvlink_domain=None, allow=()):
        assert problem.hint is not None
        knob, *words = problem.hint.removeprefix("choose ").split()
        value = next(int(word.strip(",")) for word in words if word.strip(",").isdigit())
        better = replace(cut, **{knob: value})
        after = check_cut(shape, better, gpus_per_node=gpus, nvlink_domain=None, allow=())
        assert problem.code not in [p.code for p in after]
