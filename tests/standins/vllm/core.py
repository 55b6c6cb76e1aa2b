"""What stands in for vLLM's EngineCore and its workers: processes that live, print and die.

Started as ``python core.py PIPE START WORKERS STUBBORN PLACE``: with START ``ready`` it writes a
byte to PIPE and lives until SIGTERM, or until ``die`` comes on its standard input; otherwise it
fails as the cause START of `CAUSES` does. STUBBORN ignores SIGTERM, as a worker inside a kernel
does. WORKERS are those of one node; over several they meet as PLACE says (see `workers`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 28.00 GiB. GPU 0 has a total "
    "capacity of 79.11 GiB of which 1.06 GiB is free."
)
# By cause what is printed, as `logger.exception` of vllm/v1/engine/core.py prints it.
CAUSES = {
    # vllm/v1/worker/utils.py, request_memory
    "in-use": "ValueError: Free memory on device cuda:0 (3.21/79.11 GiB) on startup is less than "
    "desired GPU memory utilization (0.92, 72.78 GiB). Decrease GPU memory utilization or reduce "
    "GPU memory used by other processes.",
    # vllm/v1/worker/gpu_model_runner.py, load_model
    "weights": "Failed to load model - not enough GPU memory. Try lowering "
    "--gpu-memory-utilization to free memory for weights, increasing --tensor-parallel-size, or "
    "using --quantization. See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ "
    f"for more tips. (original error: {OOM})\n{OOM}",
    # vllm/v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory
    "no-blocks": "ValueError: No available memory for the cache blocks. Try increasing "
    "`gpu_memory_utilization` when initializing the engine (this flag also controls CPU memory "
    "reservation on the CPU backend, despite its name).",
    "short-cache": "ValueError: To serve at least one request with the model's max seq len "
    "(131072), (16.0 GiB KV cache is needed, which is larger than the available KV cache memory "
    "(7.5 GiB). Try increasing `gpu_memory_utilization`",
    "out-of-memory": OOM,
    # vllm/platforms/cuda.py, import_kernels; what comes of it is not what is wrong
    "mismatch": "Failed to import from vllm._C_stable_libtorch: ImportError('undefined symbol')\n"
    "AttributeError: '_OpNamespace' '_C' object has no attribute 'rms_norm'",
    "nccl": "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO)",
    # vllm/model_executor/models/utils.py, AutoWeightsLoader
    "architecture": "ValueError: There is no module or parameter named 'model.q' in Llama",
}


def say(level: str, text: str) -> None:
    # The prefix is vllm/utils/system_utils.py's, the rest vllm/logging_utils/formatter.py's.
    line = f"(EngineCore pid={os.getpid()}) {level} 11-23 02:19:55 [core.py:1231] {text}\n"
    os.write(1, line.encode())


def fail(cause: str) -> None:
    say("ERROR", "EngineCore failed to start.")
    say("ERROR", "Traceback (most recent call last):")
    if cause == "nothing":
        return
    for line in CAUSES[cause].splitlines():
        say("ERROR", line)
    # vllm/v1/executor/multiproc_executor.py, WorkerProc.wait_for_ready
    say(
        "ERROR",
        "Exception: WorkerProc initialization failed due to an exception in a background process. "
        "See stack trace for root cause.",
    )


def main() -> None:
    pipe, start, count, stubborn, place = int(sys.argv[1]), *sys.argv[2:6]
    if stubborn == "1":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if start == "hang":
        time.sleep(1e6)
    if start != "ready":
        fail(start)
        sys.exit(1)
    if place == "null":
        sleep = "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(1e6)"
        started = [subprocess.Popen([sys.executable, "-c", sleep]) for _ in range(int(count))]
    else:
        import workers  # type: ignore[import-not-found]  # this file's neighbour

        started = workers.start(0, json.loads(place), start)
    os.write(pipe, b"r")
    os.close(pipe)
    for line in sys.stdin:
        if line == "die\n":
            say("ERROR", "EngineCore encountered a fatal error.")
            say("ERROR", OOM)
            break
    for worker in started if stubborn == "0" else []:
        worker.kill()
    sys.exit(1)


if __name__ == "__main__":
    main()
