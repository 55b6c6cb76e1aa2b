"""The output of this process and of those it starts, passed on and its end remembered.

Engines that start workers of their own tell why one failed in the worker's output and nowhere
else: what reaches the caller is "see root cause above".
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

__all__ = ["Overheard"]

_KEPT_LINES = 1000
_LONGEST_LINE_BYTES = 4096
_CHUNK_BYTES = 65536
_STOP_S = 2.0
_LOOK_S, _QUIET_LOOKS = 0.02, 5
_QUIET_S = 0.3
_SETTLED_S = 5.0


class Overheard:
    """Stands between standard output and error and where they went, until `stop`.

    Whatever is written is passed on at once and in order; processes that are started meanwhile
    write into it as well, and go on to do so.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._stopped = False
        self._places = {number: os.dup(number) for number in (1, 2)}
        self._readers = dict(self._listen(number) for number in self._places)

    def lines(self) -> Sequence[str]:
        """The last lines, of both, as they came."""
        return tuple(self._lines)

    def settled(self) -> Sequence[str]:
        """`lines`, once a moment has passed without another one: processes die one by one."""
        given_up_s = time.monotonic() + _SETTLED_S
        before: Sequence[str] | None = None
        while before != (now := self.lines()) and time.monotonic() < given_up_s:
            before = now
            time.sleep(_QUIET_S)
        return now

    def stop(self) -> None:
        """Let output go where it went before; waits a moment for what is on its way."""
        if self._stopped:
            return
        self._stopped = True
        sys.stdout.flush()
        sys.stderr.flush()
        for number, place in self._places.items():
            os.dup2(place, number)
        self._drain()
        for reader, place in zip(self._readers.values(), self._places.values(), strict=True):
            if not reader.is_alive():
                os.close(place)

    def _drain(self) -> None:
        """Wait until all is read; pipes that are left open, here or in a child, have no end."""
        given_up_s = time.monotonic() + _STOP_S
        quiet = 0
        while quiet < _QUIET_LOOKS and time.monotonic() < given_up_s:
            open_ = [source for source, reader in self._readers.items() if reader.is_alive()]
            try:
                quiet = 0 if select.select(open_, [], [], 0)[0] else quiet + 1
            except OSError:  # its reader has just ended
                continue
            if not open_:
                return
            time.sleep(_LOOK_S)

    def _listen(self, number: int) -> tuple[int, threading.Thread]:
        source, sink = os.pipe()
        os.dup2(sink, number)
        os.close(sink)
        reader = threading.Thread(
            target=self._pass_on, args=(source, self._places[number]), daemon=True, name="overheard"
        )
        reader.start()
        return source, reader

    def _pass_on(self, source: int, place: int) -> None:
        rest = b""
        while chunk := os.read(source, _CHUNK_BYTES):
            _write(place, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-_LONGEST_LINE_BYTES:]
            for line in lines:
                self._lines.append(line[:_LONGEST_LINE_BYTES].decode(errors="replace"))
        os.close(source)


def _write(place: int, chunk: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk takes no log, and stops no work
        while chunk:
            chunk = chunk[os.write(place, chunk) :]
