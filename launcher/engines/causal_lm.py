"""A causal language model of transformers, on one device or cut over ranks.

The only module that knows transformers' names; torch and transformers are imported when a model
is loaded, never before.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.engines.base import Capabilities, Completion, EngineSetup, Request
from launcher.engines.logprobs import Speller, entry, listed, speller
from launcher.engines.prompting import encode, first_line
from launcher.engines.sampler import Draw, RowSampler, Scored, score
from launcher.engines.team import Team, quiet_torch
from launcher.errors import Problem, RowError, RunError

__all__ = [
    "Cohort",
    "Model",
    "Row",
    "TransformersOptions",
    "load",
    "quiet_libraries",
]

_BATCHINGS = ("auto", "continuous", "cohorts")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_BATCH_ON_CPU = 8
_BATCH_ON_GPU = 32
_STOP_SLACK_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersOptions:
    """``engine_options`` of the transformers engine.

    Attributes
    ----------
    batching
        ``continuous``: rows enter and leave the batch at any step. ``cohorts``: a batch is
        answered to its end before the next one begins. ``auto``: continuous on a GPU, if the
        model is not cut and the installed transformers can; else cohorts.
    max_batch_size
        Rows computed at once; None is 8 on a CPU, and on a GPU 256, of cohorts 32.
    cache_memory
        Share of the memory left beside the weights that the cache of continuous batching takes;
        None is 0.7 on a GPU and 0.1 on a CPU.
    dtype
        ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the checkpoint's own.
    device
        A torch device; None is ``cuda:0`` where there is one, else ``cpu``. A model cut over
        ranks takes none: each rank has a device of its own.
    attn_implementation
        Passed to transformers: ``eager``, ``sdpa``, ``flash_attention_2`` …
    """

    batching: str = "auto"
    max_batch_size: int | None = None
    cache_memory: float | None = None
    dtype: str = "auto"
    device: str | None = None
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        if self.max_batch_size is not None and self.max_batch_size < 1:
            raise ValueError(f"option max_batch_size is {self.max_batch_size}, below 1")
        if self.cache_memory is not None and not 0 < self.cache_memory < 1:
            raise ValueError(f"option cache_memory is {self.cache_memory}, not between 0 and 1")
        if self.batching not in _BATCHINGS:
            known = ", ".join(_BATCHINGS)
            raise ValueError(f"option batching is {self.batching!r}, not one of {known}")
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


@dataclass(slots=True, eq=False)
class Row:
    """One request on its way. ``answer`` being done, for whatever reason, is the row's end."""

    request: Request
    answer: Future[Completion] = field(default_factory=Future)
    prompt: list[int] = field(default_factory=list)
    room: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[str] = field(default_factory=list)

    def finish(self, completion: Completion) -> None:
        with suppress(InvalidStateError):  # given up at the same moment
            self.answer.set_result(completion)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):  # answered or given up at the same moment
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """What every rank has to know of the rows of one batch. ``room`` is that of the widest."""

    prompts: Sequence[list[int]]
    room: int


