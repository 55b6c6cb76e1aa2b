"""As ``tensorrt_llm/executor/utils.py`` @7b437aaa: the launcher's variables, and RequestError."""

from __future__ import annotations

import os


class RequestError(RuntimeError):
    """One request failed; the engine goes on."""


def get_spawn_proxy_process_env() -> bool:
    return os.getenv("TLLM_SPAWN_PROXY_PROCESS") == "1"


def get_spawn_proxy_process_ipc_addr_env() -> str:
    address = os.getenv("TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR")
    assert address, "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR is not set."
    return address


def get_spawn_proxy_process_ipc_hmac_key_env() -> bytes | None:
    """None: nothing is signed (``llmapi/mpi_session.py`` @cc4777e9); later versions want a key."""
    key = os.getenv("TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY")
    return bytes.fromhex(key) if key else None
