"""Why vLLM did not start, or died: told from what its processes have printed.

The exceptions that reach the caller are the same for every cause (vLLM 0.24,
``vllm/v1/engine/utils.py``, ``wait_for_engine_startup``: "Engine core initialization failed. See
root cause above."; ``vllm/v1/engine/exceptions.py``, ``EngineDeadError``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.engines.wording import ANOTHER_NODE, RAISED, died, said
from launcher.errors import Problem

__all__ = ["death_of", "start_failure"]

_SMALLER = (
    "raise parallelism.tp, or lower max_model_len and max_num_seqs in engine_options; "
    "raise gpu_memory_utilization where it leaves memory unused"
)
_REINSTALL = "install vllm and torch together, as pip resolves them for this machine's CUDA"

# (what is printed, code, hint), the deepest cause first: an entry may be the consequence of one
# before it. Texts are those of vLLM 0.20, 0.24 and 0.33.
_KNOWN = (
    # vllm/platforms/cuda.py warns and goes on; all that needs a kernel fails long afterwards.
    # Without _qutlass_C it runs.
    (r"(?P<what>Failed to import from vllm\._(?:moe_)?C\w*\W.+)", "engine.import", _REINSTALL),
    # vllm/v1/worker/utils.py, request_memory
    (
        r"ValueError: (?P<what>Free memory on device .+ is less than desired GPU memory .+)",
        "gpu.in-use",
        "end what else runs on that GPU, or lower gpu_memory_utilization in engine_options",
    ),
    # vllm/v1/worker/gpu_model_runner.py, load_model
    (
        r"(?P<what>Failed to load model - not enough GPU memory)",
        "engine.no-memory",
        "the weights alone do not fit: raise parallelism.tp, or use a quantised checkpoint",
    ),
    # vllm/v1/core/kv_cache_utils.py (0.33: kv_cache_planning.py)
    (
        r"ValueError: (?P<what>No available memory for the cache blocks)",
        "engine.no-memory",
        _SMALLER,
    ),
    (r"ValueError: (?P<what>To serve at least one request .+)", "engine.no-memory", _SMALLER),
    (r"ValueError: (?P<what>Cannot auto-fit max_model_len.+)", "engine.no-memory", _SMALLER),
    (r"(?P<what>(?:CUDA|HIP) (?:error: )?out of memory.*)", "engine.no-memory", _SMALLER),
    (
        r"(?P<what>CUDA error: .+|.*NCCL error.*|.*uncorrectable ECC.*)",
        "gpu.failed",
        ANOTHER_NODE,
    ),
)
# What only says that something else has failed.
_FOLLOWING = re.compile(
    r"initialization failed|EngineCore encountered|EngineDeadError|Executor failed|"
    r"cancelled|EngineGenerateError"
)


def start_failure(lines: Sequence[str], exc: BaseException) -> Problem:
    """Why an engine core did not start.

    Parameters
    ----------
    lines
        What was printed.
    exc
        What was raised.
    """
    known = _known(lines)
    if known is not None:
        return known
    what = _raised(lines) or said(exc)
    return Problem("engine.model", f"vLLM could not start: {what}", hint="see the step's log")


def death_of(lines: Sequence[str], exc: BaseException) -> Problem:
    """Why an engine that has answered will answer no more."""
    return died("vllm", _known(lines), _raised(lines) or said(exc.__cause__ or exc))


def _known(lines: Sequence[str]) -> Problem | None:
    for pattern, code, hint in _KNOWN:
        found = next(filter(None, (re.search(pattern, line) for line in lines)), None)
        if found:
            return Problem(code, found["what"].rstrip(". "), hint=hint)
    return None


def _raised(lines: Sequence[str]) -> str | None:
    """The first exception in ``lines`` that does not merely report another."""
    for line in lines:
        if (found := re.search(RAISED, line)) and not _FOLLOWING.search(found[0]):
            return found[0].rstrip(".")
    return None
