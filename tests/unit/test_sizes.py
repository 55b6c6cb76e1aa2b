"""How large a replica is and how many there are, where the job file does not say."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.errors import PlanError, Problem
from launcher.models.catalogue import BUILTIN
from launcher.models.shapes import ModelShape
from launcher.plan.pace import start
from launcher.plan.resolve import Facts, Resolution, resolve
from launcher.plan.types import Cut
from launcher.plan.workload import Prompts
from launcher.resources import builtin
from launcher.sites import LoadedSite, load_site
from launcher.spec.rules import read_job, read_site
from launcher.spec.source import parse

GPUS = {
    "model": "h100",
    "per_node": 8,
    "memory": "80GB",
    "link": "nvlink4",
    "topology": "all-to-all",
    "request": "--gres=gpu:{n}",
}
GPU = {"nodes": 32, "time_limit": "1d", "cpus": {"count": 96}, "gpus": GPUS}
NETWORK = {"type": "infiniband", "rate": 400, "nics": 8}
CPU = {"nodes": 4, "time_limit": "1d", "memory": "64GB"}
CHAINED = {**GPU, "limits": {"jobs_queued": 9}}
SRUN = {"with": "srun", "mpi": "pmix"}
FEW = Prompts(mean=200, p95=400, most_new=256, rows=10_000, source="told")


def resolved(
    model: str | ModelShape | None = "llama-3.1-8b",
    job: dict[str, Any] | None = None,
    partition: dict[str, Any] | None = None,
    *,
    prompts: Prompts = FEW,
    scheduler: dict[str, Any] | None = None,
) -> Resolution:
    """A job that states no sizes, on partition ``p``."""
    jobs = {"name": "j", "model": "m", "input": {"path": "i"}, "output": {"path": "o"}}
    sites = {
        "name": "here",
        "scheduler": {"type": "slurm", **(scheduler or {})},
        "launch": {"with": "none"} if "type" in (scheduler or {}) else SRUN,
        "partitions": {"p": {**GPU, "fabric": NETWORK} if partition is None else partition},
    }
    job_source = parse("job.yaml", yaml.safe_dump({**jobs, **(job or {})}, sort_keys=False))
    site_source = parse("site.yaml", yaml.safe_dump(sites))
    return resolve(
        read_job(job_source),
        read_site(site_source),
        job_source=job_source,
        site_source=site_source,
        facts=Facts(shape=BUILTIN[model] if isinstance(model, str) else model, prompts=prompts),
    )


def cut(*args: Any, **kwargs: Any) -> Cut:
    return resolved(*args, **kwargs).plan.layout.cut


def replicas(*args: Any, **kwargs: Any) -> tuple[int, int]:
    layout = resolved(*args, **kwargs).plan.layout
    return layout.replicas, layout.allocation.count


def error(*args: Any, **kwargs: Any) -> Problem:
    with pytest.raises(PlanError) as caught:
        resolved(*args, **kwargs)
    (problem,) = [p for p in caught.value.problems if p.severity == "error"]
    return problem


def decided(found: Resolution, key: str) -> tuple[str, str]:
    ((value, source),) = [(d.value, d.source) for d in found.decisions if d.key == key]
    return value, source


def many(rows: int | None, **changes: Any) -> Prompts:
    return replace(FEW, rows=rows, **changes)


# The cut


def test_a_job_that_says_nothing_gets_a_cut_with_its_reasons() -> None:
    found = resolved("llama-3.1-405b")
    assert found.plan.layout.cut == Cut(tp=8, pp=2)
    assert decided(found, "parallelism.tp")[0] == "8"
    assert found.search is not None
    assert decided(found, "parallelism.pp") == ("2", found.search.why)
    assert "47.3 GiB of weights" in decided(found, "memory")[0]
    assert found.workload.prompt_tokens == FEW.mean
    assert found.workload.new_tokens == FEW.most_new / 2


def test_auto_is_what_is_meant_when_nothing_is_said() -> None:
    said = resolved("llama-3.1-70b", {"parallelism": "auto", "replicas": "auto"})
    assert said.plan.layout == resolved("llama-3.1-70b").plan.layout


def test_sizes_left_out_of_a_stated_cut_are_one() -> None:
    assert cut("llama-3.1-70b", {"parallelism": {"tp": 8}}) == Cut(tp=8)


def test_a_stated_cut_is_shown_with_its_memory_and_speed() -> None:
    found = resolved("llama-3.1-70b", {"parallelism": {"tp": 8}}).search
    assert found is not None
    assert found.chosen is not None
    assert found.chosen.cost is not None
    assert found.why == "stated in the job file"


@pytest.mark.parametrize("engine", ["tensorrt-llm", "vllm", "transformers"])
def test_a_stated_cut_that_does_not_fit_is_refused_whatever_the_engine(engine: str) -> None:
    job = {"engine": engine, "parallelism": {"tp": 1}}
    problem = error("llama-3.1-405b", job)
    assert problem.code == "plan.gpu-memory"
    assert "756.0 GiB of weights" in problem.message


def test_the_steps_of_tensorrt_llm_reach_its_arguments_unless_the_job_has_them() -> None:
    chosen = resolved("qwen2.5-7b").plan.engine_options
    assert chosen["max_num_tokens"] == 8192
    stated = {"engine_options": {"max_batch_size": 7}}
    found = resolved("qwen2.5-7b", stated)
    assert found.plan.engine_options["max_batch_size"] == 7
    assert "engine_options.max_batch_size" not in {d.key for d in found.decisions}
    assert resolved("qwen2.5-7b", {"engine": "vllm"}).plan.engine_options == {}


def test_fewer_gpus_a_node_are_all_that_a_cut_may_use() -> None:
    assert cut("llama-3.1-405b-fp8") == Cut(tp=8)
    assert cut("llama-3.1-405b-fp8", {"resources": {"gpus_per_node": 4}}) == Cut(tp=4, pp=2)


def test_one_machine_is_one_node() -> None:
    local: dict[str, Any] = {"scheduler": {"type": "local"}}
    vllm = {"engine": "vllm"}
    assert error("llama-3.1-405b", vllm, **local).code == "plan.auto-no-fit"
    assert cut("llama-3.1-405b-fp8", vllm, **local) == Cut(tp=8)


def test_where_nothing_starts_several_ranks_a_replica_has_one() -> None:
    local: dict[str, Any] = {"scheduler": {"type": "local"}}
    assert replicas("llama-3.1-8b", **local) == (8, 1)
    assert error("llama-3.1-70b", **local).code == "plan.auto-no-fit"


def test_no_more_nodes_are_tried_than_a_job_can_have() -> None:
    small = {**GPU, "limits": {"max_nodes": 1}}
    problem = error("llama-3.1-405b", partition=small)
    assert (problem.code, str(problem.where)) == ("plan.auto-no-fit", "job.yaml:2:8")
    assert "tp 8 needs 99.3 GiB of 78.8 GiB" in problem.message
    few = {**GPU, "limits": {"max_gpus": 8}}
    assert error("llama-3.1-405b", partition=few).code == problem.code


@pytest.mark.parametrize("stated", [{}, {"parallelism": {"tp": 1}}])
def test_vllm_takes_rows_as_long_as_fit_where_the_models_longest_does_not(
    stated: dict[str, Any],
) -> None:
    long = replace(BUILTIN["llama-3.1-8b"], max_position_embeddings=10**6)
    job = {"engine": "vllm", **stated}
    found = resolved(long, job)
    assert found.plan.layout.cut == Cut()
    assert found.plan.engine_options == {"max_model_len": -1}
    assert found.warnings == ()
    short = replace(long, max_position_embeddings=10**4)
    assert resolved(short, job).plan.engine_options == {}
    given = {**job, "engine_options": {"max_model_len": 4096}}
    assert resolved(long, given).plan.engine_options == {"max_model_len": 4096}


def test_stages_that_no_nodes_suit_are_no_fit() -> None:
    job = {"engine_options": {"pp_partition": [16, 16, 16, 16, 16]}}
    with pytest.raises(PlanError) as caught:
        resolved("llama-3.1-70b", job, {**GPU, "limits": {"max_nodes": 1}})
    assert [p.message for p in caught.value.problems if p.code == "plan.auto-no-fit"] == [
        "no cut of m fits partition p"
    ]


# What cannot be computed


def test_a_model_of_unknown_sizes_is_not_guessed() -> None:
    problem = error(None)
    assert (problem.code, str(problem.where)) == ("plan.auto-model", "job.yaml:2:8")
    strange = replace(BUILTIN["llama-3.1-8b"], small_tensors=None, architecture="strange")
    assert "a strange such as" in error(strange).message
    assert cut(None, {"parallelism": {"tp": 2}}) == Cut(tp=2)
    assert cut(strange, {"parallelism": {"tp": 2}}) == Cut(tp=2)


def test_gpus_of_unknown_memory_are_not_guessed() -> None:
    unknown = {**GPU, "gpus": {**GPUS, "memory": None}}
    problem = error(partition=unknown)
    assert (problem.code, str(problem.where)) == ("plan.auto-gpu-memory", "job.yaml:1:1")
    assert "`gpus.memory` of partition p" in problem.message
    stated = {"parallelism": {"tp": 2}}
    found = resolved("llama-3.1-8b", stated, unknown)
    assert (found.plan.layout.cut, found.search) == (Cut(tp=2), None)


def test_options_that_change_what_is_loaded_are_not_guessed() -> None:
    job = {"engine": "vllm", "engine_options": {"cpu_offload_gb": 10}}
    problem = error("llama-3.1-70b", job)
    assert (problem.code, str(problem.where)) == ("plan.auto-options", "job.yaml:9:3")
    assert "cpu_offload_gb" in problem.message


def test_options_of_the_wrong_kind_are_told_and_nothing_breaks() -> None:
    job = {"engine_options": {"kv_cache_config": 3, "max_batch_size": "many"}}
    with pytest.raises(PlanError) as caught:
        resolved("llama-3.1-8b", job)
    assert {p.code for p in caught.value.problems} == {"engine.options"}


@pytest.mark.parametrize("layers", [3, "a", ["a"], [0, 80], [40, 41]])
def test_layers_of_stages_that_cannot_be_are_told_and_nothing_breaks(layers: Any) -> None:
    job = {"engine_options": {"pp_partition": layers}}
    assert error("llama-3.1-70b", job).code == "engine.options"


# Engines without a model, nodes without GPUs


@pytest.mark.parametrize("partition", [GPU, CPU])
def test_the_echo_engine_is_one_replica_of_one_rank(partition: dict[str, Any]) -> None:
    layout = resolved(None, {"engine": "echo"}, partition).plan.layout
    assert (layout.cut, layout.replicas) == (Cut(), 1)


def test_on_cpus_a_replica_is_one_rank() -> None:
    found = resolved("llama-3.1-8b", {"engine": "transformers"}, CPU)
    assert (found.plan.layout.cut, found.plan.layout.replicas) == (Cut(), 1)
    assert found.search is None


def test_weights_that_a_node_without_gpus_cannot_hold_are_refused() -> None:
    job: dict[str, Any] = {"engine": "transformers"}
    problem = error("llama-3.1-70b", job, CPU)
    assert problem.code == "plan.node-memory"
    assert "131.4 GiB" in problem.message
    assert "59.6 GiB" in problem.message
    slots = {**CPU, "slots": 8}
    assert error("llama-3.1-8b", {**job, "replicas": 8}, slots).code == "plan.node-memory"
    assert replicas("llama-3.1-8b", {**job, "replicas": 2}, slots) == (2, 1)


# Replicas


def test_replicas_fill_the_gpus_of_a_node() -> None:
    assert replicas("llama-3.1-8b") == (8, 1)
    assert replicas("llama-3.1-70b") == (4, 1)
    assert replicas("llama-3.1-70b", {"parallelism": {"tp": 8}}) == (1, 1)
    assert replicas("llama-3.1-405b") == (1, 1)


def test_there_are_no_more_replicas_than_have_rows() -> None:
    assert replicas(prompts=many(700)) == (3, 1)
    assert replicas(prompts=many(5)) == (1, 1)


def test_gpus_that_are_held_in_any_case_have_work_as_long_as_there_are_rows() -> None:
    whole = {**GPU, "gpus": {**GPUS, "unit": "node"}}
    assert replicas(partition=whole, prompts=many(700)) == (8, 1)
    assert replicas(partition=whole, prompts=many(5)) == (5, 1)
    assert replicas(partition={**GPU, "limits": {"min_gpus": 4}}, prompts=many(5)) == (4, 1)


def test_there_are_as_many_allocations_as_end_in_time() -> None:
    rows, large = many(400_000_000), {**GPU, "nodes": 1000}
    four: tuple[Any, ...] = ("llama-3.1-8b", {"resources": {"time": "4h"}}, large)
    _, day = replicas(partition=large, prompts=rows)
    _, hours = replicas(*four, prompts=rows)
    assert 1 < day < hours
    found = resolved(*four, prompts=rows)
    assert found.search is not None
    assert found.search.chosen is not None
    assert found.search.chosen.cost is not None
    slow = found.search.chosen.cost.tokens_s_range[0]
    needed_s = 400_000_000 * found.workload.new_tokens / (slow * hours * 8)
    left_s = 4 * 3600 - 300 - start("tensorrt-llm", 2 * 8.03e9, 1).most
    assert needed_s <= left_s < needed_s * hours / (hours - 1)
    assert "of work for one" in decided(found, "replicas")[1]


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"partition": {**GPU, "nodes": 3}}, 3),
        ({"partition": {**GPU, "limits": {"jobs_running": 2}}}, 2),
        ({"partition": {**GPU, "limits": {"jobs_queued": 4}}}, 4),
        ({"scheduler": {"max_array_size": 5}}, 5),
        ({"job": {"resources": {"at_once": 6, "time": "1h"}}}, 6),
        ({"scheduler": {"type": "local"}}, 1),
        ({"scheduler": {"restart": "chain"}, "partition": CHAINED}, 2),
    ],
)
def test_what_a_user_may_have_bounds_them(changes: dict[str, Any], most: int) -> None:
    endless = many(10**10)
    assert replicas("llama-3.1-8b", prompts=endless, **changes) == (8 * most, most)


def test_a_qos_bounds_them_too() -> None:
    qos = {**GPU, "qos": {"small": {"jobs_running": 3}}}
    job = {"resources": {"qos": "small"}}
    assert replicas("llama-3.1-8b", job, qos, prompts=many(10**10))[1] == 3


def test_a_job_that_can_have_few_gpus_gets_a_part_of_a_node() -> None:
    found = resolved("llama-3.1-8b", partition={**GPU, "limits": {"max_gpus": 2}})
    assert (found.plan.layout.replicas, found.plan.layout.allocation.gpus_per_node) == (2, 2)
    assert decided(found, "gpus_per_node")[0] == "2"


def test_where_the_time_is_not_known_there_is_one_allocation() -> None:
    assert replicas(prompts=many(None)) == (8, 1)
    strange = {**GPU, "gpus": {**GPUS, "model": "mi300x"}}
    assert replicas(partition=strange, prompts=many(10**10)) == (8, 1)
    tight = {"resources": {"time": "10m"}}
    assert replicas("llama-3.1-8b", tight, prompts=many(10**10)) == (8, 1)


# Every model on every site

SITES = sorted(Path(str(builtin("site_configs"))).glob("*.yaml"))
REFUSALS = {"plan.auto-gpu-memory", "plan.auto-no-fit", "plan.no-gpus", "plan.time-over-limit"}
REFUSALS |= {"plan.too-many-jobs", "plan.job-too-small"}


@cache
def site(path: Path) -> LoadedSite:
    return load_site(str(path), "shipped")


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_every_model_is_planned_on_every_site_or_it_is_said_why_not(path: Path) -> None:
    loaded = site(path)
    prompts = replace(FEW, rows=10**6)
    for name, partition in loaded.spec.partitions.items():
        resources = {"partition": name, "time": "30m", "account": "a"}
        for model, shape in BUILTIN.items():
            spec = {"name": "j", "engine": "vllm", "model": model, "resources": resources}
            others = {"input": {"path": "i"}, "output": {"path": "o"}, "runtime": {"venv": "/v"}}
            source = parse("job.yaml", yaml.safe_dump(spec | others))
            try:
                plan = resolve(
                    read_job(source),
                    loaded.spec,
                    job_source=source,
                    site_source=loaded.source,
                    facts=Facts(shape=shape, prompts=prompts),
                ).plan
            except PlanError as exc:
                found = [p for p in exc.problems if p.severity == "error"]
                assert {p.code for p in found} <= REFUSALS, (name, model, found)
                assert all(p.hint for p in found)
                continue
            allocation = plan.layout.allocation
            assert partition.gpus is not None
            assert allocation.gpus_per_node <= partition.gpus.per_node
            assert partition.nodes is None or allocation.count * allocation.nodes <= partition.nodes
