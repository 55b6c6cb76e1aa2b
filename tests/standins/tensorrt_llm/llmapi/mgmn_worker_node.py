"""As ``tensorrt_llm/llmapi/mgmn_worker_node.py`` @8f91cff2: ranks above 0, which take tasks."""

from __future__ import annotations

import logging

from mpi4py.futures import MPICommExecutor
from mpi4py.MPI import COMM_WORLD

with MPICommExecutor(COMM_WORLD) as executor:
    if executor is not None:
        raise RuntimeError(f"rank{COMM_WORLD.rank} should not have executor")

logging.warning("worker rank%s quited", COMM_WORLD.rank)  # noqa: LOG015 - as it does
