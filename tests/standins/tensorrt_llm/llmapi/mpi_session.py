"""As ``tensorrt_llm/llmapi/mpi_session.py`` @cc4777e9: who has the ranks, how tasks get there."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from typing import Any, NamedTuple

from .._utils import mpi_barrier, mpi_comm, mpi_rank, mpi_world_size
from ..executor.ipc import ZeroMqQueue
from ..executor.utils import (
    get_spawn_proxy_process_env,
    get_spawn_proxy_process_ipc_addr_env,
    get_spawn_proxy_process_ipc_hmac_key_env,
)
from ..logger import logger, print_colored

GRACE_S = 60.0


def get_mpi_world_size() -> int:
    """The proxy has no MPI of its own to ask."""
    if get_spawn_proxy_process_env():
        return int(os.getenv("tllm_mpi_size") or 1)  # noqa: SIM112 - its name
    return mpi_world_size()


class MpiSession:
    def submit(self, task: Callable[..., Any], *args: Any) -> list[Future[Any]]:
        raise NotImplementedError

    def shutdown(self, wait: bool = True) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        mpi_comm().Abort(1)

    def shutdown_abort(self, grace: float = GRACE_S, reason: object = None) -> None:
        done: Future[None] = Future()

        def kill() -> None:
            try:
                done.result(grace)
            except LateError:
                logger.critical("MpiSession shutdown timeout, aborting...")
                if reason is not None:
                    logger.info(f"Reason to shutdown: {reason!r}")
                self.abort()

        killer = threading.Thread(target=kill, name="MpiSessionTimeoutKiller")
        killer.start()
        self.shutdown()
        done.set_result(None)
        killer.join()


class MpiPoolSession(MpiSession):
    """New processes by ``MPI_Comm_spawn``, which few launchers can do."""

    def __init__(self, n_workers: int) -> None:
        from mpi4py.futures import MPIPoolExecutor

        self._n_workers = n_workers
        self._pool = MPIPoolExecutor(max_workers=n_workers, path=sys.path)

    def submit(self, task: Callable[..., Any], *args: Any) -> list[Future[Any]]:
        return [self._pool.submit(task, *args) for _ in range(self._n_workers)]

    def shutdown(self, wait: bool = True) -> None:
        self._pool.shutdown(wait=wait)


class MpiCommSession(MpiSession):
    """The ranks there are: the others through mpi4py, rank 0 in a thread."""

    def __init__(self, n_workers: int) -> None:
        from mpi4py.futures import MPICommExecutor

        comm = mpi_comm()
        if comm.Get_rank() != 0:
            raise RuntimeError(f"only rank 0 can start multi-node session, got {comm.Get_rank()}")
        if comm.Get_size() != n_workers:
            raise ValueError(
                "n_workers must be equal to the number of processes in MPI, got "
                f"{n_workers} vs {get_mpi_world_size()}"
            )
        self._n_workers = n_workers
        self._threads = ThreadPoolExecutor(max_workers=2)
        self._executor = MPICommExecutor(comm)
        self._pool = self._executor.__enter__()
        # mpi4py splits the world in a thread, and a barrier of it meanwhile breaks both; the real
        # proxy needs far longer for its imports than the ranks for this.
        self._pool.bootup(wait=True)

    def submit(self, task: Callable[..., Any], *args: Any) -> list[Future[Any]]:
        others = [self._pool.submit(task, *args) for _ in range(self._n_workers - 1)]
        return [self._threads.submit(task, *args), *others]

    def shutdown(self, wait: bool = True) -> None:
        self._pool.shutdown(wait=wait)
        self._threads.shutdown(wait=wait)


class RemoteTask(NamedTuple):
    task: Callable[..., Any]
    args: tuple[Any, ...]


class RemoteMpiCommSessionClient(MpiSession):
    """The proxy's end: what it sends is done somewhere, and no future tells how it ended."""

    def __init__(self, addr: str, hmac_key: bytes | None) -> None:
        self.queue = ZeroMqQueue((addr, hmac_key), is_server=False)

    def submit(self, task: Callable[..., Any], *args: Any) -> list[Future[Any]]:
        self.queue.put(RemoteTask(task, args))
        return []

    def shutdown(self, wait: bool = True) -> None:
        pass

    def abort(self) -> None:
        pass

    def shutdown_abort(self, grace: float = GRACE_S, reason: object = None) -> None:
        pass


class RemoteMpiCommSessionServer:
    """The leader's end. ``deaf``: a fault of the stand-in, set by the task of this rank."""

    deaf = threading.Event()

    def __init__(self, n_workers: int, addr: str, hmac_key: bytes | None) -> None:
        self.queue = ZeroMqQueue((addr, hmac_key), is_server=True)
        self.session = MpiCommSession(n_workers)

    @staticmethod
    def task_wrapper(task: Callable[..., Any], *args: Any) -> Any:
        mpi_barrier()
        try:
            return task(*args)
        except Exception as exc:
            print_colored(
                f"MpiCommSession rank{mpi_rank()} task [{task}] failed with exception: {exc}\n",
                "red",
            )
            traceback.print_exc()
            raise
        finally:
            mpi_barrier()

    def serve(self) -> None:
        while True:
            message = self.queue.get()
            if message is None:
                if self.deaf.is_set():
                    continue
                self.session.shutdown_abort()
                return
            futures = self.session.submit(self.task_wrapper, message.task, *message.args)
            assert len(futures) == mpi_world_size()


def create_session(world: int) -> MpiSession:
    """``executor/utils.py`` @7b437aaa create_mpi_comm_session, or else a pool."""
    if not get_spawn_proxy_process_env():
        return MpiPoolSession(world)
    assert mpi_rank() == 0
    return RemoteMpiCommSessionClient(
        get_spawn_proxy_process_ipc_addr_env(), get_spawn_proxy_process_ipc_hmac_key_env()
    )
