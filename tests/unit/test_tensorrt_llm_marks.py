"""What lines of TensorRT-LLM, MPI and NCCL are taken for. Lines are real ones, or as the source
that a comment names formats them (NVIDIA/TensorRT-LLM where it names no project)."""

from __future__ import annotations

import pytest

from launcher.engines.tensorrt_llm_causes import cause, is_echo
from launcher.engines.tensorrt_llm_marks import (
    PHASES,
    ending_s,
    fails_all,
    figure,
    phase_after,
    plain,
)

# A start of 1.1.0rc3 on one GPU, shortened: the small KV cache first, and then the real one.
START = """\
[12/20/2025-04:20:21] [TRT-LLM] [I] Use 63.32 GB for model weights.
Loading safetensors weights in parallel: 100%|##########| 15/15 [00:00<00:00, 81.92it/s]
Loading weights: 100%|##########| 801/801 [00:46<00:00, 17.29it/s]
Model init total -- 49.14s
[12/20/2025-04:21:10] [TRT-LLM] [W] Adjusted max_seq_len to 8224
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 0.56 GiB for max tokens in paged KV cache (8224).
[12/20/2025-04:21:10] [TRT-LLM] [I] max_seq_len=8224, max_num_requests=64, max_num_tokens=8192
[12/20/2025-04:21:10] [TRT-LLM] [I] [Autotuner] Autotuning process starts ...
[12/20/2025-04:21:37] [TRT-LLM] [I] Creating CUDA graph instances for 11 batch sizes.
[12/20/2025-04:21:37] [TRT-LLM] [I] Run generation only CUDA graph warmup for batch size=64
[12/20/2025-04:21:50] [TRT-LLM] [I] Memory used after loading model weights (inside torch): 63 GiB
[12/20/2025-04:21:51] [TRT-LLM] [I] Peak memory during memory usage profiling: 113.65 GiB
[12/20/2025-04:21:51] [TRT-LLM] [I] Estimated max memory in KV cache : 5.95 GiB
[12/20/2025-04:21:51] [TRT-LLM] [W] Adjusted max_seq_len to 86720
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 5.95 GiB for max tokens in paged KV cache (86720).
[12/20/2025-04:21:52] [TRT-LLM] [I] max_seq_len=86720, max_num_requests=64, max_num_tokens=8192
[12/20/2025-04:21:52] [TRT-LLM] [I] [Autotuner] Autotuning process starts ...
[12/20/2025-04:21:53] [TRT-LLM] [I] Creating CUDA graph instances for 11 batch sizes.
[04:21:58] replica 0: engine tensorrt-llm is ready after 112.0 s, window 64
""".splitlines()


def test_a_start_goes_through_its_phases_once_and_in_order() -> None:
    phase, seen = PHASES[0], []
    for line in START:
        phase = phase_after(phase, line)
        seen.append(phase)
    expected = ["load"] * 3 + ["profile"] * 8 + ["kv"] * 5 + ["graphs"] * 2 + ["ready"]
    assert seen == expected


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        # _torch/models/checkpoints/hf/weight_loader.py
        ("[TRT-LLM] [I] Prefetching 15.00GB checkpoint files.", "load"),
        ("Loading bin weights in parallel: 100%|####| 2/2 [00:04<00:00,  2.01s/it]", "load"),
        ("[01/02/2026-10:00:00] [TRT-LLM] [RANK 1] [I] start MpiSession with 8 workers", "mpi"),
    ],
)
def test_other_landmarks(line: str, phase: str) -> None:
    assert phase_after("mpi", line) == phase


def test_figures_are_those_of_the_engine() -> None:
    found = [known for line in START if (known := figure(line))]
    assert found == [
        ("max_seq_len", 8224),
        ("kv_tokens", 8224),
        ("max_seq_len", 86720),
        ("kv_tokens", 86720),
    ]


def test_a_normal_start_tells_no_failure() -> None:
    told = [line for line in START if cause(line) or is_echo(line)]
    assert told == []
    assert [ending_s(line, several=True) for line in START] == [None] * len(START)


