"""As ``tensorrt_llm/llmapi/mgmn_leader_node.py`` @c40f1157: rank 0, which takes the proxy's tasks.

``--action stop`` waits for ever when there is no leader to take it, as ZeroMQ has it.
"""

from __future__ import annotations

import argparse
import os
import re

from .._utils import mpi_world_size
from ..executor.ipc import ZeroMqQueue
from ..executor.utils import (
    get_spawn_proxy_process_env,
    get_spawn_proxy_process_ipc_addr_env,
    get_spawn_proxy_process_ipc_hmac_key_env,
)
from .mpi_session import RemoteMpiCommSessionServer, get_mpi_world_size


def launch_server_main() -> None:
    address, key = address_and_key()
    world = mpi_world_size()
    # What the launch script sets for all that it starts; the stand-in is stricter than the leader.
    assert get_spawn_proxy_process_env(), "stand-in: TLLM_SPAWN_PROXY_PROCESS is not 1"
    assert get_mpi_world_size() == world, (
        f"stand-in: tllm_mpi_size is {os.getenv('tllm_mpi_size')} of {world}"  # noqa: SIM112
    )
    RemoteMpiCommSessionServer(n_workers=world, addr=address, hmac_key=key).serve()


def stop_server_main() -> None:
    queue = ZeroMqQueue(address_and_key(), is_server=False)
    queue.put(None)
    queue.close()


def address_and_key() -> tuple[str, bytes | None]:
    address = get_spawn_proxy_process_ipc_addr_env()
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", address), f"stand-in: address {address}"
    return address, get_spawn_proxy_process_ipc_hmac_key_env()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--action", choices=["start", "stop"], default="start")
    if parser.parse_args().action == "start":
        launch_server_main()
    else:
        stop_server_main()


if __name__ == "__main__":
    main()
