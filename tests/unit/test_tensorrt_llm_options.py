"""What `engine_options` of tensorrt-llm may say, and the file of arguments that comes of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from run_making import make_plan

from launcher.plan.trtllm_options import (
    OWNED,
    VERSIONS,
    complaints,
    fields_of,
    known_options,
)
from launcher.plan.types import Allocation, Cut, Layout, Placement, Plan, Step
from launcher.render.tensorrt_llm import engine_arguments

PAGE = Path(__file__).parents[2] / "docs/reference/tensorrt-llm-arguments.md"


def told(**options: Any) -> list[tuple[str, str]]:
    """The option and the hint of each complaint."""
    found = complaints(options, known_options(), "TensorRT-LLM")
    return [(c.option, c.hint) for c in found]


def hint(**options: Any) -> str:
    [(option, text)] = told(**options)
    assert option in options
    return text


@pytest.mark.parametrize(
    ("option", "better"),
    [
        ("tensor_parallel_size", "parallelism.tp"),
        ("pipeline_parallel_size", "parallelism.pp"),
        ("moe_expert_parallel_size", "parallelism.ep"),
        ("expert_parallel_size", "parallelism.ep"),
        ("gpus_per_node", "resources.gpus_per_node"),
        ("model", "model"),
    ],
)
def test_what_the_plan_decides_is_refused_with_the_key_of_the_job(option: str, better: str) -> None:
    [found] = complaints({option: 2}, known_options(), "TensorRT-LLM")
    assert (found.owned, found.hint) == (True, f"remove it and set {better}")


@pytest.mark.parametrize("option", ["backend", "enable_iter_perf_stats", "orchestrator_type"])
def test_what_the_plan_decides_without_a_key_is_to_be_left_out(option: str) -> None:
    [found] = complaints({option: "x"}, known_options(), "TensorRT-LLM")
    assert (found.owned, found.hint) == (True, "remove it")


@pytest.mark.parametrize(
    ("option", "better"),
    [
        ("kv_cache_dtype", "kv_cache_config: {dtype: …}"),
        ("free_gpu_memory_fraction", "kv_cache_config: {free_gpu_memory_fraction: …}"),
        ("num_workers", "parallelism and replicas"),
        ("quantization", "use a checkpoint whose weights are quantised"),
        ("tp_size", "parallelism.tp"),
        ("max_model_len", "write max_seq_len"),
        ("max_num_seqs", "write max_batch_size"),
        ("build_config_", "build_config"),
        ("max_batch_sise", "write max_batch_size"),
        ("--max-num-tokens", "write max_num_tokens"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(option: str, better: str) -> None:
    assert better in hint(**{option: 1})


def test_a_name_like_none_is_no_sure_mistake_as_a_later_version_may_have_it() -> None:
    [found] = complaints({"warp_drive": True}, known_options(), "TensorRT-LLM")
    assert not found.sure


@pytest.mark.parametrize("dtype", ["fp8", "nvfp4", "int8", 8])
def test_a_quantisation_is_no_dtype(dtype: object) -> None:
    found = hint(dtype=dtype)
    assert "checkpoint whose weights are quantised" in found
    assert "kv_cache_config: {dtype: fp8}" in found


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16", "float32"])
def test_what_is_computed_in_can_be_chosen(dtype: str) -> None:
    assert told(dtype=dtype) == []


def test_a_plain_value_in_the_place_of_options_is_refused() -> None:
    assert "kv_cache_config: {option: value}" in hint(kv_cache_config=0.9)
    assert told(kv_cache_config={"dtype": "fp8"}, cuda_graph_config=None) == []


@pytest.mark.parametrize("option", ["kv_cache_config", "moe_config", "scheduler_config"])
def test_options_that_hold_others_and_cannot_be_null_are_refused(option: str) -> None:
    assert f"{option}: {{option: value}}" in hint(**{option: None})


@pytest.mark.parametrize("value", [0, -1, "512", 512.0, True, None])
@pytest.mark.parametrize("option", ["max_batch_size", "max_num_tokens"])
def test_what_a_step_takes_is_a_number(option: str, value: object) -> None:
    assert "whole number above 0" in hint(**{option: value})


@pytest.mark.parametrize("value", [0, -1, "8k", 8192.0])
def test_the_longest_sequence_is_a_number_or_left_to_the_engine(value: object) -> None:
    assert "whole number above 0" in hint(max_seq_len=value)
    assert told(max_seq_len=8192, max_input_len=None) == []


def test_a_switch_that_is_text_is_refused_as_no_would_be_on() -> None:
    assert "true or false" in hint(enable_attention_dp="no")
    assert told(enable_attention_dp=False, disable_overlap_scheduler=True) == []


@pytest.mark.parametrize("share", [85, 0, -0.5, "0.9", True])
def test_a_share_of_memory_is_no_percentage(share: object) -> None:
    assert "up to 1" in hint(kv_cache_config={"free_gpu_memory_fraction": share})


@pytest.mark.parametrize("share", [0.9, 1, None])
def test_a_share_of_memory_can_be_chosen(share: object) -> None:
    assert told(kv_cache_config={"free_gpu_memory_fraction": share}) == []


def test_every_field_of_every_version_passes_unless_the_plan_has_it() -> None:
    other: dict[str, Any] = {
        "dtype": "auto",
        "max_batch_size": 1,
        "max_num_tokens": 1,
        "kv_cache_config": {},
        "moe_config": {},
        "scheduler_config": {},
    }
    for version in VERSIONS:
        free = dict.fromkeys(fields_of(version) - OWNED.keys()) | other
        assert told(**free) == []


def test_versions_differ_where_their_sources_do() -> None:
    assert "enable_trtllm_sampler" in fields_of("1.0.0")
    assert "enable_trtllm_sampler" not in fields_of("1.1.0")
    assert "env_overrides" not in fields_of("1.1.0")
    assert "env_overrides" in fields_of("1.2.1") & fields_of("1.3.0rc")
    assert "model_kwargs" not in fields_of("1.2.1")


def planned(cut: Cut, per_node: int, **options: Any) -> Plan:
    nodes = cut.ranks // per_node
    placements = tuple(
        Placement(
            replica=0,
            rank=rank,
            node=rank // per_node,
            gpu=rank % per_node,
            local_rank=rank % per_node,
            tp_rank=rank % cut.tp,
            pp_rank=rank // cut.tp,
        )
        for rank in range(cut.ranks)
    )
    allocation = Allocation(
        count=1,
        nodes=nodes,
        gpus_per_node=per_node,
        replicas=1,
        whole_node=True,
        cpus_per_rank=None,
    )
    return make_plan(
        engine="tensorrt-llm",
        model="m",
        model_path="/models/m",
        layout=Layout(replicas=1, cut=cut, allocation=allocation, placements=placements),
        step=Step(kind="leader", nodes=nodes, tasks_per_node=per_node),
        engine_options=options,
    )


def test_the_file_has_the_plans_sizes() -> None:
    found = engine_arguments(planned(Cut(tp=4, pp=2, ep=2), 4))
    assert {name: found[name] for name in OWNED if name in found} == {
        "model": "/models/m",
        "backend": "pytorch",
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 2,
        "moe_expert_parallel_size": 2,
        "gpus_per_node": 4,
        "enable_iter_perf_stats": True,
    }


def test_every_argument_that_no_user_gave_is_known_to_every_version() -> None:
    found = engine_arguments(planned(Cut(tp=2), 2))
    for version in VERSIONS:
        assert found.keys() <= fields_of(version)


def test_options_stand_over_the_defaults_key_by_key() -> None:
    options = {"kv_cache_config": {"dtype": "fp8"}, "max_num_tokens": 4096, "dtype": "bfloat16"}
    found = engine_arguments(planned(Cut(), 1, **options))
    assert found["kv_cache_config"] == {
        "free_gpu_memory_fraction": 0.85,
        "enable_block_reuse": True,
        "dtype": "fp8",
    }
    assert (found["max_num_tokens"], found["dtype"]) == (4096, "bfloat16")


def test_the_kv_cache_is_as_the_checkpoint_says_unless_the_job_asks() -> None:
    assert engine_arguments(planned(Cut(), 1))["kv_cache_config"]["dtype"] == "auto"


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({}, {"enable_padding": True, "max_batch_size": 512}),
        ({"max_batch_size": 64}, {"enable_padding": True, "max_batch_size": 64}),
        (
            {"cuda_graph_config": {"batch_sizes": [1, 8]}},
            {"enable_padding": True, "batch_sizes": [1, 8]},
        ),
        ({"cuda_graph_config": None}, None),
    ],
)
def test_graphs_reach_to_the_largest_step(
    options: dict[str, Any], graphs: dict[str, Any] | None
) -> None:
    assert engine_arguments(planned(Cut(), 1, **options))["cuda_graph_config"] == graphs


def test_the_page_of_arguments_has_each_of_them_with_its_versions() -> None:
    table = PAGE.read_text().split("## Arguments by version")[1]
    found = {}
    for name, text in re.findall(r"^\| `(\w+)` \|(.*)\|$", table, re.MULTILINE):
        *versions, note = text.split("|")
        has = [v for v, cell in zip(VERSIONS, versions, strict=True) if cell.strip() == "✓"]
        found[name] = (has, note.strip() == "*plan*")
    assert found == {
        name: ([v for v in VERSIONS if name in fields_of(v)], name in OWNED)
        for name in sorted(known_options())
    }
