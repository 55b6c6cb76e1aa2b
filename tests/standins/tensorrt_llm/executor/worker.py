"""As ``tensorrt_llm/executor/worker.py`` @cc4777e9: what each rank does from a task to its end."""

from __future__ import annotations

import threading
import traceback
from typing import Any, NamedTuple

from .._utils import mpi_comm, mpi_rank, mpi_world_size, visible_gpus
from ..engine import Engine
from ..faults import Faults
from ..logger import logger
from ..mapping import Mapping
from .ipc import ZeroMqQueue
from .team import Team, check_placement


class Start(NamedTuple):
    """What the proxy tells every rank of the model and its layout."""

    model: str
    tp: int
    pp: int
    ep: int
    gpus_per_node: int
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    kv_fraction: float
    kv_max_tokens: int | None
    stats: bool
    cuda_graphs: bool
    how: dict[str, Any]

    @property
    def world(self) -> int:
        return self.tp * self.pp


class Started(NamedTuple):
    pass


class Failed(NamedTuple):
    cause: Exception
    trace: str


class Stats(NamedTuple):
    json: str


class Fatal(NamedTuple):
    """What a ``RemoteWorkerDeath`` says (``llmapi/mpi_session.py`` @00a1352a)."""

    text: str


Address = tuple[str, bytes | None]


def worker_main(start: Start, requests: Address, results: Address) -> None:
    rank, team = mpi_rank(), Team(mpi_comm())
    logger.rank = rank
    inbox = outbox = None
    if rank == 0:
        inbox = ZeroMqQueue(requests, is_server=False)
        outbox = ZeroMqQueue(results, is_server=False)
    try:
        engine = _set_up(start, team)
    except Exception as exc:  # noqa: BLE001 - as it does
        logger.error(f"Failed to initialize executor on rank {rank}: {exc}")
        logger.error(traceback.format_exc())
        if outbox is not None:
            outbox.put(Failed(exc, traceback.format_exc()))
        return
    if inbox is None or outbox is None:
        engine.follow(team)
        return
    outbox.put(Started())
    engine.serve(team, inbox, outbox)
    outbox.put(None)


def _set_up(start: Start, team: Team) -> Engine:
    """The ranks meet at every stage: one that fails leaves the others waiting, as NCCL does."""
    rank = mpi_rank()
    faults = Faults(start.how, rank)
    faults.at("start")
    mapping = Mapping(
        start.world,
        rank,
        start.gpus_per_node,
        tp_size=start.tp,
        pp_size=start.pp,
        moe_ep_size=start.ep,
    )
    if mpi_world_size() < start.world:
        faults.hang()  # in the initialisation of NCCL, for the ranks that there are not
    team.meet()
    check_placement(team, mapping, visible_gpus())
    engine = Engine(start, mapping, faults)
    for stage in engine.stages():
        faults.at(stage)
        team.meet()
    return engine


def worker_thread(start: Start, inbox: Any, outbox: Any) -> None:
    """A worker in the process of its caller, whose start fails there too."""
    engine = Engine(start, Mapping(gpus_per_node=start.gpus_per_node), Faults(start.how, 0))
    engine.faults.at("start")
    for stage in engine.stages():
        engine.faults.at(stage)

    def work() -> None:
        engine.serve(Team(None), inbox, outbox)
        outbox.put(None)

    threading.Thread(target=work, daemon=True).start()
