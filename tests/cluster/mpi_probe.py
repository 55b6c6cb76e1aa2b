"""Starts MPI as an engine would, meets the other ranks, and says who it is: ``mpi RANK of SIZE``.

By ctypes, since no binding is installed for each of the MPIs.
"""

from __future__ import annotations

import ctypes
import sys

mpi = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
# The world is a number in MPICH's mpi.h, and the address of a variable in Open MPI's.
world = (
    ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(mpi, "ompi_mpi_comm_world")))
    if hasattr(mpi, "ompi_mpi_comm_world")
    else ctypes.c_int(0x44000000)
)
rank, size = ctypes.c_int(-1), ctypes.c_int(-1)
for code in (
    mpi.MPI_Init(None, None),
    mpi.MPI_Comm_rank(world, ctypes.byref(rank)),
    mpi.MPI_Comm_size(world, ctypes.byref(size)),
    mpi.MPI_Barrier(world),
    mpi.MPI_Finalize(),
):
    if code:
        sys.exit(f"MPI returned {code}")
sys.stdout.write(f"mpi {rank.value} of {size.value}\n")
