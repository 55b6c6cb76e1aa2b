"""transformers' continuous batching: rows enter and leave the batch of a model at any step.

transformers runs it in a thread of its own, over a paged cache of keys and values
(``transformers/generation/continuous_batching``). Rows go in and tokens come out through queues;
which token comes next is decided here, in that thread, by the same sampler as for cohorts.

Its batches stay synchronous and outside of CUDA graphs: a graph would replay one draw for ever,
and an asynchronous batch draws for rows that have ended.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from launcher.engines.base import Capabilities, window
from launcher.engines.causal_lm import Model, Row, TransformersOptions
from launcher.engines.prompting import first_line
from launcher.engines.sampler import Draw, RowSampler, Scored, score
from launcher.errors import Problem, RunError

__all__ = ["Continuous", "Draws", "begin"]

_ROWS_ON_CPU = 8
_ROWS_ON_GPU = 256
# What is left is for what a step holds: copies of keys and values, and logits.
_CACHE_SHARE_ON_CPU = 0.1
_CACHE_SHARE_ON_GPU = 0.7
# Tokens of one step. Without flash attention each pays for every key in the cache, its own or not.
_MASKED_STEP_TOKENS = 1024
# A thread that died without a word is noticed after the first; the second is for its last one.
_LOOK_S = 1.0
_LAST_WORD_S = 5.0


class Draws:
    """The sampler of a batch whose rows change from step to step.

    Stands where the manager has its ``ContinuousBatchingLogitsProcessorList``
    (``cb_logits_processors.py``), and is used as that one is: before each step
    `prepare_tensor_args` is told the rows of it, then the call gets the logits, those of rows with
    a new token first, and the argmax of what it returns are the tokens.
    """

    do_processing = True
    tensors_required = 0  # of the tensors in which other processors keep their arguments

    def __init__(self, device: Any) -> None:
        self._device = device
        self._draws: dict[str, Draw] = {}
        self._order: list[str] = []
        self._sampler = RowSampler([], device)
        self._drawn: Counter[str] = Counter()
        # Of rows that want log probabilities: how many a token, and those not fetched yet.
        self._counts: dict[str, int] = {}
        self._wanted: list[int | None] = []
        self._scored: dict[str, deque[Scored]] = {}

    def add(self, name: str, draw: Draw | None, logprobs: int | None = None) -> None:
        if draw is not None:
            self._draws[name] = draw
        if logprobs is not None:
            self._counts[name], self._scored[name] = logprobs, deque()

    def scored(self, name: str) -> Scored | None:
        """What there is to tell of the row's next token, None for one that wants nothing."""
        found = self._scored.get(name)
        if found is not None and not found:
            raise RuntimeError("a token came that was not drawn here")
        return found.popleft() if found else None

    def drop(self, name: str, tokens: int) -> None:
        """Forget a row that has ended with so many tokens; each has to be a draw."""
        draw, drawn = self._draws.pop(name, None), self._drawn.pop(name, 0)
        self._counts.pop(name, None)
        self._scored.pop(name, None)
        if draw is not None and drawn < tokens:
            raise RuntimeError(f"only {drawn} of {tokens} tokens were drawn by the row's seed")

    def fill_defaults(self, tensors: Any) -> None:
        """No arguments, no defaults."""

    def check_kwargs(self, kwargs: Any) -> None:
        """Requests bring none."""

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Any) -> Any:
        order = [row.state.request_id for row in requests_in_batch if row.has_new_token]
        if order != self._order:
            # A row that was dropped may be in one more step, and then it does not matter how.
            draws = [self._draws.get(name) for name in order]
            self._sampler, self._order = RowSampler(draws, self._device), order
        self._wanted = [self._counts.get(name) for name in order]
        self._drawn.update(name for name in order if name in self._draws)
        return arg_storage

    def __call__(self, input_ids: Any, scores: Any, tensor_args: Any) -> Any:  # noqa: ARG002 - the hook's
        # More are of no row: prompts that are read in parts have no new token yet, and their
        # places are filled up at the end (input_outputs.py, get_model_kwargs).
        if len(scores) < len(self._order):
            raise RuntimeError(f"{len(scores)} rows of logits for {len(self._order)} rows")
        drawn = self._sampler(input_ids, scores)
        for name, its in zip(self._order, score(scores, drawn, self._wanted), strict=True):
            if its is not None and (kept := self._scored.get(name)) is not None:
                kept.append(its)
        return drawn


