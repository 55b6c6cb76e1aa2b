"""The ranks of one replica that make the same calls: how they meet and stay in step.

Rank 0 decides and tells; the others follow. Used by engines whose model is cut over ranks by
torch itself.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.errors import Problem, RunError
from launcher.rundir import publish

__all__ = ["Team"]

MEET_S = 300.0
# A rank that waits for the next batch waits inside a collective; a dead peer is noticed by the
# launcher, which ends the step, not by this.
_IDLE = timedelta(days=30)


class Team:
    """A torch process group with a leader.

    Parameters
    ----------
    rank, world
        This rank and how many there are; a world of 1 needs no torch.distributed at all.
    meeting
        File in the run directory where rank 0 says where it listens. It appears whole and once,
        and rank 0 listens already: no port is chosen before it is bound.

    Raises
    ------
    RunError
        ``run.rendezvous`` when the ranks do not find each other in time.
    SystemExit
        On a later rank, with 0: the first one has left and needs nobody.
    """

    def __init__(self, rank: int, world: int, meeting: Path | None) -> None:
        self.rank, self.world = rank, world
        if world > 1:
            if meeting is None:
                raise RunError(Problem("run.rendezvous", "several ranks, and no place to meet"))
            self._meet(meeting)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, value: object) -> Any:
        """Rank 0's ``value`` on every rank."""
        if self.world == 1:
            return value
        import torch.distributed as dist

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
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def _meet(self, meeting: Path) -> None:
        import torch
        import torch.distributed as dist

        wait = timedelta(seconds=MEET_S)
        if self.leads:
            store = dist.TCPStore("0.0.0.0", 0, self.world, True, wait, wait_for_workers=False)  # noqa: S104 - all interfaces: which one the others reach is theirs to know
            publish(meeting, json.dumps([socket.gethostname(), store.port]).encode())
        else:
            host, port = _read_address(meeting)
            store = dist.TCPStore(host, port, self.world, False, wait, wait_for_workers=False)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.world, timeout=_IDLE
            )
        except (RuntimeError, dist.DistError) as exc:
            raise RunError(Problem("run.rendezvous", f"rank {self.rank}: {exc}")) from exc


def _read_address(meeting: Path) -> tuple[str, int]:
    """What rank 0 published; found by opening it, since a listing may be a minute old."""
    deadline = time.monotonic() + MEET_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            address = json.loads(meeting.read_bytes())
            if address is None:
                raise SystemExit(0)
            return str(address[0]), int(address[1])
        time.sleep(0.1)
    message = f"rank 0 published no address in {meeting} within {MEET_S:.0f} s"
    hint = "is the run directory on a file system that all nodes share?"
    raise RunError(Problem("run.rendezvous", message, hint=hint))
