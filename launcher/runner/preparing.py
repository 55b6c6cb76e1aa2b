"""Rows to requests, ahead of the engine: in a thread, or in processes where tokens are to be made.

A tokenizer makes about 0.4 million tokens a second on a core, and a long prompt would hold up the
event loop for many steps of the engine. So the processes read, fill templates and tokenise; this
one only takes what they send. Each of them reads whole units and prepares every n-th batch, so
that batches come in input order without anybody who sorts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection, Pipe
from typing import Protocol

from launcher.data.prompts import PromptBuilder
from launcher.data.records import head_of
from launcher.data.rows import Row, UnitReader
from launcher.engines.base import Request
from launcher.errors import HpcLlmError, Problem, RowError, RunError
from launcher.plan.types import RunIdentity
from launcher.runner.ready import Prepared

__all__ = ["Encoder", "InProcesses", "InThread", "Rows", "serve"]

Encoder = Callable[[Request], Sequence[int]]

_BATCH_ROWS = 64
_BATCH_BYTES = 256 * 1024
# Of English text; only for what has no token ids yet.
_CHARACTERS_PER_TOKEN = 4


class Rows(Protocol):
    """Where prepared rows come from. One unit is read at a time, to its end."""

    async def some(self, unit: int) -> list[Prepared]:
        """The next rows of ``unit``, in input order; empty at its end.

        Raises
        ------
        RunError
            As `UnitReader.read`; ``run.died`` when a process is gone.
        """

    def close(self) -> None: ...


class InThread:
    """Prepares rows in a thread of this process. Templates are compiled at once.

    Raises
    ------
    SpecError
        ``input.template``.
    """

    def __init__(self, identity: RunIdentity) -> None:
        self._reader = UnitReader(identity.inputs, identity.grid)
        self._batches = _Preparing(identity, self._reader)
        self._unit: int | None = None
        self._open: Iterator[list[Prepared]] = iter(())

    async def some(self, unit: int) -> list[Prepared]:
        if unit != self._unit:
            self._unit, self._open = unit, self._batches.of(unit)
        batch: list[Prepared] = await asyncio.to_thread(next, self._open, [])
        if not batch:
            self._unit = None
        return batch

    def close(self) -> None:
        self._reader.close()


class InProcesses:
    """Prepares rows in ``count`` processes, which are started at once.

    Parameters
    ----------
    arguments
        Of ``python -m launcher.runner.preparer``, before those that this class adds.
    """

    def __init__(self, arguments: Sequence[str], count: int) -> None:
        self._workers = [_Worker([*arguments, str(number), str(count)]) for number in range(count)]
        self._unit: int | None = None
        self._turn = 0

    async def some(self, unit: int) -> list[Prepared]:
        if unit != self._unit:
            self._unit, self._turn = unit, 0
            for worker in self._workers:
                worker.begin(unit)
        worker = self._workers[self._turn % len(self._workers)]
        self._turn += 1
        batch = await asyncio.to_thread(worker.take)
        if not batch:
            await asyncio.to_thread(self._to_the_end, worker)
            self._unit = None
        return batch

    def close(self) -> None:
        for worker in self._workers:
            worker.end()

    def _to_the_end(self, ended: _Worker) -> None:
        """Of the others too: none of them has a batch after the first missing one."""
        for worker in self._workers:
            if worker is not ended and worker.take():
                raise RuntimeError(f"a batch of unit {self._unit} came after its end")


class _Worker:
    """One process and the pipe to it, which holds it back when nobody takes what it sends."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._pipe, theirs = Pipe()
        environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        # Slurm signals every process of a step; this one is to end after its replica, not before.
        signals = {signal.SIGUSR1, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "launcher.runner.preparer",
                    str(theirs.fileno()),
                    *arguments,
                ],
                pass_fds=[theirs.fileno()],
                env=environ,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def begin(self, unit: int) -> None:
        with contextlib.suppress(OSError):  # it is gone; what it sent before says why
            self._pipe.send(unit)

    def take(self) -> list[Prepared]:
        try:
            found: list[Prepared] | HpcLlmError = self._pipe.recv()
        except (EOFError, OSError) as exc:
            raise self._lost() from exc
        if isinstance(found, HpcLlmError):
            raise found
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()  # a thread that reads it has come to its end

    def _lost(self) -> RunError:
        self._process.kill()
        code = self._process.wait()
        message = f"a process that prepares prompts ended with code {code}"
        hint = "see the end of the step's log; SIGKILL (-9) is often the kernel being out of memory"
        return RunError(Problem("run.died", message, hint=hint))


class _Preparing:
    """Batches of prepared rows, unit by unit."""

    def __init__(
        self, identity: RunIdentity, reader: UnitReader, encode: Encoder | None = None
    ) -> None:
        self._reader = reader
        self._builder = PromptBuilder(identity.prompt, identity.sampling)
        self._keep = identity.keep
        self._encode = encode

    def of(self, unit: int, number: int = 0, count: int = 1) -> Iterator[list[Prepared]]:
        """Of ``unit`` every ``count``-th batch from the ``number``-th on."""
        rows = self._reader.read(unit)
        for batch in islice(_batches(rows), number, None, count):
            yield [self._prepared(row) for row in batch]

    def _prepared(self, row: Row) -> Prepared:
        head = head_of(row, self._keep)
        try:
            prompt = self._builder.build(row)
            request = Request(
                id=f"{row.file}:{row.offset}",
                sampling=prompt.sampling,
                text=prompt.text,
                messages=prompt.messages,
                tokens=prompt.tokens,
            )
            if self._encode is not None and request.tokens is None:
                request = _encoded(request, self._encode(request))
        except RowError as exc:
            return Prepared(head, error=exc)
        return Prepared(head, request, size=_size(request))


def serve(
    pipe: Connection, identity: RunIdentity, encode: Encoder, number: int, count: int
) -> None:
    """Be one of the processes of `InProcesses`, until the other end of ``pipe`` is closed."""
    with UnitReader(identity.inputs, identity.grid) as reader:
        preparing = _Preparing(identity, reader, encode)
        while True:
            unit: int = pipe.recv()
            try:
                for batch in preparing.of(unit, number, count):
                    pipe.send(batch)
                pipe.send([])
            except HpcLlmError as exc:
                pipe.send(exc)


def _encoded(request: Request, ids: Sequence[int]) -> Request:
    return Request(id=request.id, sampling=request.sampling, tokens=array("I", ids))


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Few rows at a time, so that others get their turn in between."""
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH_ROWS or row.offset - batch[0].offset > _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _size(request: Request) -> int:
    if request.tokens is not None:
        return len(request.tokens)
    if request.text is not None:
        return len(request.text) // _CHARACTERS_PER_TOKEN + 1
    return sum(len(turn["content"]) for turn in request.messages or ()) // _CHARACTERS_PER_TOKEN + 1
