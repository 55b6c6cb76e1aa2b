"""The ranks of one replica that make the same calls: how they meet, stay in step and part.

Rank 0 decides and tells; the others follow. Used by engines whose model is cut over ranks by
torch itself. Between calls the others wait for rank 0 at a store over TCP, not inside a
collective: that may last hours, costs no GPU, and ends at once when rank 0 is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.engines.meeting import MEET_S, announce, find
from launcher.errors import Problem, RunError

__all__ = ["Team", "quiet_torch"]

PART_S = 5.0
# Longest time that one rank may be behind another within a call or while it loads; transformers'
# own (``distributed/utils.py``), for ranks that load tens of minutes apart.
_CALL = timedelta(hours=2)
_KEEPALIVE = timedelta(minutes=1)


def quiet_torch() -> None:
    """Before torch is imported: no warning for each address that has no name.

    c10 reads the variable once (pytorch, ``c10/util/Logging.cpp``).
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


class Team:
    """A torch process group with a leader. One thread of each rank makes all calls.

    Parameters
    ----------
    rank, world
        This rank and how many there are; a world of 1 needs no torch.distributed at all.
    meeting
        File in the run directory where rank 0 says where it listens. It appears whole and once,
        and rank 0 listens already: no port is chosen before it is bound.
    device
        This rank's torch device: NCCL connects GPUs, gloo CPUs.

    Raises
    ------
    RunError
        ``run.rendezvous`` when the ranks do not find each other in time.
    SystemExit
        On a later rank, with 0: the first one has left and needs nobody.
    """

    def __init__(self, rank: int, world: int, meeting: Path | None, device: str = "cpu") -> None:
        self.rank, self.world = rank, world
        self._calls = 0
        if world > 1:
            if meeting is None:
                raise RunError(Problem("run.rendezvous", "several ranks, and no place to meet"))
            self._meet(meeting, device)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, value: object) -> Any:
        """Rank 0's ``value`` on every rank; the others wait for it as long as it takes."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        self._calls += 1
        if self.leads:
            self._store.set(f"call{self._calls}", "")
            self._store.delete_key(f"call{self._calls - 1}")
        else:
            self._await_call()
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, tensor: Any) -> Any:
        """Rank 0's ``tensor`` on every rank; shape and type are the same everywhere."""
        if self.world > 1:
            import torch.distributed as dist

            dist.broadcast(tensor, src=0)
        return tensor

    def leave(self) -> None:
        """End the group. Every rank calls it, or none."""
        if self.world == 1:
            return
        import torch.distributed as dist

        dist.destroy_process_group()
        if self.leads:  # the store goes with this process: last
            others = [f"left{rank}" for rank in range(1, self.world)]
            with contextlib.suppress(dist.DistError):  # they have gone less politely
                self._store.wait(others, timedelta(seconds=PART_S))
        else:
            self._store.set(f"left{self.rank}", "")

    def _await_call(self) -> None:
        import torch.distributed as dist

        while True:
            with contextlib.suppress(dist.DistStoreError):  # that is its timeout
                self._store.wait([f"call{self._calls}"], _KEEPALIVE)
                return

    def _meet(self, meeting: Path, device: str) -> None:
        import torch
        import torch.distributed as dist

        on_gpu = device.startswith("cuda")
        if on_gpu:  # of this thread, and before NCCL looks: else all ranks take the first GPU
            torch.cuda.set_device(device)
        address = self._address(meeting)
        try:
            self._store = self._open_store(meeting, address)
            self._gather()
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.world,
                timeout=_CALL,
                device_id=torch.device(device) if on_gpu else None,
            )
        except RuntimeError as exc:  # torch's own errors of this kind are all made from it
            where = "" if address is None else f", to reach rank 0 at {address[0]}:{address[1]}"
            line = str(exc).strip().partition("\n")[0]
            message = f"rank {self.rank} on {socket.gethostname()}{where}: {line}"
            hint = "name the network's interface as GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME in env"
            raise RunError(Problem("run.rendezvous", message, hint=hint)) from exc

    def _address(self, meeting: Path) -> tuple[str, int] | None:
        if self.leads:
            return None
        host, [port] = find(meeting)
        return host, port

    def _open_store(self, meeting: Path, address: tuple[str, int] | None) -> Any:
        import torch.distributed as dist

        wait = timedelta(seconds=MEET_S)
        if address is not None:
            return dist.TCPStore(*address, self.world, False, wait, wait_for_workers=False)
        store = dist.TCPStore("0.0.0.0", 0, self.world, True, wait, wait_for_workers=False)  # noqa: S104 - all interfaces: which one the others reach is theirs to know
        announce(meeting, store.port)
        return store

    def _gather(self) -> None:
        """Wait until all ranks are at the store, so that connecting them waits for nobody."""
        import torch.distributed as dist

        self._store.set(f"here{self.rank}", "")
        ranks = range(self.world)
        try:
            self._store.wait([f"here{rank}" for rank in ranks], timedelta(seconds=MEET_S))
        except dist.DistStoreError as exc:
            missing = [str(rank) for rank in ranks if not self._store.check([f"here{rank}"])]
            message = f"rank {', '.join(missing)} did not come within {MEET_S:.0f} s"
            raise RunError(Problem("run.rendezvous", message)) from exc
