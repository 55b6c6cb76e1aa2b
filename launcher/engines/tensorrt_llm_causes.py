"""Why TensorRT-LLM did not start, or died: told from a line that it, MPI or NCCL has printed.

What reaches the caller is that an executor worker has returned an error, or nothing. Files named
below without a project are those of NVIDIA/TensorRT-LLM, as of 1.0 to 1.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from launcher.engines.tensorrt_llm_marks import plain
from launcher.engines.wording import ANOTHER_NODE, RAISED
from launcher.errors import Problem

__all__ = ["Cause", "cause", "deepest", "is_echo"]

_LONGEST = 400

# They say that something else has failed, here or on another rank.
_ECHOES = re.compile(
    r"Executor worker (?:returned error|died during initialization)"
    r"|RemoteMpiCommSessionServer: (?:\d+/\d+ )?(?:async )?MPI worker"
    r"|Remote MPI worker died:"
    r"|remote process exited or there was a network error"
    r"|socketProgress: Connection closed by remote peer"
    r"|MPI_ABORT was invoked|MPI_ERRORS_ARE_FATAL|\*\*\* An error occurred in MPI_"
    r"|noticed that process rank \d+ with PID|exited with non-zero status, thus causing"
    r"|Executor loop crashed on this rank; hard-killing all|HangDetector:"
    # What stands in the traceback is told with a cause before it (_torch/pyexecutor/py_executor.py)
    r"|Error in event loop: |AssertionError: Sampling failed|MpiSession shutdown timeout"
)

# What TensorRT-LLM itself logs below an error, it has got over: its autotuner warns of each tactic
# that fails, in the words of CUDA (_torch/autotuner.py; levels are those of logger.py and
# cpp/tensorrt_llm/common/logger.h).
_GOT_OVER = re.compile(
    r"\[TRT-LLM\] (?:\[RANK \d+\] )?\[[WIVD]\] |\[TensorRT-LLM\]\[(?:WARNING|INFO|DEBUG|TRACE)\] "
)

_MPI_HINT = "compare launch.mpi with `srun --mpi=list`; the image's Open MPI has to speak that PMIx"
_MEMORY_HINT = (
    "raise parallelism.tp or pp, use a quantised checkpoint, or lower max_num_tokens, "
    "max_batch_size and kv_cache_config.free_gpu_memory_fraction in engine_options"
)
_NETWORK_HINT = "name the network as NCCL_SOCKET_IFNAME, NCCL_IB_HCA and UCX_NET_DEVICES in env"
_LIMITS_HINT = (
    "give the container a larger /dev/shm (--shm-size, --ipc=host) and unlimited memlock, "
    "or set NCCL_SHM_DISABLE=1 in env"
)
_OPTIONS_HINT = "correct engine_options in the job file"
_LOG_HINT = "see the step's log"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a rank failed, as a line tells it.

    Attributes
    ----------
    order
        The smaller, the deeper: of several the least one is the cause of the others.
    what
        The words of the line that matter.
    """

    order: int
    code: str
    hint: str
    what: str

    @property
    def guessed(self) -> bool:
        """Whether it is just an exception, which may have been caught."""
        return self.order == len(_CAUSES) - 1


