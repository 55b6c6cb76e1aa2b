"""What stands in for NCCL: ranks that all take part in every step, or wait for ever."""

from __future__ import annotations

import socket
import time
from typing import Any

from ..logger import write
from ..mapping import Mapping

_STEP, _DONE = 71, 72


class Team:
    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank: int = comm.Get_rank() if comm is not None else 0
        self.size: int = comm.Get_size() if comm is not None else 1

    def meet(self, what: Any = None) -> list[Any]:
        """What every rank brings, by rank, for every rank."""
        if self.size == 1:
            return [what]
        if self.rank > 0:
            self._comm.send(what, dest=0, tag=_DONE)
            found: list[Any] = self._receive(0, _STEP)
            return found
        found = [what, *(self._receive(rank, _DONE) for rank in range(1, self.size))]
        self.tell(found)
        return found

    def tell(self, what: Any) -> None:
        """Rank 0 to all others."""
        for rank in range(1, self.size):
            self._comm.send(what, dest=rank, tag=_STEP)

    def step(self, what: Any) -> None:
        """One forward pass: rank 0 says what, all others have to do their part."""
        self.tell(what)
        for rank in range(1, self.size):
            self._receive(rank, _DONE)

    def told(self) -> Any:
        return self._receive(0, _STEP)

    def done(self) -> None:
        self._comm.send(None, dest=0, tag=_DONE)

    def _receive(self, source: int, tag: int) -> Any:
        """Sleeps while it waits: the real one would take a core for each rank."""
        while not self._comm.iprobe(source=source, tag=tag):
            time.sleep(0.003)
        return self._comm.recv(source=source, tag=tag)


def check_placement(team: Team, mapping: Mapping, gpus: list[str]) -> None:
    """The ranks sit where `Mapping` believes: in blocks on nodes, each with a GPU of its own.

    The GPU of a rank: ``executor/base_worker.py`` @000bd1a6, _get_comm_ranks_device_id.
    """
    if not gpus:
        raise RuntimeError("No CUDA GPUs are available")  # torch
    host, gpu = socket.gethostname(), gpus[mapping.rank % len(gpus)]
    found = team.meet((host, gpu))
    for rank, place in enumerate(found):
        if place == (host, gpu) and rank != mapping.rank:
            # NCCL's src/init.cc
            raise RuntimeError(
                f"Duplicate GPU detected : rank {mapping.rank} and rank {rank} both on CUDA "
                f"device {gpu}"
            )
        same_node = rank // mapping.gpus_per_node == mapping.node_rank
        if (place[0] == host) != same_node:
            raise RuntimeError(
                f"stand-in: rank {rank} is on {place[0]} and rank {mapping.rank} on {host}, with "
                f"gpus_per_node {mapping.gpus_per_node}"
            )
    if len(gpus) != mapping.gpus_per_node:
        raise RuntimeError(
            f"stand-in: gpus_per_node is {mapping.gpus_per_node}, and {len(gpus)} are visible"
        )
    write(
        f"stand-in rank {mapping.rank} of {mapping.world_size} tp {mapping.tp_rank} "
        f"pp {mapping.pp_rank} ep {mapping.moe_ep_rank} is {host} GPU {gpu}\n"
    )
