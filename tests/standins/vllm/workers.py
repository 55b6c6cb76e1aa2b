"""What stands in for vLLM's workers over several nodes: processes that meet, live, print and die.

Started as ``python workers.py PIPE RANK PLACE START``, PLACE being the JSON of what
``vllm/config/parallel.py`` knows: ``world_size``, ``local_world_size``, ``address``, ``port``. Once
all ranks are connected to rank 0 at that address, each says so in the log, has NCCL say what is in
the file ``STANDIN_NCCL_LOG`` where there is one, and writes a byte to PIPE. SIGUSR2 is its death by
NCCL. With another START than ``ready`` it fails as that cause of `core.CAUSES` does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def start(first: int, place: dict[str, Any], how: str) -> list[subprocess.Popen[bytes]]:
    """The workers of one node, ready; those that are left end when one fails."""
    ready, pipe = os.pipe()
    words = (json.dumps(place), how)
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(pipe), str(rank), *words], pass_fds=[pipe], stdin=0
        )
        for rank in range(first, first + place["local_world_size"])
    ]
    os.close(pipe)
    begun = 0
    while begun < len(workers) and not any(worker.poll() for worker in workers):
        os.set_blocking(ready, False)
        try:
            begun += len(os.read(ready, len(workers)))
        except BlockingIOError:
            time.sleep(0.02)
    os.close(ready)
    if begun < len(workers):
        for worker in workers:
            worker.kill()
        # vllm/v1/executor/multiproc_executor.py, WorkerProc.wait_for_ready
        raise Exception(  # noqa: TRY002 - as vLLM does
            "WorkerProc initialization failed due to an exception in a background process. See "
            "stack trace for root cause."
        )
    return workers


def meet(rank: int, place: dict[str, Any]) -> list[socket.socket]:
    """All ranks, at the address of rank 0, with the same idea of their number."""
    world, local = place["world_size"], place["local_world_size"]
    if rank > 0:
        connection = connect(place["address"], place["port"])
        connection.sendall(json.dumps([rank, world, local]).encode() + b"\n")
        assert connection.recv(2) == b"go"
        return [connection]
    with socket.create_server(("", place["port"])) as server:
        found: dict[int, socket.socket] = {}
        while len(found) < world - 1:
            connection, _ = server.accept()
            its_rank, *its = json.loads(connection.makefile().readline())
            assert its == [world, local], its
            assert its_rank not in found
            found[its_rank] = connection
    assert sorted(found) == list(range(1, world))
    for connection in found.values():
        connection.sendall(b"go")
    return list(found.values())


def connect(address: str, port: int) -> socket.socket:
    """torch's store waits for its server too."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(ConnectionRefusedError):
            return socket.create_connection((address, port))
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens at {address}:{port}")


def say_as_nccl() -> None:
    """NVIDIA/nccl, ``src/debug.cc``: into a file where one is named, a line at a time."""
    recorded = os.environ.get("STANDIN_NCCL_LOG")
    if recorded is None or os.environ.get("NCCL_DEBUG") != "INFO":
        return
    place = os.environ.get("NCCL_DEBUG_FILE", "/dev/stdout")
    with Path(recorded).open() as lines, Path(place).open("w", buffering=1) as log:
        log.writelines(lines)


def main() -> None:
    from core import OOM, fail, say  # type: ignore[import-not-found]  # this file's neighbour

    pipe, rank, place, how = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        json.loads(sys.argv[3]),
        sys.argv[4],
    )

    def die(*_: object) -> None:
        say("ERROR", OOM)
        os._exit(1)

    # vllm/v1/executor/multiproc_executor.py, WorkerProc.worker_main
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGUSR2, die)
    if how == "hang":
        time.sleep(1e6)
    if how != "ready":
        fail(how)
        sys.exit(1)
    # vllm/distributed/device_communicators/shm_broadcast.py divides ranks by the number of
    # GPUs that a process sees, to tell which are on its node.
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    assert len(seen) == place["local_world_size"], seen
    connections = meet(rank, place)
    where = f"{socket.gethostname()} GPU {seen[rank % len(seen)]} {os.environ['VLLM_HOST_IP']}"
    say("INFO", f"stand-in rank {rank} is {where}")
    say_as_nccl()
    os.write(pipe, b"r")
    os.close(pipe)
    parent = os.getppid()
    while os.getppid() == parent and connections:  # the death pipe
        time.sleep(0.2)


if __name__ == "__main__":
    main()
