"""Which CPUs a rank is bound to, and when it is left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.plan.types import NodeGpus
from launcher.runner.binding import bind, cpu_list, cpu_set, gpu_indices, near

# As on nodes of NCSA Delta with four A100: the first GPU is next to the last CPUs.
REVERSED = NodeGpus(count=4, cpus=("48-63", "32-47", "16-31", "0-15"))
UUIDS = [f"GPU-{n}{n}-aa" for n in range(4)]


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """What the driver tells of four GPUs, whose addresses are in their order."""
    for address, uuid in zip(
        ("0000:07:00.0", "0000:46:00.0", "0000:85:00.0", "0000:c7:00.0"), UUIDS, strict=True
    ):
        folder = tmp_path / address
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t NVIDIA A100\nGPU UUID: \t {uuid}\n")
    return tmp_path


@pytest.fixture
def affinity() -> Iterator[frozenset[int]]:
    before = os.sched_getaffinity(0)
    yield frozenset(before)
    os.sched_setaffinity(0, before)


@given(st.frozensets(st.integers(0, 300), min_size=1))
def test_lists_of_cpus_are_read_as_they_are_written(cpus: frozenset[int]) -> None:
    assert cpu_set(cpu_list(cpus)) == cpus


@pytest.mark.parametrize(
    ("listed", "positions", "indices"),
    [
        (None, [0, 3], [0, 3]),
        ("0,1,2,3", [1], [1]),
        ("3,2,1,0", [0, 1], [3, 2]),
        # Part of a node: Slurm's numbers are those of the job or those of the node.
        ("0,1", [0], None),
        ("2,3", [0], None),
        ("MIG-0,MIG-1,MIG-2,MIG-3", [0], None),
    ],
)
def test_a_gpu_is_known_where_the_whole_node_is_seen(
    listed: str | None, positions: list[int], indices: list[int] | None, tmp_path: Path
) -> None:
    assert gpu_indices(4, positions, listed, tmp_path / "none") == indices


def test_a_gpu_is_known_by_its_uuid_on_a_part_of_the_node(driver: Path) -> None:
    assert gpu_indices(4, [0, 1], "GPU-33-aa,GPU-11", driver) == [3, 1]
    assert gpu_indices(4, [0], "GPU-99", driver) is None
    assert gpu_indices(4, [0], "GPU-", driver) is None  # the beginning of all four


def test_a_container_with_some_of_the_gpus_does_not_tell_which(driver: Path) -> None:
    assert gpu_indices(8, [0], "GPU-33-aa", driver) is None


def test_a_rank_gets_the_cpus_of_its_gpus_in_whatever_order_they_are() -> None:
    assert near(REVERSED, [0], None) == frozenset(range(48, 64))
    assert near(REVERSED, [2, 3], "0,1,2,3") == frozenset(range(32))


def test_why_no_cpus_are_near_is_said() -> None:
    assert near(NodeGpus(count=4), [0], None) == "the site file does not say which are near"
    said = near(REVERSED, [0], "0")
    assert said == "it is not certain which GPUs of the node these are"


def test_a_process_is_bound_to_what_is_both_near_and_the_jobs(affinity: frozenset[int]) -> None:
    one = min(affinity)
    assert bind(frozenset({one, 5000}), whole_node=True) is None
    assert os.sched_getaffinity(0) == {one}


@pytest.mark.parametrize("whole_node", [True, False])
def test_where_nothing_near_is_the_jobs_all_stays(
    affinity: frozenset[int], *, whole_node: bool
) -> None:
    assert bind(frozenset({5000}), whole_node=whole_node) == "none of the near ones is the job's"
    assert os.sched_getaffinity(0) == affinity


def test_who_was_given_only_near_cpus_keeps_them(affinity: frozenset[int]) -> None:
    own = {min(affinity)}
    os.sched_setaffinity(0, own)
    assert bind(affinity | {5000}, whole_node=True) is None
    assert os.sched_getaffinity(0) == own


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU has no other")
def test_on_a_whole_node_a_rank_moves_to_the_near_cpus_and_elsewhere_not(
    affinity: frozenset[int],
) -> None:
    first, second = sorted(affinity)[:2]
    os.sched_setaffinity(0, {first})
    assert bind(frozenset({second}), whole_node=False) is not None
    assert os.sched_getaffinity(0) == {first}
    assert bind(frozenset({second}), whole_node=True) is None
    assert os.sched_getaffinity(0) == {second}