CAUSES = [
    # open-mpi/ompi v4.1, ompi/mca/rte/orte (help-ess-base.txt)
    ('The application appears to have been direct launched using "srun",', "run.mpi"),
    # open-mpi/ompi v5, help-mpi-runtime.txt
    ("No PMIx server was reachable, but a PMI1/2 was detected.", "run.mpi"),
    ("PMIx_Init failed for the following reason:", "run.mpi"),
    ("PMI2_Init failed to initialize.  Return code: 14", "run.mpi"),
    # SchedMD/slurm, src/plugins/mpi/pmix
    ("slurmstepd: error: node01 [0]: mpi/pmix: pmi/pmix: can not load PMIx library", "run.mpi"),
    ("mpi/pmix: pmixp_coll_ring_reset_if_to: collective timeout seq=0", "run.rendezvous"),
    # NVIDIA/TensorRT-LLM issue 5854, and 5495
    ("There are not enough slots available in the system to satisfy the 2", "run.spawn"),
    ("All nodes which are allocated for this job are already filled.", "run.spawn"),
    ("Exception in thread Thread-1 (_manager_spawn):", "run.spawn"),
    # executor/proxy.py
    ("rank 0 using MpiPoolSession to spawn MPI processes", "run.spawn"),
    # llmapi/mpi_session.py
    ("RuntimeError: only rank 0 can start multi-node session, got 1", "run.world-mismatch"),
    (
        "ValueError: n_workers must be equal to the number of processes in MPI, got 2 vs 4",
        "run.world-mismatch",
    ),
    (
        "ValueError: External MPI session has 4 workers but the model needs world_size=2.",
        "run.world-mismatch",
    ),
    # llmapi/mgmn_worker_node.py
    ("RuntimeError: rank0 should not have executor", "run.world-mismatch"),
    # mapping.py
    ("ValueError: Rank should be an integer between 0 and 3, but got 4.", "run.world-mismatch"),
    (
        "ValueError: world_size must equal to tp_size * pp_size * cp_size, but got 8 != 4 * 1 * 1.",
        "engine.options",
    ),
    ("ValueError: len(self.pp_partition)=3 does not match self.pp_size=4.", "engine.options"),
    # llmapi/llm.py
    ("RuntimeError: Only 1 GPUs are available, but 4 are required.", "gpu.too-few"),
    (
        "ImportError: libmpi.so.40: cannot open shared object file: No such file or directory",
        "engine.import",
    ),
    # torch; cpp/tensorrt_llm/common/cudaUtils.h; _torch/pyexecutor/py_executor_creator.py
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 48.00 MiB. GPU 0 has",
        "engine.no-memory",
    ),
    ("torch.AcceleratorError: CUDA error: out of memory", "engine.no-memory"),
    (
        "[TensorRT-LLM][ERROR] CUDA runtime error in cudaMalloc: out of memory (buf.cpp:72)",
        "engine.no-memory",
    ),
    (
        "[TRT-LLM] [E] Executor creation failed due to insufficient GPU memory.",
        "engine.no-memory",
    ),
    # NVIDIA/nccl, src/init.cc
    (
        "NCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 4000",
        "run.placement-mismatch",
    ),
    ("Error: failed to extend shared memory segment /dev/shm/nccl-a1", "run.limits"),
    ("NCCL WARN Call to ibv_reg_mr failed with error Cannot allocate memory", "run.limits"),
    ("NET/IB : Got completion from peer 10.0.0.2<4711> with status=12", "run.network"),
    ("NCCL WARN Bootstrap : no socket interface found", "run.network"),
    ("RuntimeError: Failed, NCCL error x.cpp:77 'unhandled system error'", "run.network"),
    ("RuntimeError: Failed, NCCL error x.cpp:77 'unhandled cuda error'", "gpu.failed"),
    # openucx/ucx
    ("node01:12:0:12] ud_ep.c:278  Fatal: UD endpoint 0x1: Endpoint timeout", "run.network"),
    ("CUDA error: an illegal memory access was encountered", "engine.died"),
    ("RuntimeError: CUDA error: no kernel image is available for execution", "engine.import"),
    ("ValueError: Unknown architecture for AutoModelForCausalLM: FooForCausalLM", "engine.model"),
    ("OSError: You are trying to access a gated repo.", "engine.model"),
    ("OSError: Can't load tokenizer for '/m'. If you were trying to", "engine.model"),
    (
        "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
        "engine.model",
    ),
    ("OSError: [Errno 28] No space left on device: '/root/.triton'", "run.io"),
    ("ValueError: LLM got invalid argument: expert_parallel_size", "engine.options"),
    # cpp/tensorrt_llm/common/assert.h
    ("[TensorRT-LLM][ERROR] Assertion failed: hasCapacity (kv.cpp:12)", "engine.died"),
    # _torch/pyexecutor/hang_detector.py
    ("[TRT-LLM] [E] Hang detected after 300 seconds.", "engine.died"),
    (
        "\x1b[31mMpiCommSession rank1 task [<function f>] failed with exception: boom\x1b[0m",
        "engine.died",
    ),
    ("[TRT-LLM] [E] Failed to initialize executor on rank 1: boom", "engine.died"),
    # _torch/pyexecutor/py_executor.py
    ("[TRT-LLM] [E] Encountered an error in forward function: no such expert", "engine.died"),
    (
        "[TRT-LLM] [E] Encountered an error in sampling: CUDA error: out of memory",
        "engine.no-memory",
    ),
    # _torch/pyexecutor/py_executor_creator.py
    ("RuntimeError: Executor creation failed with NCCL error: ncclX", "gpu.failed"),
    (
        "terminate called after throwing an instance of 'tensorrt_llm::common::TllmException'",
        "engine.died",
    ),
    ("[node01:4711:0:4711] Caught signal 11 (Segmentation fault: address not m", "engine.died"),
    ("[node01:4711] *** Process received signal ***", "engine.died"),
    ("KeyError: 'rope_type'", "engine.died"),
]