@dataclass(slots=True)
class Model:
    """A loaded checkpoint. ``limit`` is the longest sequence it takes, or None."""

    module: Any
    tokenizer: Any
    device: Any
    eos: frozenset[int]
    limit: int | None
    max_batch_size: int
    team: Team
    spell: Speller

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
        tokens = request.tokens
        ids = encode(self.tokenizer, request) if tokens is None else self._given(tokens)
        if not ids:
            raise RowError("empty_prompt", "the prompt has no tokens")
        if self.limit is not None and len(ids) > self.limit - 1:
            message = f"the prompt has {len(ids)} tokens, the model takes {self.limit - 1}"
            raise RowError("prompt_too_long", message)
        return ids

    def _given(self, tokens: Sequence[int]) -> list[int]:
        """Ids that the row itself brings. Those of a tokenizer that does not fit are no row's."""
        size = self.module.config.get_text_config().vocab_size
        if tokens and max(tokens) >= size:
            # On a GPU it would not raise but end the process's use of the device.
            message = f"token id {max(tokens)} is outside the vocabulary of {size}"
            raise RowError("bad_type", message)
        return list(tokens)

    def room(self, row: Row) -> int:
        """New tokens that the row may have."""
        wanted = row.request.sampling.max_tokens
        return wanted if self.limit is None else min(wanted, self.limit - len(row.prompt))

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether the rows can share a batch.

        A row that has ended is computed on until its cohort ends; past the last position, models
        with learned position embeddings fail and scaled rotary ones change their answers.
        """
        width = max(len(row.prompt) for row in rows)
        return self.limit is None or width + max(row.room for row in rows) <= self.limit

    def generate(self, rows: Sequence[Row], count: Callable[[int], None]) -> None:
        """Answer all ``rows``; ``count`` is told of new tokens as they come."""
        cohort = Cohort(
            prompts=[row.prompt for row in rows],
            room=max(row.room for row in rows),
        )
        self.team.share(cohort)
        draws = [Draw.of(row.request.sampling, self.device) for row in rows]
        counts = [row.request.sampling.logprobs for row in rows]
        sampler = ScoredSampler(RowSampler(draws, self.device), counts)
        self._run(cohort, [sampler], RowEnds(self, rows, count, sampler))

    def follow(self) -> None:
        """Be a later rank: do what the first one does in `generate`, until its `end`."""
        while (cohort := self.team.share(None)) is not None:
            self._run(cohort, [], EndsAsTold(self.team))
        self.team.leave()

    def end(self) -> None:
        """Let the other ranks go."""
        self.team.share(None)
        self.team.leave()

    def _run(
        self, cohort: Cohort, samplers: Sequence[ScoredSampler], ends: Callable[..., Any]
    ) -> None:
        """Generate for ``cohort``, on every rank alike, until ``ends`` is true for all rows."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        width = max(map(len, cohort.prompts))
        pads = [width - len(prompt) for prompt in cohort.prompts]
        pad = min(self.eos, default=0)
        agreed = [] if self.team.world == 1 else [TokensAsTold(self.team)]
        self.module.generate(
            input_ids=torch.tensor(
                [[pad] * n + prompt for n, prompt in zip(pads, cohort.prompts, strict=True)],
                device=self.device,
            ),
            attention_mask=torch.tensor(
                [[0] * n + [1] * (width - n) for n in pads], device=self.device
            ),
            generation_config=GenerationConfig(
                max_new_tokens=cohort.room, do_sample=False, pad_token_id=pad
            ),
            logits_processor=LogitsProcessorList([*samplers, *agreed]),
            stopping_criteria=StoppingCriteriaList([ends]),
        )

    def extend(self, row: Row, token: int, scored: Scored | None = None) -> None:
        """Give the row its next token, and its answer if that ends it."""
        row.tokens.append(token)
        if scored is not None:
            if scored.token != token:
                raise RuntimeError(f"token {token} came with the score of {scored.token}")
            row.logprobs.append(entry(self.spell, *scored))
        completion = self._completion(row)
        if completion is not None:
            row.finish(completion)

    def _completion(self, row: Row) -> Completion | None:
        tokens = row.tokens
        if tokens[-1] in self.eos:
            return self._answer(row, self.decode(tokens[:-1]), "stop")
        if (cut := self._stop_at(row)) is not None:
            return self._answer(row, self.decode(tokens)[:cut], "stop")
        if len(tokens) == row.room:
            return self._answer(row, self.decode(tokens), "length")
        return None

    def _answer(self, row: Row, text: str, reason: str) -> Completion:
        return Completion(
            text=text,
            finish_reason=reason,
            prompt_tokens=len(row.prompt),
            completion_tokens=len(row.tokens),
            logprobs=None if row.request.sampling.logprobs is None else listed(row.logprobs),
        )

    def _stop_at(self, row: Row) -> int | None:
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


class ScoredSampler:
    """A sampler of a batch that keeps the log probabilities of what it has just drawn."""

    def __init__(self, sampler: RowSampler, counts: Sequence[int | None]) -> None:
        self._sampler = sampler
        self._counts = counts
        self.scored: Sequence[Scored | None] = [None] * len(counts)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        drawn = self._sampler(input_ids, scores)
        self.scored = score(scores, drawn, self._counts)
        return drawn


class RowEnds:
    """A stopping criterion that ends each row by its own rules and answers it at once.

    Called as ``transformers.StoppingCriteria`` is, after each step (``input_ids`` of shape
    ``(batch, length)``), it gives a boolean per row; the batch ends when all are true
    (``transformers/generation/utils.py``, ``GenerationMixin._sample``).
    """

    def __init__(
        self,
        model: Model,
        rows: Sequence[Row],
        count: Callable[[int], None],
        sampler: ScoredSampler,
    ) -> None:
        self._model = model
        self._rows = rows
        self._count = count
        self._sampler = sampler

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002 - the hook's
        import torch

        tokens, scored = input_ids[:, -1].tolist(), self._sampler.scored
        for row, token, its in zip(self._rows, tokens, scored, strict=True):
            if not row.answer.done():
                self._count(1)
                self._model.extend(row, token, its)
        ended = torch.tensor([row.answer.done() for row in self._rows], device=input_ids.device)
        return self._model.team.agree(ended)


