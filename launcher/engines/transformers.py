"""Hugging Face transformers as an engine: on one GPU or CPU, or cut over ranks, without a server.

One worker thread owns the model. On a GPU it answers by transformers' continuous batching: a row
enters the batch when there is room and leaves it when it ends. Elsewhere it answers in cohorts:
whatever waits when the last cohort ends goes into one `generate` of transformers, and a row that
comes later joins the next cohort. Either way each row has its own sampling, its own end, and its
answer the moment it ends.

Cut over ranks (by the model's own tensor-parallel plan), every rank makes the same calls: the first
one tells the others each cohort and, at each step, the new tokens and which rows have ended.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.causal_lm import Model, Row, TransformersOptions, load
from launcher.engines.continuous import Continuous, begin
from launcher.engines.prompting import first_line
from launcher.engines.registry import decode_options
from launcher.errors import Problem, RowError, RunError

__all__ = ["TransformersEngine", "follow"]

# A rank whose neighbour died sees a broken connection. The launcher ends it before that has
# passed, and the word of the one that died, which tells more, stands.
FIRST_WORD_S = 3.0
# After a death, a rank's worker may be inside a collective for good.
CLOSE_S = 10.0


class TransformersEngine:
    """Answers requests with a causal language model from a local directory.

    Raises
    ------
    RunError
        From the constructor ``engine.options``; from `start` too, when continuous batching was
        asked for and cannot be. From `start` ``engine.import`` when a library is missing,
        ``engine.model`` when the checkpoint cannot be loaded, and ``run.rendezvous`` when its
        ranks do not meet. From `generate` ``engine.died`` once the worker has failed (out of
        memory, a broken kernel), and after `close`.
    RowError
        From `generate`: ``template_error``, ``empty_prompt``, ``prompt_too_long``,
        ``cancelled``, and ``engine_error`` when the tokenizer refuses the text.

    Notes
    -----
    ``completion_tokens`` counts the end-of-sequence token, which the text does not show.
    """

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._options = _options(setup)
        self._changed = threading.Condition()  # guards the four below
        self._queue: deque[Row] = deque()
        self._rows: set[Row] = set()  # every row not yet answered, queued or running
        self._gone: Problem | None = _died("the engine was not started")
        self._closing = False
        self._generated_tokens = 0
        self._worker: threading.Thread | None = None

    async def start(self) -> Capabilities:
        started: Future[Capabilities] = Future()
        self._worker = threading.Thread(
            target=self._work, args=(started,), name="transformers", daemon=True
        )
        self._worker.start()
        return await asyncio.wrap_future(started)

    async def generate(self, request: Request) -> Completion:
        row = Row(request)
        with self._changed:
            if self._gone:
                raise RunError(self._gone)
            self._rows.add(row)
            self._queue.append(row)
            self._changed.notify()
        try:
            return await asyncio.wrap_future(row.answer)
        finally:
            with self._changed, suppress(ValueError):  # it is no longer in the queue
                self._rows.discard(row)
                self._queue.remove(row)

    async def abort(self, request_id: str) -> None:
        with self._changed:
            rows = [row for row in self._rows if row.request.id == request_id]
        for row in rows:
            row.fail(RowError("cancelled", "given up before it was answered"))

    def stats(self) -> Mapping[str, float]:
        with self._changed:
            queued = len(self._queue)
            running = len(self._rows) - queued
        return {"queued": queued, "running": running, "generated_tokens": self._generated_tokens}

    async def close(self) -> None:
        self._end(_died("the engine was closed"))
        if self._worker is not None:
            cut = self._setup.cut.ranks > 1
            await asyncio.to_thread(self._worker.join, CLOSE_S if cut else None)

    def _end(self, reason: Problem, cause: BaseException | None = None) -> None:
        """Let no row in any more, and fail those that are in."""
        with self._changed:
            if not self._closing:
                self._gone = reason
            self._closing = True
            rows = list(self._rows)
            self._queue.clear()
            self._changed.notify()
        for row in rows:
            error = RunError(reason)
            error.__cause__ = cause
            row.fail(error)

    # --- in the worker thread -----------------------------------------------------------------

    def _work(self, started: Future[Capabilities]) -> None:
        try:
            model = load(self._setup, self._options)
            batch = begin(model, self._options)
        except Exception as exc:  # noqa: BLE001 - handed to `start`, which raises it
            with suppress(InvalidStateError):  # as below
                started.set_exception(exc)
            return
        with self._changed:
            if not self._closing:
                self._gone = None
        with suppress(InvalidStateError):  # nobody waits any more: told to leave while it loaded
            started.set_result((batch or model).capabilities)
        try:
            if batch is None:
                self._answer_cohorts(model)
            else:
                self._answer_continuously(model, batch)
            model.end()
        except Exception as exc:  # noqa: BLE001 - whatever it was, those who wait must hear of it
            if model.team.world > 1:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, FIRST_WORD_S)
            self._end(_lost(self._setup, exc), exc)

    def _answer_cohorts(self, model: Model) -> None:
        while cohort := self._next_cohort(model):
            model.generate(cohort, self._count)

    def _next_cohort(self, model: Model) -> list[Row]:
        """The next rows, at most a batch of them; waits for the first only. Empty at the end."""
        cohort: list[Row] = []
        while len(cohort) < model.max_batch_size and (row := self._next(model, wait=not cohort)):
            if not model.fits([*cohort, row]):
                with self._changed:
                    self._queue.appendleft(row)
                break
            cohort.append(row)
        return cohort

    def _answer_continuously(self, model: Model, batch: Continuous) -> None:
        with batch:
            while not self._closing:
                while not batch.full and (row := self._next(model, wait=batch.empty)):
                    batch.add(row)
                if not batch.empty:
                    batch.step(self._count)

    def _next(self, model: Model, *, wait: bool) -> Row | None:
        """The next row that has a prompt; None if none is there, or at the end."""
        while row := self._take(wait=wait):
            if row.answer.done():
                continue
            try:
                row.prompt = row.prompt or model.encode(row.request)
            except RowError as exc:
                row.fail(exc)
                continue
            row.room = model.room(row)
            return row
        return None

    def _take(self, *, wait: bool) -> Row | None:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._queue or self._closing)
            return self._queue.popleft() if self._queue else None

    def _count(self, tokens: int) -> None:
        self._generated_tokens += tokens


def follow(setup: EngineSetup) -> None:
    """Be a rank after the first: make the calls it makes, until it says that it was the last.

    Raises
    ------
    RunError
        As `TransformersEngine.start`; ``engine.died`` when this rank or another one has failed.
    """
    # What asks the step to leave asks its first rank too, and that one ends the others in order.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    model = load(setup, _options(setup))
    try:
        model.follow()
    except Exception as exc:
        time.sleep(FIRST_WORD_S)
        raise RunError(_lost(setup, exc)) from exc


def _options(setup: EngineSetup) -> TransformersOptions:
    options = decode_options(TransformersOptions, setup.options, engine="transformers")
    if options.batching == "continuous" and setup.cut.ranks > 1:
        message = f"option batching is 'continuous', and {setup.cut.ranks} ranks answer in cohorts"
        hint = "leave batching out, or set tp to 1"
        raise RunError(Problem("engine.options", message, hint=hint))
    return options


def _lost(setup: EngineSetup, exc: Exception) -> Problem:
    who = "" if setup.cut.ranks == 1 else f" in rank {setup.rank} on {socket.gethostname()}"
    return _died(f"the transformers engine died{who}: {first_line(exc)}")


def _died(message: str) -> Problem:
    return Problem("engine.died", message)
