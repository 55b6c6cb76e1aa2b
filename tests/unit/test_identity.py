"""Who a rank is, and which GPUs are its replica's."""

from __future__ import annotations

from typing import get_args

import pytest

from launcher.errors import RunError
from launcher.plan.types import Launcher, Placement
from launcher.runner.identity import RankIds, find_rank, visible_gpus, worker_name

SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
}
HYDRA = {"PMI_RANK": "6", "PMI_SIZE": "8", "MPI_LOCALRANKID": "2"}


def test_without_a_launcher_a_process_is_alone_whatever_surrounds_it() -> None:
    assert find_rank("none", SLURM | OPENMPI) == RankIds(0, 1, 0)


def test_srun_ranks_come_from_slurm() -> None:
    assert find_rank("srun", SLURM) == RankIds(5, 8, 1)


@pytest.mark.parametrize(("variables", "rank"), [(OPENMPI, (3, 8, 2)), (HYDRA, (6, 8, 2))])
def test_under_mpirun_slurm_only_knows_the_daemon(
    variables: dict[str, str], rank: tuple[int, int, int]
) -> None:
    leaked = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}
    assert find_rank("mpirun", leaked | variables) == RankIds(*rank)


def test_srun_with_pmi2_knows_the_local_rank_too() -> None:
    """Slurm's pmi2 plugin sets PMI_RANK and PMI_SIZE, but nothing of the local rank."""
    pmi2 = {"PMI_RANK": "5", "PMI_SIZE": "8", "PMI_FD": "12"}
    assert find_rank("srun", SLURM | pmi2) == RankIds(5, 8, 1)


@pytest.mark.parametrize("launcher", sorted(set(get_args(Launcher)) - {"none"}))
@pytest.mark.parametrize("environ", [{}, {"SLURM_PROCID": "0"}, {"PMI_SIZE": "4"}])
def test_a_launched_process_without_a_rank_is_refused(
    launcher: Launcher, environ: dict[str, str]
) -> None:
    with pytest.raises(RunError) as caught:
        find_rank(launcher, environ)
    assert [p.code for p in caught.value.problems] == ["run.rank-unknown"]


def replica(*gpus: int | None, node: int = 0) -> tuple[Placement, ...]:
    return tuple(
        Placement(replica=0, rank=i, node=node, gpu=gpu, local_rank=i, tp_rank=i, pp_rank=0)
        for i, gpu in enumerate(gpus)
    )


def test_positions_are_looked_up_in_the_list_the_job_was_given() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "3,4,5,6"}
    assert visible_gpus(replica(2, 3), 0, whole_node=False, environ=environ) == "5,6"


def test_names_of_gpus_are_carried_as_they_are() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "GPU-aa,MIG-bb"}
    assert visible_gpus(replica(1), 0, whole_node=False, environ=environ) == "MIG-bb"


def test_a_whole_node_without_a_list_counts_from_zero() -> None:
    assert visible_gpus(replica(0, 1, 2), 0, whole_node=True, environ={}) == "0,1,2"


def test_a_list_wins_even_on_a_whole_node() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "7,6"}
    assert visible_gpus(replica(0, 1), 0, whole_node=True, environ=environ) == "7,6"


def test_a_share_of_a_node_without_a_list_is_refused() -> None:
    with pytest.raises(RunError) as caught:
        visible_gpus(replica(0), 0, whole_node=False, environ={})
    assert [p.code for p in caught.value.problems] == ["gpu.visibility-unknown"]


@pytest.mark.parametrize("listed", ["", "0", ",,", "0,"])
def test_too_short_a_list_is_refused(listed: str) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": listed}
    with pytest.raises(RunError) as caught:
        visible_gpus(replica(0, 1), 0, whole_node=True, environ=environ)
    assert [p.code for p in caught.value.problems] == ["gpu.too-few"]


def test_slurms_word_for_no_gpu_is_no_gpu() -> None:
    """Slurm's gres/gpu plugin puts this into the list of a step without GPUs."""
    environ = {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}
    with pytest.raises(RunError) as caught:
        visible_gpus(replica(0), 0, whole_node=False, environ=environ)
    assert [p.code for p in caught.value.problems] == ["gpu.too-few"]


def test_only_the_ranks_of_this_node_count() -> None:
    placements = replica(0, 1, node=0) + replica(0, 1, node=1)
    environ = {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert visible_gpus(placements, 1, whole_node=False, environ=environ) == "4,5"
    assert visible_gpus(placements, 2, whole_node=False, environ=environ) is None


def test_cpu_ranks_have_no_list() -> None:
    assert visible_gpus(replica(None, None), 0, whole_node=False, environ={}) is None


def test_no_two_workers_share_a_name() -> None:
    assert len({worker_name("7", 0, 0) for _ in range(100)}) == 100
    assert worker_name("7_1", 2, 3).startswith("7_1.2.s3.")
