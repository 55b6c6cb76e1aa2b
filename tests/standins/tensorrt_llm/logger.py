"""As ``tensorrt_llm/logger.py`` @14e801da: lines of levels below TLLM_LOG_LEVEL are not written.

The rank in a line is that of logs of 1.2 and later, as NVIDIA/srt-slurm parses them.
Whole lines at a time, as many processes share a log.
"""

from __future__ import annotations

import os
import time

_SEVERITIES = ("[F]", "[E]", "[W]", "[I]", "[V]")
_LEVELS = ("internal_error", "error", "warning", "info", "verbose")


class Logger:
    def __init__(self) -> None:
        level = os.environ.get("TLLM_LOG_LEVEL", "warning").lower()
        self._most = _LEVELS.index(level if level in _LEVELS else "warning")
        self.rank: int | None = None

    def _log(self, severity: str, message: str) -> None:
        if _SEVERITIES.index(severity) <= self._most:
            rank = "" if self.rank is None else f"[RANK {self.rank}] "
            now = time.strftime("%m/%d/%Y-%H:%M:%S")
            write(f"[{now}] [TRT-LLM] {rank}{severity} {message}\n")

    def critical(self, message: str) -> None:
        self._log("[F]", message)

    def error(self, message: str) -> None:
        self._log("[E]", message)

    def warning(self, message: str) -> None:
        self._log("[W]", message)

    def info(self, message: str) -> None:
        self._log("[I]", message)

    def cpp(self, severity: str, message: str) -> None:
        """A line of the C++ runtime (``cpp/tensorrt_llm/common/logger.h``)."""
        if severity != "INFO" or self._most >= _LEVELS.index("info"):
            write(f"[TensorRT-LLM][{severity}] {message}\n")


def write(text: str) -> None:
    os.write(2, text.encode())


def print_colored(message: str, color: str) -> None:
    """``tensorrt_llm/llmapi/utils.py`` @03dd9bb8, whatever the level."""
    codes = {"yellow": "\x1b[33;20m", "red": "\x1b[31;20m"}
    write(f"{codes[color]}{message}\x1b[0m")


logger = Logger()
