"""As ``tensorrt_llm/_utils.py``, less most of it: MPI starts with the import of the package.

Without mpi4py there is a world of one rank, which is enough for a worker in the same process.
"""

from __future__ import annotations

import importlib.util
import os
import time
from typing import Any

_COMM: Any = None
if importlib.util.find_spec("mpi4py") is not None:
    from mpi4py import MPI

    _COMM = MPI.COMM_WORLD


def mpi_comm() -> Any:
    return _COMM


def mpi_rank() -> int:
    return int(_COMM.Get_rank()) if _COMM is not None else 0


def mpi_world_size() -> int:
    return int(_COMM.Get_size()) if _COMM is not None else 1


def mpi_barrier() -> None:
    """A barrier that sleeps while it waits: the real one would take a core for each rank."""
    if mpi_world_size() > 1:
        request = _COMM.Ibarrier()
        while not request.Test():
            time.sleep(0.01)


def visible_gpus() -> list[str]:
    """What ``torch.cuda.device_count()`` counts."""
    return [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
