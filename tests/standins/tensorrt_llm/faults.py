"""How a rank fails, when the checkpoint says so."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from ._utils import mpi_comm
from .logger import logger

OOM = (
    "CUDA out of memory. Tried to allocate 2.62 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.06 GiB is free."
)
_TP = "reduce max_num_tokens and/or shard the model weights across GPUs by enabling "
_FEWER = "reduce max_num_tokens"
_ESTIMATE = "(temporary for KV cache size estimation)"
# ``_torch/pyexecutor/py_executor_creator.py`` @bab0f2e6: the stages in their order, with advice.
STAGES = {
    "Model": f"{_TP}pipeline and/or tensor parallelism",
    "Sampler": "reduce max_seq_len and/or max_attention_window_size",
    f"Initial KV cache {_ESTIMATE}": _FEWER,
    f"Additional executor resources {_ESTIMATE}": _FEWER,
    "Model resources created during usage": _FEWER,
    "KV cache": "reduce free_gpu_memory_fraction",
    "Additional executor resources": _FEWER,
}


_ADVICE = (
    "Please refer to the TensorRT LLM documentation for information on how to control the memory "
    "usage through TensorRT LLM configuration options. Possible options include:"
)


class Faults:
    """``how["fault"]``: what fails, of which rank (of all without one), and when.

    ``when`` is ``start``, a stage, ``shutdown``, or how many answers have been given by then.
    """

    def __init__(self, how: dict[str, Any], rank: int) -> None:
        fault = how.get("fault") or {}
        mine = fault.get("rank") in (None, rank)
        self._what: str | None = fault.get("what") if mine else None
        self._when: int | str | None = fault.get("when")
        self._text: str = fault.get("text", "an illegal memory access was encountered")

    def at(self, now: int | str) -> None:
        if isinstance(now, int) and isinstance(self._when, int):
            due = now >= self._when
        else:
            due = now == self._when
        if not due:
            return
        if self._what == "oom":
            self._out_of_memory(str(now))
        elif self._what == "raise":
            raise RuntimeError(self._text)
        elif self._what == "hang":
            self.hang()
        elif self._what == "exit":
            os._exit(1)
        elif self._what == "abort":
            mpi_comm().Abort(1)
        elif self._what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def breaks(self, what: str, answers: int) -> str | None:
        """The text of what ends the engine, if ``what`` is to do so after so many answers."""
        due = self._what == what and isinstance(self._when, int) and answers >= self._when
        return self._text if due else None

    def hang(self) -> None:
        while True:
            time.sleep(1)

    def _out_of_memory(self, stage: str) -> None:
        before = list(STAGES)[: list(STAGES).index(stage)]
        lines = [
            "Executor creation failed due to insufficient GPU memory.",
            "",
            f"The following component could not be created: {stage}",
            "Total GPU memory (GiB): 79.11",
            "Free GPU memory before component creation attempt (GiB): 1.06",
            "",
            "Previously created components and free GPU memory before/after creation (GiB):",
            *(f"{name}: {78 - i:.2f} / {77 - i:.2f}" for i, name in enumerate(before)),
            "",
            _ADVICE,
            *(f"  {name}: {STAGES[name]}" for name in [*before, stage]),
        ]
        logger.error("\n".join(lines))
        raise RuntimeError("\n".join(lines)) from RuntimeError(f"torch.OutOfMemoryError: {OOM}")
