"""As ``tensorrt_llm/executor/ipc.py`` @0c8de69a: pickles over a pair of ZeroMQ, signed with a key.

A client may send before its server is there, and its end waits until the message is gone; a server
that has no client waits before it can send at all.
"""

from __future__ import annotations

import hashlib
import hmac
import pickle
import queue
from typing import Any

from ..logger import logger

_DIGEST = 32


class ZeroMqQueue:
    def __init__(self, address: tuple[str, bytes | None], *, is_server: bool) -> None:
        import zmq

        self._zmq = zmq
        endpoint, self._key = address
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        if is_server:
            self._socket.bind(endpoint)
            endpoint = self._socket.getsockopt(zmq.LAST_ENDPOINT).decode()
        else:
            self._socket.connect(endpoint)
        self.address = (endpoint, self._key)

    def put(self, obj: Any) -> None:
        data = pickle.dumps(obj)
        self._socket.send(data + self._sign(data))

    def put_noblock(self, obj: Any) -> None:
        """Nobody at the other end is no reason to wait."""
        data = pickle.dumps(obj)
        try:
            self._socket.send(data + self._sign(data), self._zmq.NOBLOCK)
        except self._zmq.Again:
            logger.error(f"Failed to send object: {obj}")

    def poll(self, timeout_s: float) -> bool:
        return bool(self._socket.poll(timeout_s * 1000, self._zmq.POLLIN))

    def get(self) -> Any:
        data = self._socket.recv()
        if self._key is not None:
            data, signature = data[:-_DIGEST], data[-_DIGEST:]
            if not hmac.compare_digest(self._sign(data), signature):
                raise RuntimeError("HMAC verification failed")
        return pickle.loads(data)

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _sign(self, data: bytes) -> bytes:
        return b"" if self._key is None else hmac.digest(self._key, data, hashlib.sha256)


class IntraProcessQueue:
    """``executor/utils.py`` @7b437aaa: the same within one process."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()

    def put(self, obj: Any) -> None:
        self._queue.put(obj)

    def poll(self, timeout_s: float) -> bool:
        with self._queue.not_empty:
            return bool(self._queue._qsize()) or self._queue.not_empty.wait(timeout_s)

    def get(self) -> Any:
        return self._queue.get()

    def close(self) -> None:
        pass
