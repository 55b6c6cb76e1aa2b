"""Hugging Face transformers as an engine: one process, one GPU or the CPU, no server.

One worker thread owns the model. It answers in cohorts: whatever waits when the last cohort ends
goes into one `generate` of transformers, each row with its own sampling, its own end, and its
answer given the moment it ends. A row that comes later joins the next cohort.

The only module that knows transformers' names; torch and transformers are imported when an engine
starts, never before.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.registry import decode_options
from launcher.engines.sampler import RowSampler
from launcher.errors import Problem, RowError, RunError

__all__ = ["TransformersEngine", "TransformersOptions", "quiet_libraries"]

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_BATCH_ON_CPU = 8
_BATCH_ON_GPU = 32
_STOP_SLACK_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersOptions:
    """``engine_options`` of the transformers engine.

    Attributes
    ----------
    max_batch_size
        Rows of one cohort; None is 8 on a CPU and 32 on a GPU.
    dtype
        ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the checkpoint's own.
    device
        A torch device; None is ``cuda:0`` where there is one, else ``cpu``.
    attn_implementation
        Passed to transformers: ``eager``, ``sdpa``, ``flash_attention_2`` …
    """

    max_batch_size: int | None = None
    dtype: str = "auto"
    device: str | None = None
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise ValueError(f"option max_batch_size is {self.max_batch_size}, below 1")
        if self.dtype not in _DTYPES:
            raise ValueError(f"option dtype is {self.dtype!r}, not one of {', '.join(_DTYPES)}")


def quiet_libraries() -> None:
    """Import transformers with its progress bars and advice off, and the hub out of reach.

    Raises
    ------
    RunError
        ``engine.import`` when transformers is missing.

    Notes
    -----
    tqdm and huggingface_hub read these variables once, when they are imported
    (``tqdm/std.py``, ``envwrap``; ``huggingface_hub/constants.py``).
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    logging = _import("transformers.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


class TransformersEngine:
    """Answers requests with a causal language model from a local directory.

    Raises
    ------
    RunError
        From the constructor ``engine.options``. From `start` ``engine.import`` when a library is
        missing, ``engine.model`` when the checkpoint cannot be loaded and ``engine.unavailable``
        for a cut over several ranks. From `generate` ``engine.died`` once the worker has failed
        (out of memory, a broken kernel), and after `close`.
    RowError
        From `generate`: ``template_error``, ``empty_prompt``, ``prompt_too_long``,
        ``cancelled``, and ``engine_error`` when the tokenizer refuses the text.

    Notes
    -----
    ``completion_tokens`` counts the end-of-sequence token, which the text does not show.
    """

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._options = decode_options(TransformersOptions, setup.options, engine="transformers")
        self._changed = threading.Condition()  # guards the four below
        self._queue: deque[_Row] = deque()
        self._rows: set[_Row] = set()  # every row not yet answered, queued or running
        self._gone: Problem | None = _died("the engine was not started")
        self._closing = False
        self._generated_tokens = 0
        self._worker: threading.Thread | None = None

    async def start(self) -> Capabilities:
        if self._setup.cut.ranks > 1:
            message = f"the transformers engine runs on one rank, not {self._setup.cut.ranks}"
            raise RunError(Problem("engine.unavailable", message, hint="set tp and pp to 1"))
        started: Future[Capabilities] = Future()
        self._worker = threading.Thread(
            target=self._work, args=(started,), name="transformers", daemon=True
        )
        self._worker.start()
        return await asyncio.wrap_future(started)

    async def generate(self, request: Request) -> Completion:
        row = _Row(request)
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
            await asyncio.to_thread(self._worker.join)

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
            model = _load(self._setup, self._options)
        except Exception as exc:  # noqa: BLE001 - handed to `start`, which raises it
            started.set_exception(exc)
            return
        with self._changed:
            if not self._closing:
                self._gone = None
        started.set_result(model.capabilities)
        try:
            while cohort := self._next_cohort(model):
                model.generate(cohort, self._count)
        except Exception as exc:  # noqa: BLE001 - whatever it was, those who wait must hear of it
            self._end(_died(f"the transformers engine died: {_first_line(exc)}"), exc)

    def _next_cohort(self, model: _Model) -> list[_Row]:
        """The next rows, at most a batch of them; waits for the first only. Empty at the end."""
        cohort: list[_Row] = []
        while len(cohort) < model.max_batch_size and (row := self._take(wait=not cohort)):
            if row.answer.done():
                continue
            try:
                row.prompt = row.prompt or model.encode(row.request)
            except RowError as exc:
                row.fail(exc)
                continue
            row.room = model.room(row)
            if not model.fits([*cohort, row]):
                with self._changed:
                    self._queue.appendleft(row)
                break
            cohort.append(row)
        return cohort

    def _take(self, *, wait: bool) -> _Row | None:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._queue or self._closing)
            return self._queue.popleft() if self._queue else None

    def _count(self, tokens: int) -> None:
        self._generated_tokens += tokens


