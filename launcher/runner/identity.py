"""Who this process is: a rank of a step, with some of the node's GPUs."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from launcher.errors import Problem, RunError
from launcher.plan.types import Launcher, Placement

__all__ = ["CPUS_GIVEN", "RankIds", "RankReport", "find_rank", "visible_gpus", "worker_name"]

# How many CPUs a rank was given before it was bound to the near ones.
CPUS_GIVEN = "HPC_LLM_CPUS_GIVEN"

# (rank, world, local rank) of each MPI. Under mpirun before Slurm's: there every node still
# carries the SLURM_PROCID of the daemon that mpirun started there.
_MPI_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
_SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


@dataclass(frozen=True, slots=True)
class RankIds:
    """Rank in the step, size of the step, rank on this node."""

    rank: int
    world: int
    local_rank: int


def find_rank(launcher: Launcher, environ: Mapping[str, str] = os.environ) -> RankIds:
    """The rank that ``launcher`` gave this process; alone when nothing launched it.

    Raises
    ------
    RunError
        ``run.rank-unknown`` when the launcher's variables are missing.
    """
    if launcher == "none":
        return RankIds(0, 1, 0)
    # srun's own are always right, and its pmi2 plugin sets no local rank.
    slurm, mpi = (_SLURM_VARIABLES,), _MPI_VARIABLES
    for rank, world, local_rank in (*slurm, *mpi) if launcher == "srun" else (*mpi, *slurm):
        if rank in environ and world in environ:
            local = environ.get(local_rank, "0")
            return RankIds(int(environ[rank]), int(environ[world]), int(local))
    raise RunError(
        Problem(
            "run.rank-unknown",
            f"{launcher} started this process without a rank in its environment",
            hint="compare launch.mpi of the site file with `srun --mpi=list`",
        )
    )


def visible_gpus(
    placements: tuple[Placement, ...],
    node: int,
    *,
    whole_node: bool,
    environ: Mapping[str, str] = os.environ,
) -> str | None:
    """``CUDA_VISIBLE_DEVICES`` for every rank of one replica on ``node``; None on CPUs.

    The plan counts positions in the list of GPUs that the job was given: a partly occupied
    node may give 3,4,5,6, and there position 0 is GPU 3.

    Raises
    ------
    RunError
        ``gpu.visibility-unknown`` when there is no list and the job has not the whole node;
        ``gpu.too-few`` when the list is shorter than the plan.
    """
    positions = [p.gpu for p in placements if p.node == node and p.gpu is not None]
    if not positions:
        return None
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None and not whole_node:
        raise RunError(
            Problem(
                "gpu.visibility-unknown",
                "CUDA_VISIBLE_DEVICES is unset and the job has not the whole node",
                hint="ask for whole nodes, or let Slurm set it (gres.conf with File=)",
            )
        )
    if listed is None:
        return ",".join(map(str, positions))
    # NoDevFiles is what Slurm's gres/gpu plugin gives to steps without GPUs.
    given = [device for device in listed.split(",") if device not in ("", "NoDevFiles")]
    if max(positions) >= len(given):
        message = f"the plan needs {max(positions) + 1} GPUs here, the job sees {listed!r}"
        raise RunError(Problem("gpu.too-few", message))
    return ",".join(given[position] for position in positions)


def worker_name(job: str, restart: int, replica: int) -> str:
    """A name no other worker has, now or later."""
    return f"{job}.{restart}.s{replica}.{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """Where a task's ranks really sit, as their wrapper saw it.

    Attributes
    ----------
    rank, tp_rank, pp_rank
        The first rank of this task.
    last_rank
        The last one: the same unless the task starts several itself.
    gpus
        CUDA's ids of the GPUs that its replica has on this node, None on CPUs.
    cpus, cpu_list
        How many CPUs it may use, and which.
    unbound
        Why these are not those next to its GPUs; None where they are.
    network
        ``NAME=value`` of what is set for NCCL and for what else uses the network.
    """

    replica: int
    rank: int
    last_rank: int
    tp_rank: int
    pp_rank: int
    host: str
    gpus: str | None
    cpus: int
    cpu_list: str
    unbound: str | None
    network: tuple[str, ...]

    def line(self) -> str:
        """One line for the step's log, to be found there again."""
        return f"hpc-llm rank {json.dumps(asdict(self))}"
