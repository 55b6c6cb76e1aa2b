"""What a line that TensorRT-LLM or MPI prints says about its replica. Pure: text in, facts out.

With several ranks an exception in one of them reaches nobody: the others wait for it inside a
collective (``tensorrt_llm/llmapi/mpi_session.py``, ``RemoteMpiCommSessionServer.task_wrapper``,
prints it and goes on to a barrier). The printed line is all there is, so it decides. Files named
below without a project are those of NVIDIA/TensorRT-LLM, as of 1.0 to 1.3.
"""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["FIGURES", "PHASES", "ending_s", "fails_all", "figure", "phase_after", "plain"]

Phase = Literal["mpi", "load", "profile", "kv", "graphs", "ready"]

# How a replica starts, in order: its processes meet, read the weights, try the largest batch on a
# small KV cache, take the real one, and warm up on it.
PHASES: tuple[Phase, ...] = ("mpi", "load", "profile", "kv", "graphs", "ready")

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_WARMING = re.compile(
    # In _torch/autotuner.py
    r"\[Autotuner\] Autotuning process starts"
    # _torch/pyexecutor/model_engine.py, _capture_generation_cuda_graphs
    r"|Creating CUDA graph instances for \d+ batch sizes"
    r"|CUDA graph warmup for batch size"
)
_LANDMARKS: tuple[tuple[Phase, re.Pattern[str]], ...] = (
    # runner/keeper.py of this package: the engine has started
    ("ready", re.compile(r"\] replica \d+: engine tensorrt-llm is ready")),
    (
        "kv",
        re.compile(
            # In _torch/pyexecutor/_util.py
            r"Estimated max memory in KV cache ?:"
            r"|Peak memory during memory usage profiling"
        ),
    ),
    (
        "profile",
        re.compile(
            r"Model init total --"  # _torch/pyexecutor/model_loader.py
            r"|max_seq_len=\d+, max_num_requests=\d+"  # _torch/pyexecutor/_util.py
            r"|Memory used after loading model weights"
        ),
    ),
    (
        "load",
        re.compile(
            # _torch/models/checkpoints/hf/weight_loader.py
            r"Prefetching [\d.]+ ?GB checkpoint files"
            r"|Loading (?:safetensors|bin) weights in parallel"
            # _torch/pyexecutor/model_loader.py, and _torch/models/modeling_utils.py
            r"|Use [\d.]+ GB for model weights"
            r"|Loading weights:"
        ),
    ),
)

# The variable that names the file with those which only the wrapper of the leader has heard.
FIGURES = "HPC_LLM_FIGURES"
_FIGURES = (
    # cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp
    ("kv_tokens", re.compile(r"for max tokens in paged KV cache \((\d+)\)")),
    # _torch/pyexecutor/resource_manager.py: the engine takes less than it was asked to, and warns
    ("max_seq_len", re.compile(r"Adjusted max_seq_len to (\d+)")),
)

# _torch/pyexecutor/py_executor.py, _forward_step, _sample_async and _prepare_draft_requests: all
# active requests fail as if each were to blame, and of a pass no later one is answered, as the
# executor's thread ends
_FAILS_ALL = re.compile(r"Encountered an error in (?:forward function|sampling|decode): ")
# After these nothing more will come of the world that this rank is of. 0: the process is about to
# end everything itself. 1: more lines of the same failure follow.
_ENDINGS = (
    (0.0, re.compile(r"MPI_ABORT was invoked on rank \d+|MPI_ERRORS_ARE_FATAL")),
    # From 1.3 on, in _torch/pyexecutor/hang_detector.py
    (0.0, re.compile(r"Hang detected after \d+ seconds|HangDetector: (?:propag|self-SIGKILL)")),
    # A handler of SIGABRT and SIGSEGV calls MPI_Abort (cpp/tensorrt_llm/runtime/utils/mpiUtils.cpp)
    (
        0.0,
        re.compile(
            r"terminate called after throwing an instance of"
            r"|\*\*\* Process received signal \*\*\*|Caught signal \d+ \("
        ),
    ),
    (1.0, _FAILS_ALL),
    (
        1.0,
        re.compile(
            r"MpiCommSession rank\d+ task \[.*\] failed with exception"
            # executor/worker.py, worker_main: only what the first rank says comes back
            r"|Failed to initialize executor on rank \d+: "
            r"|Executor creation failed due to insufficient GPU memory"
            r"|Executor creation failed with (?:NCCL error|an error which might indicate)"
            r"|Executor loop crashed on this rank; hard-killing all"
            r"|There are not enough slots available in the system"
            r"|All nodes which are allocated for this job are already filled"
            r"|Exception in thread Thread-\d+ \(_manager_spawn\)"
            r"|only rank 0 can start multi-node session|rank\d+ should not have executor"
            r"|The application appears to have been direct launched using \"srun\""
            r"|No PMIx server was reachable, but a PMI1/2 was detected"
            r"|PMIx_Init failed for the following reason|PMI2_Init failed to initialize"
            r"|External MPI session has \d+ workers but the model needs"
            r"|n_workers must be equal to the number of processes in MPI"
        ),
    ),
)
# The caller is told too, and may have more to say; or it hangs; or the world was about to end.
_ENDINGS_TOLD = (
    10.0,
    re.compile(
        r"Executor worker (?:returned error|died during initialization)|Remote MPI worker died:"
        r"|Error in event loop: "  # _torch/pyexecutor/py_executor.py, _event_loop_wrapper
    ),
)
# executor/proxy.py prints this of every session that is not the ranks' own, in a replica of one
# rank too, where it is right.
_SPAWNING = re.compile(r"using MpiPoolSession to spawn MPI processes")


def plain(line: str) -> str:
    """``line`` without colours and what surrounds it."""
    return _ANSI.sub("", line).strip()


def phase_after(phase: Phase, line: str) -> Phase:
    """The phase that a replica which was in ``phase`` is in once it has printed ``line``.

    It never goes back: the engine is warmed up twice, on the small KV cache and on the real one.
    """
    if _WARMING.search(line):
        return _latest(phase, "graphs" if phase in ("kv", "graphs") else "profile")
    for name, pattern in _LANDMARKS:
        if pattern.search(line):
            return _latest(phase, name)
    return phase


def figure(line: str) -> tuple[str, int] | None:
    """``kv_tokens`` that the cache holds, or ``max_seq_len`` that the engine has fallen back to.

    Both are said first of the small KV cache of the phase *profile*, and then of the real one.
    """
    for name, pattern in _FIGURES:
        if found := pattern.search(line):
            return name, int(found[1])
    return None


def ending_s(line: str, *, several: bool) -> float | None:
    """After how many seconds the processes of this rank are to be killed; None: not for this.

    Parameters
    ----------
    several
        Whether the replica has several ranks. They are never spawned by the engine.
    """
    if several and _SPAWNING.search(line):
        return 0.0
    for wait_s, pattern in (*_ENDINGS, _ENDINGS_TOLD):
        if pattern.search(line):
            return wait_s
    return None


def fails_all(line: str) -> bool:
    """Whether ``line`` tells that all requests have failed together, and the engine with them."""
    return _FAILS_ALL.search(line) is not None


def _latest(one: Phase, other: Phase) -> Phase:
    return max(one, other, key=PHASES.index)