@dataclass(slots=True, eq=False)
class _Row:
    """One request on its way. ``answer`` being done, for whatever reason, is the row's end."""

    request: Request
    answer: Future[Completion] = field(default_factory=Future)
    prompt: list[int] = field(default_factory=list)
    room: int = 0
    tokens: list[int] = field(default_factory=list)

    def finish(self, completion: Completion) -> None:
        with suppress(InvalidStateError):  # given up at the same moment
            self.answer.set_result(completion)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):  # answered or given up at the same moment
            self.answer.set_exception(error)


@dataclass(slots=True)
class _Model:
    """A loaded checkpoint. ``limit`` is the longest sequence it takes, or None."""

    module: Any
    tokenizer: Any
    device: Any
    eos: frozenset[int]
    limit: int | None
    max_batch_size: int

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            # A second batch waits while the first one runs, so that cohorts start full.
            max_in_flight=2 * self.max_batch_size,
            chat_template=self.tokenizer.chat_template is not None,
            max_seq_len=self.limit,
        )

    def encode(self, request: Request) -> list[int]:
        """Token ids of the prompt."""
        text = request.text if request.text is not None else self._apply_template(request)
        try:
            encoded = self.tokenizer(text, add_special_tokens=request.messages is None)
        except Exception as exc:
            raise RowError("engine_error", f"the tokenizer failed: {_first_line(exc)}") from exc
        ids: list[int] = encoded["input_ids"]
        if not ids:
            raise RowError("empty_prompt", "the prompt has no tokens")
        if self.limit is not None and len(ids) > self.limit - 1:
            message = f"the prompt has {len(ids)} tokens, the model takes {self.limit - 1}"
            raise RowError("prompt_too_long", message)
        return ids

    def _apply_template(self, request: Request) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in request.messages or ()],
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as exc:  # a template is a program: it can raise anything
            message = f"the model's chat template failed: {_first_line(exc)}"
            raise RowError("template_error", message) from exc
        return text

    def room(self, row: _Row) -> int:
        """New tokens that the row may have."""
        wanted = row.request.sampling.max_tokens
        return wanted if self.limit is None else min(wanted, self.limit - len(row.prompt))

    def fits(self, rows: Sequence[_Row]) -> bool:
        """Whether the rows can share a batch.

        A row that has ended is computed on until its cohort ends; past the last position, models
        with learned position embeddings fail and scaled rotary ones change their answers.
        """
        width = max(len(row.prompt) for row in rows)
        return self.limit is None or width + max(row.room for row in rows) <= self.limit

    def generate(self, rows: Sequence[_Row], count: Callable[[int], None]) -> None:
        """Answer all ``rows``; ``count`` is told of new tokens as they come."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        width = max(len(row.prompt) for row in rows)
        pads = [width - len(row.prompt) for row in rows]
        pad = min(self.eos, default=0)
        sampler = RowSampler([row.request.sampling for row in rows], self.device)
        self.module.generate(
            input_ids=torch.tensor(
                [[pad] * n + row.prompt for n, row in zip(pads, rows, strict=True)],
                device=self.device,
            ),
            attention_mask=torch.tensor(
                [[0] * n + [1] * (width - n) for n in pads], device=self.device
            ),
            generation_config=GenerationConfig(
                max_new_tokens=max(row.room for row in rows), do_sample=False, pad_token_id=pad
            ),
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([_RowEnds(self, rows, count)]),
        )

    def completion(self, row: _Row) -> Completion | None:
        """The answer, if the row's newest token ends it."""
        tokens = row.tokens
        if tokens[-1] in self.eos:
            return self._answer(row, self.decode(tokens[:-1]), "stop")
        if (cut := self._stop_at(row)) is not None:
            return self._answer(row, self.decode(tokens)[:cut], "stop")
        if len(tokens) == row.room:
            return self._answer(row, self.decode(tokens), "length")
        return None

    def _answer(self, row: _Row, text: str, reason: str) -> Completion:
        return Completion(
            text=text,
            finish_reason=reason,
            prompt_tokens=len(row.prompt),
            completion_tokens=len(row.tokens),
        )

    def _stop_at(self, row: _Row) -> int | None:
        """Where in the row's text its first stop string begins.

        Only the end of the text is decoded at each step: a token gives at least one byte.
        """
        stops = row.request.sampling.stop
        if not stops:
            return None
        window = max(len(stop.encode()) for stop in stops) + _STOP_SLACK_TOKENS
        if not any(stop in self.decode(row.tokens[-window:]) for stop in stops):
            return None
        text = self.decode(row.tokens)
        return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class _RowEnds:
    """A stopping criterion that ends each row by its own rules and answers it at once.

    Called as ``transformers.StoppingCriteria`` is, after each step (``input_ids`` of shape
    ``(batch, length)``), it gives a boolean per row; the batch ends when all are true
    (``transformers/generation/utils.py``, ``GenerationMixin._sample``).
    """

    def __init__(self, model: _Model, rows: Sequence[_Row], count: Callable[[int], None]) -> None:
        self._model = model
        self._rows = rows
        self._count = count

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002 - the hook's
        import torch

        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if not row.answer.done():
                self._count(1)
                self._extend(row, token)
        return torch.tensor([row.answer.done() for row in self._rows], device=input_ids.device)

    def _extend(self, row: _Row, token: int) -> None:
        row.tokens.append(token)
        completion = self._model.completion(row)
        if completion is not None:
            row.finish(completion)


