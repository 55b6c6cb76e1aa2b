"""As ``tensorrt_llm/executor/{executor,proxy}.py``: which process works, and what it is asked.

@ed53795b for the choice, @b93e14ca for the proxy. A world of one rank is spawned by MPI too,
unless TLLM_WORKER_USE_SINGLE_PROCESS=1 (``llmapi/utils.py`` @03dd9bb8) keeps it in this process.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

from .._utils import mpi_rank
from ..llmapi.mpi_session import MpiSession, RemoteMpiCommSessionClient, create_session
from ..logger import logger, print_colored
from ..sampling_params import SamplingParams
from .ipc import IntraProcessQueue, ZeroMqQueue
from .result import GenerationResult, IterationResult, Request, Response
from .worker import Fatal, Start, Started, Stats, worker_main, worker_thread

_ANY_PORT = "tcp://127.0.0.1:*"


class Executor:
    """What both kinds share: requests by id, one thread that hands out what comes back."""

    requests: Any
    results: Any

    def __init__(self, start: Start) -> None:
        self._start = start
        self._ids = itertools.count(2)
        self._pending: dict[int, GenerationResult] = {}
        self._error: Exception | None = None
        self._closed = False
        self.iter_stats: IterationResult | None = None
        self._dispatcher = threading.Thread(target=self._dispatch, daemon=True)

    def submit(
        self, ids: list[int], params: SamplingParams, decode: Callable[..., str] | None
    ) -> GenerationResult:
        if self.iter_stats is None:
            self.iter_stats = IterationResult()
        self._handle_background_error()
        request = Request(next(self._ids), ids, params)
        result = self._pending[request.id] = GenerationResult(request, self, decode)
        self.requests.put(request)
        return result

    def is_shutdown(self) -> bool:
        return self._closed

    def abort_request(self, request_id: int) -> None:
        self.requests.put(request_id)

    def _handle_background_error(self) -> None:
        """The first call after a death shuts down and raises."""
        if self._error is not None:
            self.shutdown()
            raise self._error

    def _dispatch(self) -> None:
        while (found := self.results.get()) is not None:
            if isinstance(found, Stats):
                if self.iter_stats is not None:
                    self.iter_stats.queue.put(found.json)
            elif isinstance(found, Fatal):
                self._error = RuntimeError(found.text)
                for result in list(self._pending.values()):
                    result.give(self._error)
            elif isinstance(found, Response) and found.id in self._pending:
                self._pending.pop(found.id).give(found)

    def shutdown(self) -> None:
        raise NotImplementedError


class GenerationExecutorWorker(Executor):
    def __init__(self, start: Start) -> None:
        super().__init__(start)
        logger.warning(
            "Using single process worker for TP1, this may hurt streaming generation performance."
        )
        self.requests, self.results = IntraProcessQueue(), IntraProcessQueue()
        worker_thread(start, self.requests, self.results)
        self._dispatcher.start()

    def shutdown(self) -> None:
        if not self._closed:
            self._closed = True
            self.requests.put(None)


class GenerationExecutorProxy(Executor):
    def __init__(self, start: Start, session: MpiSession | None) -> None:
        super().__init__(start)
        self.session = session or create_session(start.world)
        comm = isinstance(self.session, RemoteMpiCommSessionClient)
        how = (
            "MpiCommSession to bind to external" if comm else "MpiPoolSession to spawn"
        ) + " MPI processes"
        print_colored(f"rank {mpi_rank()} using {how}\n", "yellow")
        key = os.urandom(32)
        self.requests = ZeroMqQueue((_ANY_PORT, key), is_server=True)
        self.results = ZeroMqQueue((_ANY_PORT, key), is_server=True)
        self._futures = self.session.submit(
            worker_main, start, self.requests.address, self.results.address
        )
        self._await_start()
        self._dispatcher.start()

    def _await_start(self) -> None:
        while not self.results.poll(1):
            if any(future.done() for future in self._futures):
                logger.error("Executor worker died during initialization.")
                raise RuntimeError("Executor worker died during initialization")
        found = self.results.get()
        logger.info("get signal from executor worker")
        if not isinstance(found, Started):
            logger.error(f"Executor worker initialization error: {found.trace}")
            self.session.shutdown_abort(reason=found.cause)
            raise RuntimeError(  # noqa: TRY004 - as it does
                "Executor worker returned error"
            ) from found.cause

    def shutdown(self) -> None:
        if self._closed:
            return
        self._closed = True
        for request_id in list(self._pending):
            self.abort_request(request_id)
        self.requests.put_noblock(None)
        if self._error is None:
            self._dispatcher.join()
            self.requests.close()
            self.results.close()
        for future in self._futures:
            future.exception()


def create(start: Start, session: MpiSession | None) -> Executor:
    if start.world == 1 and os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS", "0") == "1":
        return GenerationExecutorWorker(start)
    return GenerationExecutorProxy(start, session)


__all__ = ["Executor", "GenerationExecutorProxy", "GenerationExecutorWorker", "create"]
