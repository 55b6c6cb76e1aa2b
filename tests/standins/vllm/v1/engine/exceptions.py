"""As ``vllm/v1/engine/exceptions.py`` of 0.24.0."""

from __future__ import annotations

from typing import Any


class EngineGenerateError(Exception):
    pass


class EngineDeadError(Exception):
    def __init__(self, *args: Any, suppress_context: bool = False, **kwargs: Any) -> None:
        message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        super().__init__(message, *args, **kwargs)
        self.__suppress_context__ = suppress_context