class TokensAsTold:
    """A logits processor that leaves each row the token which the first rank draws.

    Ranks whose logits differ in the last bit, as those of unlike GPUs do, would otherwise come to
    hold different texts, and go on without an error.
    """

    def __init__(self, team: Team) -> None:
        self._team = team

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002 - the hook's signature
        tokens = self._team.agree(scores.argmax(dim=-1, keepdim=True))
        return scores.new_full(scores.shape, float("-inf")).scatter_(1, tokens, 0.0)


class EndsAsTold:
    """The stopping criterion of the ranks that do not decide: what the first one says."""

    def __init__(self, team: Team) -> None:
        self._team = team

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002 - the hook's
        import torch

        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return self._team.agree(ended)


def load(setup: EngineSetup, options: TransformersOptions) -> Model:
    """The model of ``setup.model_path`` on its device."""
    quiet_torch()
    torch = _import("torch")
    quiet_libraries()
    _import("accelerate")
    device = _device(torch, setup, options)
    if device == "cpu":
        torch.set_num_threads(setup.threads)
    path = setup.model_path
    if path is None or not Path(path, "config.json").is_file():
        message = f"there is no checkpoint at {path}: config.json is missing"
        hint = "point model at a directory in the Hugging Face layout"
        raise RunError(Problem("engine.model", message, hint=hint))
    team = Team(setup.rank, setup.cut.ranks, setup.meeting, device)
    try:
        return _read(path, device, options, team)
    except Exception as exc:
        message = f"cannot load {path} on {device}: {first_line(exc)}"
        raise RunError(Problem("engine.model", message)) from exc


def _device(torch: Any, setup: EngineSetup, options: TransformersOptions) -> str:
    """The device of this rank: its own of the GPUs that the replica's ranks on the node see."""
    if options.device is not None and setup.cut.ranks > 1:
        message = (
            f"option device is {options.device!r}, and {setup.cut.ranks} ranks cannot share it"
        )
        hint = "leave device out: each rank takes a GPU of its node, or the CPU if there is none"
        raise RunError(Problem("engine.options", message, hint=hint))
    if options.device is not None:
        return options.device
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{setup.rank % torch.cuda.device_count()}"


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        message = f"the transformers engine cannot import {name}: {first_line(exc)}"
        hint = "install a CPU or CUDA build of torch, then run pip install 'hpc-llm[local]'"
        raise RunError(Problem("engine.import", message, hint=hint)) from exc


def _read(path: str, device: str, options: TransformersOptions, team: Team) -> Model:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    module = AutoModelForCausalLM.from_pretrained(
        path,
        local_files_only=True,
        dtype=options.dtype if options.dtype == "auto" else getattr(torch, options.dtype),
        attn_implementation=options.attn_implementation,
        **_placement(device, team),
    ).eval()
    eos = _eos(module.generation_config.eos_token_id) or _eos(tokenizer.eos_token_id)
    # The checkpoint's own defaults (temperature, repetition_penalty …) would fill every value
    # that `generate` is not given: the job's sampling is all there is.
    module.generation_config = GenerationConfig()
    on_cpu = torch.device(device).type == "cpu"
    return Model(
        module=module,
        tokenizer=tokenizer,
        device=module.device,
        eos=eos,
        limit=getattr(module.config.get_text_config(), "max_position_embeddings", None),
        max_batch_size=options.max_batch_size or (_BATCH_ON_CPU if on_cpu else _BATCH_ON_GPU),
        team=team,
        spell=speller(tokenizer),
    )


def _placement(device: str, team: Team) -> dict[str, Any]:
    """Where the weights go: on one device, or cut over the team's by the model's own plan."""
    if team.world == 1:
        return {"device_map": {"": device}}
    from transformers.distributed import DistributedConfig

    # The rank's device is bound by this variable (transformers, ``distributed/utils.py``).
    os.environ["LOCAL_RANK"] = device.rpartition(":")[2] if ":" in device else "0"
    return {"distributed_config": DistributedConfig(tp_size=team.world)}


def _eos(ids: int | list[int] | None) -> frozenset[int]:
    return frozenset([ids] if isinstance(ids, int) else ids or ())
