"""As ``vllm/v1/metrics/loggers.py`` of 0.24.0: what is made unless such a class is given."""

from __future__ import annotations

from typing import Any


class PrometheusStatLogger:
    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        raise RuntimeError("it was not to be made")

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None: ...

    def log(self) -> None: ...

    def log_engine_initialized(self) -> None: ...

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None: ...