class Continuous:
    """The batch of a model. All but the drawing happens in the thread that calls.

    Used as a context: rows are answered within it, and what is left at its end is given up.
    Any method raises what ended transformers' thread, once something has.
    """

    def __init__(self, model: Model, manager: Any, draws: Draws, max_rows: int) -> None:
        self._model = model
        self._manager = manager
        self._draws = draws
        self._max_rows = max_rows
        self._names = map(str, itertools.count())
        self._rows: dict[str, Row] = {}

    @property
    def capabilities(self) -> Capabilities:
        return replace(self._model.capabilities, max_in_flight=window(self._max_rows))

    @property
    def empty(self) -> bool:
        return not self._rows

    @property
    def full(self) -> bool:
        return len(self._rows) >= self._max_rows

    def __enter__(self) -> None:
        self._manager.start()

    def __exit__(self, *_: object) -> None:
        # When it is gone, clearing up after it could raise what hides why.
        if self._manager.is_running():
            self._manager.stop(hard_stop=True)

    def add(self, row: Row) -> None:
        name = next(self._names)
        self._rows[name] = row
        sampling = row.request.sampling
        self._draws.add(name, Draw.of(sampling, self._model.device), sampling.logprobs)
        added = self._manager.add_request(
            row.prompt,
            request_id=name,
            max_new_tokens=row.room,
            streaming=True,  # stop texts are looked for at each token
            eos_token_id=sorted(self._model.eos),
        )
        if added is None:
            raise self._death()

    def step(self, count: Callable[[int], None]) -> None:
        """Wait for one row's next token, a moment at most; ``count`` is told of it."""
        output = self._manager.get_result(timeout=_LOOK_S)
        if output is None:
            if not self._manager.is_running():
                raise self._death()
        elif output.error is not None:
            raise self._death(output.error)
        elif output.request_id in self._rows:
            self._extend(output, count)

    def _extend(self, output: Any, count: Callable[[int], None]) -> None:
        row, ended = self._rows[output.request_id], output.is_finished()
        for token in output.generated_tokens[len(row.tokens) :]:
            if not row.answer.done():
                count(1)
                self._model.extend(row, token, self._draws.scored(output.request_id))
        if row.answer.done():
            self._drop(output.request_id, row, ended=ended)
        elif ended:
            raise RuntimeError(f"a row was ended after {len(row.tokens)} of {row.room} tokens")

    def _drop(self, name: str, row: Row, *, ended: bool) -> None:
        if not ended:  # by a stop text, or given up
            self._manager.cancel_request(name)
        del self._rows[name]
        self._draws.drop(name, len(row.tokens))

    def _death(self, said: str = "") -> Exception:
        """Why there will be no more tokens."""
        # It fails the rows first and notes the cause then (continuous_api.py,
        # _handle_critical_error).
        self._manager.join(time.perf_counter(), _LAST_WORD_S)
        cause: Exception | None = self._manager.background_thread_status.fatal_error
        return cause or RuntimeError(said or "continuous batching ended without a word")


def begin(model: Model, options: TransformersOptions) -> Continuous | None:
    """The batch of a model that can be batched continuously, with its cache; None for cohorts.

    ``model.limit`` becomes what the cache holds, if that is less.

    Raises
    ------
    RunError
        ``engine.options`` when continuous batching was asked for and cannot be.
    """
    asked = options.batching == "continuous"
    if options.batching == "cohorts" or not (asked or model.device.type == "cuda"):
        return None
    attention = _attention(model.module)
    why = _lacking(model)
    if why is None:
        try:
            return _begin(model, options)
        except Exception as exc:  # noqa: BLE001 - a model of another build can raise anything
            why = first_line(exc)
            model.module.set_attn_implementation(attention)
    if asked:
        message = f"option batching is 'continuous', and this model cannot be batched so: {why}"
        hint = "write batching: auto, or leave it out, to answer in cohorts"
        raise RunError(Problem("engine.options", message, hint=hint))
    print(f"transformers answers in cohorts: {why}", file=sys.stderr, flush=True)  # noqa: T201 - the step's log
    return None


def _lacking(model: Model) -> str | None:
    """What there is not, of what continuous batching needs, or None."""
    import transformers

    if model.team.world > 1:
        return f"it is cut over {model.team.world} ranks"
    wanted = {"max_requests_per_batch", "max_batch_tokens", "max_memory_percent"}
    wanted |= {"use_cuda_graph", "use_async_batching"}
    config = getattr(transformers, "ContinuousBatchingConfig", None)
    if config is None or not wanted <= {field.name for field in fields(config)}:
        return f"transformers {transformers.__version__} has not what it takes"
    if not hasattr(model.module, "init_continuous_batching"):
        return f"{type(model.module).__name__} has no continuous batching"
    return None


def _begin(model: Model, options: TransformersOptions) -> Continuous:
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    on_cpu = model.device.type == "cpu"
    if model.device.type == "cuda":
        torch.cuda.set_device(model.device)  # whose memory is looked at
    rows = options.max_batch_size or (_ROWS_ON_CPU if on_cpu else _ROWS_ON_GPU)
    share = options.cache_memory or (_CACHE_SHARE_ON_CPU if on_cpu else _CACHE_SHARE_ON_GPU)
    flash = "flash" in _attention(model.module)
    manager = model.module.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(
            max_requests_per_batch=rows,
            max_batch_tokens=None if flash else max(_MASKED_STEP_TOKENS, rows),
            max_memory_percent=share,
            use_cuda_graph=False,
            use_async_batching=False,
            **_same_attention(model.module, ContinuousBatchingConfig),
        ),
    )
    manager.logit_processor = draws = Draws(model.device)
    manager.warmup()  # makes the cache, so that what does not fit is seen now
    cache = manager.batch_processor.cache
    # Positions over all rows: the name changed between 5.17 and 5.23.
    room = getattr(cache, "max_tokens_read", None) or cache.num_pages
    model.limit = room if model.limit is None else min(model.limit, room)
    return Continuous(model, manager, draws, rows)


def _same_attention(module: Any, config: Any) -> dict[str, bool]:
    """What keeps the manager from taking another attention, which it might have to download."""
    if "auto_switch_to_flash" in {field.name for field in fields(config)}:
        return {"auto_switch_to_flash": False}
    attention = _attention(module)
    if "flash" not in attention and not attention.startswith("paged|"):
        module.set_attn_implementation(f"paged|{attention}")
    return {}


def _attention(module: Any) -> str:
    name: str = module.config._attn_implementation  # noqa: SLF001 - it has no other name
    return name
