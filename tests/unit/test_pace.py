"""How fast a replica is said to be, and how long its start, beside what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.models.catalogue import find_builtin
from launcher.models.shapes import ModelShape, shape_from_config
from launcher.plan.outlook import Range, Terms, Work, outlook
from launcher.plan.pace import Replica, modelled, start
from launcher.plan.types import Cut
from launcher.spec.leaves import Bytes
from launcher.spec.site import Fabric, Gpus, Partition

# The shape of benchmarks/gpu_given.py.
ONE_BILLION: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}
H200 = Gpus(
    model="h200", per_node=2, memory=Bytes(141 * 10**9), link="nvlink4", topology="all-to-all"
)
INFINIBAND = Fabric(type="infiniband", rate=400)


def known(name: str) -> ModelShape:
    found = find_builtin(name)
    assert found is not None
    return found


def replica(**changes: Any) -> Replica:
    fields: dict[str, Any] = {
        "shape": known("llama-3.1-8b"),
        "cut": Cut(),
        "nodes": 1,
        "engine": "vllm",
        "options": {},
        "env": {},
        "partition": Partition(gpus=H200, fabric=INFINIBAND),
    }
    return Replica(**fields | changes)


def work(**changes: Any) -> Work:
    fields: dict[str, Any] = {
        "rows": Range.exactly(8593),
        "prompt_tokens": Range.exactly(159.5),
        "new_tokens": Range.exactly(128),
        "prompt_p95": None,
        "most_new_tokens": 192,
    }
    return Work(**fields | changes)


@pytest.mark.parametrize("new_tokens", [Range.exactly(128), Range(48, 96, 192)])
def test_a_run_that_was_measured_as_a_whole_is_within_what_is_said_of_it(new_tokens: Range) -> None:
    """docs/results/2026-11-23-h200-vllm-nodes.md, "From nothing"."""
    shape = shape_from_config("1b", ONE_BILLION)
    there = replica(shape=shape, options={"max_num_seqs": 1024})
    asked = work(new_tokens=new_tokens)
    speed, starting = modelled(there, asked, 1), start("vllm", 2.2e9, 1)
    assert speed.tokens_s.least <= 33_460 <= speed.tokens_s.most
    assert starting.least <= 57.9 <= starting.most
    terms = Terms(
        replicas=1,
        gpus=1,
        start_s=starting,
        time_s=None,
        limit_s=None,
        least_s=None,
        warn_before_s=60,
        restart="none",
        attempts=1,
    )
    wall_s = outlook(asked, speed, terms).wall_s
    assert wall_s.least <= 102.6 <= wall_s.most


def test_what_is_not_known_of_lengths_widens_what_is_said_of_a_row() -> None:
    sure, unsure = (
        modelled(replica(), work(new_tokens=new), 1)
        for new in (Range.exactly(128), Range(64, 128, 256))
    )
    assert unsure.row_s.least < sure.row_s.least
    assert unsure.row_s.likely == sure.row_s.likely
    assert unsure.row_s.most > sure.row_s.most
    long = modelled(replica(), work(prompt_tokens=Range(100, 159.5, 2000)), 1)
    assert long.row_s.most > sure.row_s.most


def test_few_rows_fill_no_batch() -> None:
    assert (
        modelled(replica(), work(), 800).tokens_s.likely
        < modelled(replica(), work(), 1).tokens_s.likely
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"partition": Partition()}, "only GPUs"),
        ({"partition": Partition(gpus=Gpus(model="x1", per_node=1))}, "x1 is not known"),
        ({"shape": known("llama-3.1-405b")}, "the cache holds"),
        ({"cut": Cut(pp=4), "nodes": 2, "partition": Partition(gpus=H200)}, "network is not known"),
    ],
)
def test_what_cannot_be_said_is_a_reason(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        modelled(replica(**changes), work(), 1)


def test_a_node_whose_ports_nobody_counted_has_one() -> None:
    over_nodes = replica(cut=Cut(pp=4), nodes=2)
    one = replace(over_nodes, partition=Partition(gpus=H200, fabric=INFINIBAND))
    counted = Fabric(type="infiniband", rate=400, nics=1)
    other = replace(over_nodes, partition=Partition(gpus=H200, fabric=counted))
    assert modelled(one, work(), 1) == modelled(other, work(), 1)


def test_tokens_are_at_least_one_of_each_kind() -> None:
    tiny = work(prompt_tokens=Range(0.2, 0.5, 1), new_tokens=Range.exactly(1), most_new_tokens=1)
    assert modelled(replica(), tiny, 1).row_s.likely > 0


def test_a_start_takes_longer_the_more_weights_a_node_reads() -> None:
    small, large, shared = (start("vllm", *what) for what in ((1e9, 1), (800e9, 1), (800e9, 2)))
    assert small.least < shared.least < large.least
    assert small.likely < shared.likely < large.likely
    assert small.most < shared.most < large.most
    assert large.least == pytest.approx(33 + 800 / 9)