def _load(setup: EngineSetup, options: TransformersOptions) -> _Model:
    """The model of ``setup.model_path`` on its device."""
    torch = _import("torch")
    quiet_libraries()
    _import("accelerate")
    device = options.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        torch.set_num_threads(setup.threads)
    path = setup.model_path
    if path is None or not Path(path, "config.json").is_file():
        message = f"there is no checkpoint at {path}: config.json is missing"
        hint = "point model at a directory in the Hugging Face layout"
        raise RunError(Problem("engine.model", message, hint=hint))
    try:
        return _read(path, device, options)
    except Exception as exc:
        message = f"cannot load {path} on {device}: {_first_line(exc)}"
        raise RunError(Problem("engine.model", message)) from exc


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        message = f"the transformers engine cannot import {name}: {_first_line(exc)}"
        hint = "install a CPU or CUDA build of torch, then run pip install 'hpc-llm[local]'"
        raise RunError(Problem("engine.import", message, hint=hint)) from exc


def _read(path: str, device: str, options: TransformersOptions) -> _Model:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    module = AutoModelForCausalLM.from_pretrained(
        path,
        local_files_only=True,
        dtype=options.dtype if options.dtype == "auto" else getattr(torch, options.dtype),
        device_map={"": device},
        attn_implementation=options.attn_implementation,
    ).eval()
    eos = _eos(module.generation_config.eos_token_id) or _eos(tokenizer.eos_token_id)
    # The checkpoint's own defaults (temperature, repetition_penalty …) would fill every value
    # that `generate` is not given: the job's sampling is all there is.
    module.generation_config = GenerationConfig()
    on_cpu = torch.device(device).type == "cpu"
    return _Model(
        module=module,
        tokenizer=tokenizer,
        device=module.device,
        eos=eos,
        limit=getattr(module.config.get_text_config(), "max_position_embeddings", None),
        max_batch_size=options.max_batch_size or (_BATCH_ON_CPU if on_cpu else _BATCH_ON_GPU),
    )


def _eos(ids: int | list[int] | None) -> frozenset[int]:
    return frozenset([ids] if isinstance(ids, int) else ids or ())


def _died(message: str) -> Problem:
    return Problem("engine.died", message)


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {lines[0]}" if lines else type(exc).__name__
