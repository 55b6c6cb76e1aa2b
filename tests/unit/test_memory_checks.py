"""What users are told of a model that the GPUs do not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from launcher.errors import Problem
from launcher.models.catalogue import BUILTIN
from launcher.models.quantisation import Quantisation
from launcher.models.shapes import ModelShape
from launcher.plan.memory_checks import check_memory
from launcher.plan.types import Cut

LARGE, SMALL = BUILTIN["llama-3.1-70b"], BUILTIN["llama-3.1-8b"]
ENGINES = ("tensorrt-llm", "transformers", "vllm")


def problems(
    shape: ModelShape | None,
    cut: Cut,
    engine: str = "tensorrt-llm",
    options: Mapping[str, Any] | None = None,
    gpu_bytes: int | None = 80 * 10**9,
) -> list[Problem]:
    return list(
        check_memory(
            shape, cut, engine, options or {}, gpu_model="h100", gpu_bytes=gpu_bytes, output=512
        )
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_do_not_fit_are_refused_with_how_many_ranks_do(engine: str) -> None:
    (problem,) = problems(LARGE, Cut(), engine)
    assert (problem.code, problem.severity) == ("plan.gpu-memory", "error")
    assert "does not fit: of 1 GPU with 78.8 GiB one takes 131.4 GiB of weights" in problem.message
    ranks = int(str(problem.hint).split(" ranks")[0].split()[-1])
    assert problems(LARGE, Cut(pp=ranks), engine) == []
    assert problems(LARGE, Cut(pp=ranks - 1), engine) != []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cut_that_leaves_room_is_not_spoken_of(engine: str) -> None:
    assert problems(LARGE, Cut(tp=4), engine) == []
    assert problems(SMALL, Cut(), engine) == []


def test_a_cut_within_the_margin_is_a_warning() -> None:
    (problem,) = problems(LARGE, Cut(tp=2))
    assert (problem.code, problem.severity) == ("plan.gpu-memory", "warning")
    assert "may not fit" in problem.message
    assert str(problem.hint).startswith("raise parallelism.tp or pp to 4 ranks or more, or lower")
    share = float(str(problem.hint).split()[-1])
    cache = {"kv_cache_config": {"free_gpu_memory_fraction": share}}
    assert problems(LARGE, Cut(tp=2), options=cache) == []


@pytest.mark.parametrize("share", [0.96, 1])
def test_a_share_that_leaves_vllm_nothing_beyond_its_count_is_a_warning(share: float) -> None:
    (problem,) = problems(SMALL, Cut(), "vllm", {"gpu_memory_utilization": share})
    assert problem.severity == "warning"
    assert str(problem.hint).endswith("lower engine_options.gpu_memory_utilization to 0.95")


def test_a_cache_of_a_size_that_no_gpu_has_is_refused() -> None:
    (problem,) = problems(SMALL, Cut(), "vllm", {"kv_cache_memory_bytes": 100 * 2**30})
    assert problem.severity == "error"


def test_graphs_that_the_cache_leaves_no_room_are_a_warning() -> None:
    # 32.9 of 39.4 GiB are weights.
    (problem,) = problems(LARGE, Cut(tp=4), gpu_bytes=40 * 10**9)
    assert problem.severity == "warning"
    assert "free_gpu_memory_fraction to 0.5" in str(problem.hint)


def test_what_hardly_fits_by_its_weights_alone_is_refused() -> None:
    # 65.7 of 66.0 GiB: no KV cache, and no step, has room beside that.
    (problem,) = problems(LARGE, Cut(tp=2), gpu_bytes=67 * 10**9)
    assert problem.severity == "error"


def test_the_longest_row_of_vllm_is_told_before_more_gpus() -> None:
    long = replace(SMALL, max_position_embeddings=10**6)
    (problem,) = problems(long, Cut(), "vllm")
    assert "a sequence of 1000000 tokens" in problem.message
    assert "max_model_len" in str(problem.hint)
    assert problems(long, Cut(), "vllm", {"max_model_len": 8192}) == []


def test_where_no_cut_helps_other_gpus_do() -> None:
    (problem,) = problems(SMALL, Cut(), gpu_bytes=2 * 10**9)
    assert "GPUs with more memory" in str(problem.hint)


def test_quantised_weights_are_counted_by_their_bits() -> None:
    eight = BUILTIN["llama-3.1-405b-fp8"]
    assert problems(eight, Cut(tp=8)) == []
    assert problems(replace(eight, quantisation=None), Cut(tp=8)) != []


UNKNOWN: dict[str, dict[str, Any]] = {
    "model": {"shape": None},
    "GPU": {"gpu_bytes": None},
    "tensors": {"shape": replace(LARGE, small_tensors=None)},
    "bits": {"shape": replace(LARGE, quantisation=Quantisation(method="unknown", bits=None))},
    "engine": {"engine": "echo"},
    "option": {"engine": "vllm", "options": {"quantization": "fp8"}},
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_of_what_is_not_known_no_memory_is_counted(what: str) -> None:
    given: dict[str, Any] = {"shape": LARGE, "cut": Cut(), "gpu_bytes": 10**9} | UNKNOWN[what]
    assert problems(**given) == []