@pytest.mark.parametrize(("line", "code"), CAUSES)
def test_a_line_tells_its_cause(line: str, code: str) -> None:
    found = cause(plain(line))
    assert found is not None
    assert found.code == code
    assert found.what in line
    assert found.hint


@pytest.mark.parametrize(
    "line",
    [
        # executor/proxy.py
        "RuntimeError: Executor worker returned error",
        "[TRT-LLM] [E] Executor worker died during initialization.",
        # llmapi/mpi_session.py
        "RemoteMpiCommSessionServer: 1/4 MPI worker(s) failed. First error: boom",
        "RuntimeError: Remote MPI worker died: RuntimeError: boom",
        "[TRT-LLM] [C] MpiSession shutdown timeout after 60s; calling MPI_Abort to force-kill",
        # _torch/pyexecutor/py_executor.py
        "[TRT-LLM] [E] Error in event loop: Sampling failed",
        "AssertionError: Sampling failed",
        # open-mpi/ompi, ompi/runtime/help-mpi-runtime
        "MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD",
        "*** An error occurred in MPI_Recv",
        # NVIDIA/nccl
        "NCCL WARN socketProgress: Connection closed by remote peer node02<1>",
        "remote process exited or there was a network error",
    ],
)
def test_what_follows_another_failure_is_no_cause(line: str) -> None:
    assert is_echo(line)
    assert cause(line) is None


def test_of_two_causes_the_deeper_one_has_the_lower_order() -> None:
    first = cause("CUDA out of memory. Tried to allocate 2.62 GiB.")
    last = cause("MpiCommSession rank1 task [<function f at 0x7f>] failed with exception: x")
    assert first is not None
    assert last is not None
    assert first.order < last.order
    assert last.what == "x"
    assert not last.guessed


@pytest.mark.parametrize(
    "line",
    [
        # _torch/autotuner.py
        "[TRT-LLM] [W] [Autotuner] Failed when profiling runner=f. Error: CUDA out of memory.",
        "[01/02/2026-10:00:00] [TRT-LLM] [RANK 3] [W] an illegal memory access was encountered",
        "[TensorRT-LLM][WARNING] No space left on device for the cache of kernels",
    ],
)
def test_what_the_engine_warns_of_it_has_got_over(line: str) -> None:
    assert cause(line) is None


def test_a_pass_of_any_kind_fails_all() -> None:
    for what in ("forward function", "sampling", "decode"):
        assert fails_all(f"[TRT-LLM] [E] Encountered an error in {what}: boom")


def test_an_exception_is_a_guess() -> None:
    found = cause("ImportError: no flash_attn")
    assert found is not None
    assert found.guessed


@pytest.mark.parametrize(
    ("line", "wait_s"),
    [
        ("MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD", 0.0),
        ("*** MPI_ERRORS_ARE_FATAL (processes in this communicator will now abort,", 0.0),
        ("MpiCommSession rank1 task [<function f at 0x7f>] failed with exception: x", 1.0),
        ("[TRT-LLM] [E] Failed to initialize executor on rank 1: x", 1.0),
        ("[TRT-LLM] [E] Executor creation failed due to insufficient GPU memory.", 1.0),
        ("[TRT-LLM] [E] Executor creation failed with NCCL error: x", 1.0),
        ("[TRT-LLM] [E] Encountered an error in forward function: x", 1.0),
        ("[TRT-LLM] [E] Encountered an error in decode: x", 1.0),
        ("[TRT-LLM] [E] Error in event loop: Sampling failed", 10.0),
        ("Executor loop crashed on this rank; hard-killing all 4 ranks in 10.0s", 1.0),
        ("[TRT-LLM] [E] Hang detected after 300 seconds.", 0.0),
        ("terminate called after throwing an instance of 'std::runtime_error'", 0.0),
        ("[node01:4711] *** Process received signal ***", 0.0),
        ("RuntimeError: rank0 should not have executor", 1.0),
        ("RuntimeError: Executor worker returned error", 10.0),
        # the autotuner tries what may not fit, and goes on
        ("[TRT-LLM] [W] [Autotuner] failed: CUDA out of memory.", None),
        ("UCX  WARN  network device 'mlx5_9:1' is not available", None),
    ],
)
def test_some_lines_end_a_world(line: str, wait_s: float | None) -> None:
    assert ending_s(line, several=True) == wait_s


def test_only_several_ranks_must_not_be_spawned() -> None:
    line = plain("\x1b[33mrank 0 using MpiPoolSession to spawn MPI processes\n\x1b[0m")
    assert ending_s(line, several=True) == 0.0
    assert ending_s(line, several=False) is None
