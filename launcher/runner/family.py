"""Processes that one rank starts, reads and ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence

__all__ = ["Child", "Deaf"]

_CHUNK_BYTES = 65536
_READ_ON_S = 2.0
_LINES = re.compile(rb"[\r\n]+")
# Whole lines of one process at a time.
_writing = threading.Lock()


class Child:
    """A process whose output, of both kinds, is passed on unchanged and heard line by line.

    Attributes
    ----------
    name
        For messages.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        environ: Mapping[str, str],
        hear: Callable[[str], None],
    ) -> None:
        self.name = name
        self._hear = hear
        self.process = subprocess.Popen(
            words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self._reader = threading.Thread(target=self._read, name=f"read-{name}", daemon=True)
        self._reader.start()

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    @property
    def code(self) -> int:
        """Its exit code, or less a signal; of one that is over, whose last words are heard."""
        self._reader.join(_READ_ON_S)  # no longer: what it has started may hold the pipe open
        return self.process.wait()

    @property
    def how(self) -> str:
        """How it ended, in words."""
        code = self.code
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - as it was opened
        source, rest = self.process.stdout.fileno(), b""
        while chunk := os.read(source, _CHUNK_BYTES):
            *_, rest = self._pass_on(rest + chunk)
            if len(rest) > _CHUNK_BYTES:  # no line ends here
                *_, rest = self._pass_on(rest + b"\n")
        if rest:
            self._pass_on(rest + b"\n")

    def _pass_on(self, data: bytes) -> list[bytes]:
        """The lines of ``data``; the last one is what has not ended yet."""
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        with _writing, contextlib.suppress(OSError):  # a full disk takes no log
            whole = data[:end]
            while whole:
                whole = whole[os.write(1, whole) :]
        lines = _LINES.split(data[:end])
        for line in lines:
            if line:
                self._hear(line.decode(errors="replace"))
        return [*lines, data[end:]]


class Deaf:
    """While it is held, processes that are started are born deaf to what asks a step to leave.

    SIG_IGN is all of this process's signal handling that exec(2) leaves to them.
    """

    _NUMBERS = (signal.SIGUSR1, signal.SIGTERM)

    def __enter__(self) -> None:
        self._before = [signal.signal(number, signal.SIG_IGN) for number in self._NUMBERS]

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(self._NUMBERS, self._before, strict=True):
            signal.signal(number, handler)
