"""As ``vllm/v1/executor/multiproc_executor.py`` of 0.24.0: the workers of a later node."""

from __future__ import annotations

import time
from typing import Any

from ... import core, workers


class MultiprocExecutor:
    def __init__(self, vllm_config: Any, monitor_workers: bool = True) -> None:
        config = vllm_config.parallel_config
        assert not monitor_workers
        assert config.node_rank > 0
        assert vllm_config.headless
        # _init_executor
        self._first = config.local_world_size * config.node_rank
        self.workers = workers.start(self._first, config.place, vllm_config.start)

    def start_worker_monitor(self, inline: bool = False) -> None:
        assert inline
        while all(worker.poll() is None for worker in self.workers):
            time.sleep(0.05)
        if getattr(self, "shutting_down", False):
            return
        first = next(n for n, worker in enumerate(self.workers) if worker.poll() is not None)
        name = f"VllmWorker-{self._first + first}"
        core.say("ERROR", f"Worker proc {name} died unexpectedly, shutting down executor.")
        self.shutdown()

    def shutdown(self) -> None:
        self.shutting_down = True
        for worker in self.workers:
            worker.terminate()