# (code, hint, how the line goes on from where it matters). From the top: a group may be the
# consequence of one before it.
_CAUSES: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (code, hint, re.compile(f"(?P<what>(?:{'|'.join(stems)}).*)"))
    for code, hint, stems in (
        # Launch: open-mpi/ompi 4.1 and 5, ompi/runtime/ and its help texts
        (
            "run.mpi",
            _MPI_HINT,
            (
                'The application appears to have been direct launched using "srun"',
                "No PMIx server was reachable, but a PMI1/2 was detected",
                r"\d+ singletons will be started",
                "PMIx_Init failed for the following reason",
                "PMI2_Init failed to initialize",
                # SchedMD/slurm, src/plugins/mpi/pmix/
                "can not load PMIx library",
                "incorrect PMIx library version loaded",
                "PMIx_server_init failed with error",
                "Open MPI has detected that this process has attempted to initialize MPI",
            ),
        ),
        (
            "run.rendezvous",
            "a node never joined: see the step's log for it, and try without it",
            ("collective timeout seq=", "No process controlled by this slurmstepd is involved"),
        ),
        (
            "run.spawn",
            "start script.sh as it was rendered: the ranks of a replica are never spawned",
            (
                "There are not enough slots available in the system",
                "All nodes which are allocated for this job are already filled",
                r"Exception in thread Thread-\d+ \(_manager_spawn\)",
                r"rank \d+ using MpiPoolSession to spawn MPI processes",
            ),
        ),
        (
            "run.world-mismatch",
            "start script.sh as it was rendered, and compare launch.mpi with the image's MPI",
            (
                # llmapi/mpi_session.py, llmapi/mgmn_worker_node.py, mapping.py
                "only rank 0 can start multi-node session",
                r"rank\d+ should not have executor",
                "n_workers must be equal to the number of processes in MPI",
                r"External MPI session has \d+ workers",
                r"Rank should be an integer between 0 and \d+, but got",
                r"MPI size \d+ != TP size",
            ),
        ),
        (
            "engine.options",
            _OPTIONS_HINT,
            (
                # In mapping.py
                r"world_size must equal to tp_size \* pp_size",
                r"moe_tp_size \* moe_ep_size \* moe_cluster_size must",
                r"(?:len|sum)\(self\.pp_partition\)=",
            ),
        ),
        (
            "gpu.too-few",
            "every rank has to see all GPUs that its replica has on the node",
            (
                r"Only \d+ GPUs are available, but \d+ are required",  # llmapi/llm.py
                r"Detect \d+ GPUs, the GPU number is incompatible",  # …/worldConfig.cpp
                "No GPU devices found on the node",
            ),
        ),
        (
            "engine.import",
            "mpi4py and tensorrt_llm need Open MPI: load its module, or take NVIDIA's image",
            (
                r"libmpi\w*\.so[.\d]*: cannot open shared object file",
                "cannot load MPI library",
            ),
        ),
        # Memory. What torch and cpp/tensorrt_llm/common/cudaUtils.h say, and what
        # _torch/pyexecutor/py_executor_creator.py makes of it
        (
            "engine.no-memory",
            _MEMORY_HINT,
            (
                r"torch\.(?:cuda\.)?OutOfMemoryError",
                "CUDA out of memory",
                "CUDA error: out of memory",
                "CUDA runtime error in .*: out of memory",
            ),
        ),
        ("engine.no-memory", _MEMORY_HINT, ("Executor creation failed due to insufficient GPU",)),
        (
            "engine.options",
            "set kv_cache_config.max_tokens in engine_options",
            (r"Quota not set\. Check kv_cache_config\.max_tokens",),
        ),
        # Collectives and network: NVIDIA/nccl, src/init.cc, src/misc/, src/transport/
        (
            "run.placement-mismatch",
            "ranks must fill the nodes block by block (--distribution=block:block)",
            ("Duplicate GPU detected", "Multiple Ranks are using the same GPU"),
        ),
        ("engine.import", "use one image on all nodes", ("Mismatched NCCL version detected",)),
        (
            "run.limits",
            _LIMITS_HINT,
            (
                "failed to (?:create|extend) shared memory",
                "while (?:creating|attaching to) shared memory segment",
                "No space left on device.*shm",
                "unable to (?:open|write to|allocate) shared memory",
                "Bus error",
                r"Call to ibv_\w+ failed",
                "ibv_reg_mr.*Cannot allocate memory",
            ),
        ),
        (
            "run.network",
            _NETWORK_HINT,
            (
                "MPI_INIT has failed because at least one MPI process is unreachable",
                "NET/IB ?: ?Got completion from peer",
                "Bootstrap : no socket interface found",
                "no device found matching .*NCCL_(?:SOCKET|OOB_NET)_IFNAME",
                "connect to .* (?:failed|returned) .*(?:Connection refused|timed out|No route)",
                # openucx/ucx
                "Transport retry count exceeded",
                "no usable transports/devices",
                "Destination is unreachable",
                "Endpoint timeout",
            ),
        ),
        (
            "gpu.failed",
            "try allreduce_strategy: NCCL in engine_options, or NCCL_P2P_DISABLE=1 in env",
            (
                "cudaIpcOpenMemHandle",
                "CUDA_ERROR_INVALID_HANDLE",
                "peer access is not supported",
            ),
        ),
        (
            "gpu.failed",
            ANOTHER_NODE,
            ("uncorrectable ECC error",),
        ),
        (
            "engine.import",
            "take an image that fits this node's driver and GPU",
            (
                "CUDA driver version is insufficient",
                "forward compatibility was attempted on non supported HW",
                "no kernel image is available",
                "ptxas fatal",
            ),
        ),
        (
            "engine.died",
            "try another moe_config.backend or attn_backend in engine_options",
            ("CUDA error: device-side assert", "device-side assert", "(?:an )?illegal memory acc"),
        ),
        (
            "gpu.failed",
            "it is often too little memory: raise parallelism.tp; or try NCCL_P2P_DISABLE=1 in env",
            (
                "Failed, NCCL error .*unhandled cuda",
                "ncclUnhandledCudaError",
                "unhandled cuda err",
                # _torch/pyexecutor/py_executor_creator.py
                "Executor creation failed with (?:NCCL error|an error which might indicate)",
            ),
        ),
        (
            "run.network",
            _NETWORK_HINT,
            (
                "unhandled system error",
                "ncclSystemError",
                "Failed, NCCL error",
                "Watchdog caught collective operation timeout",
                r"UCX +ERROR ",
            ),
        ),
        # Model, tokenizer, hub: huggingface/transformers, huggingface_hub, safetensors
        (
            "engine.model",
            "this release of TensorRT-LLM cannot run that checkpoint: take a newer one",
            (
                "Unknown architecture for AutoModelForCausalLM",  # _torch/models/modeling_auto.py
                r"[Uu]nsupported quant[_ ]mode",
                "does not recognize this architecture",
            ),
        ),
        (
            "engine.model",
            "name a directory as model, or prepare it with `hpc-llm models prepare`",
            (
                "Cannot access gated repo for url",
                "You are trying to access a gated repo",
                "GatedRepoError",
                "Repository Not Found for url",
                "RepositoryNotFoundError",
                "401 Client Error",
                "offline mode is enabled",
                "outgoing traffic has been disabled",
                "LocalEntryNotFoundError",
                "An error happened while trying to locate the files on the Hub",
                "Max retries exceeded",
                "Temporary failure in name resolution",
            ),
        ),
        (
            "engine.model",
            "put the tokenizer's files beside the weights",
            (
                "Can't load tokenizer for",
                "Tokenizer class .* does not exist",
                "Couldn't instantiate the backend tokenizer",
                "Failed to load custom tokenizer",
                "tokenizer is required to reset end_id",
            ),
        ),
        (
            "engine.model",
            "set trust_remote_code: true in engine_options, if you trust it",
            ("contains custom code which must be executed",),
        ),
        (
            "engine.model",
            "copy the checkpoint again: a git-lfs pointer or an interrupted download looks so",
            (
                "Error while deserializing",
                "HeaderTooLarge",
                "incomplete metadata, file not fully covered",
                "SafetensorError",
            ),
        ),
        (
            "run.io",
            "make room for the caches (HF_HOME, TRITON_CACHE_DIR), or name other places in env",
            (
                "No space left on device",
                "Disk quota exceeded",
                "Stale file handle",
                "Too many open files",
            ),
        ),
        # Arguments: llmapi/llm.py, llmapi/llm_args.py
        (
            "engine.options",
            _OPTIONS_HINT,
            (
                "LLM got invalid argument: ",
                "Failed to parse the arguments for the LLM constructor",
                "Extra inputs are not permitted",
                "arguments are specific to TensorRT backend",
                "Invalid LoadFormat",
            ),
        ),
        (
            "run.rendezvous",
            "something else took the port: start it again",
            ("Address already in use", "Failed to bind socket"),
        ),
        # What has no line of its own above:
        (
            "engine.died",
            _LOG_HINT,
            (
                r"\[TensorRT-LLM\]\[ERROR\] Assertion failed: ",  # cpp/…/common/assert.h
                "Failed: MPI error ",  # cpp/…/common/multiDeviceUtils.h
                r"Hang detected after \d+ seconds",  # _torch/pyexecutor/hang_detector.py
            ),
        ),
        (
            "engine.died",
            _LOG_HINT,
            (
                "Encountered an error in (?:forward function|sampling|decode): ",  # py_executor.py
                r"(?<=\] failed with exception: )",  # llmapi/mpi_session.py, task_wrapper
                r"Failed to initialize executor on rank \d+: ",  # executor/worker.py, worker_main
            ),
        ),
        (
            "engine.died",
            _LOG_HINT,
            (
                "terminate called after throwing an instance of",
                r"Caught signal \d+ \(",  # openucx/ucx, src/ucs/debug
                r"\*\*\* Process received signal",  # open-mpi/ompi, opal/util/stacktrace.c
            ),
        ),
        ("engine.died", _LOG_HINT, (RAISED,)),
    )
)


def cause(line: str) -> Cause | None:
    """What failed, when ``line`` tells it and does not merely say that something else has."""
    if is_echo(line) or _GOT_OVER.search(line):
        return None
    for order, (code, hint, pattern) in enumerate(_CAUSES):
        if found := pattern.search(line):
            return Cause(order, code, hint, found["what"].rstrip(". ")[:_LONGEST])
    return None


def deepest(lines: Iterable[str]) -> Problem | None:
    """What has gone wrong, as some output tells; None when it does not."""
    found = [c for line in lines if (c := cause(plain(line))) and not c.guessed]
    if not found:
        return None
    first = min(found, key=lambda each: each.order)
    return Problem(first.code, first.what, hint=first.hint)


def is_echo(line: str) -> bool:
    """Whether ``line`` says no more than that something else has failed."""
    return _ECHOES.search(line) is not None
