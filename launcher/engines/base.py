"""What the runner asks of any engine, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from launcher.plan.types import Cut, Sampling

__all__ = ["Capabilities", "Completion", "Engine", "EngineSetup", "Request", "window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """What an engine is built from.

    Attributes
    ----------
    model_path
        Directory of the checkpoint; None for engines that need none.
    options
        The job's ``engine_options``, as written.
    threads
        CPU threads this rank may use: its share of the cores it may run on.
    rank
        Which of the ``tasks`` this process is: a rank of the cut, or the start of a node's ranks.
    tasks
        Processes that the replica's step has, each with ``cut.ranks / tasks`` ranks.
    meeting
        File by which the ranks find each other, written by the first; None where there is one.
        It holds ``null`` when the first rank has left without needing the others.
    arguments
        File with every argument of an engine that is given them so: those of the plan and
        ``options`` over what a batch run wants.
    """

    model_path: str | None
    cut: Cut
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    rank: int = 0
    tasks: int = 1
    meeting: Path | None = None
    arguments: Path | None = None


class Request(NamedTuple):
    """One row as the engine gets it: one of ``text``, ``messages`` and ``tokens`` is set.

    ``messages`` go through the model's chat template; ``text`` and token ids are sent as they are.
    """

    id: str
    sampling: Sampling
    text: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    tokens: Sequence[int] | None = None


class Completion(NamedTuple):
    """The answer to one request. ``finish_reason`` is ``stop`` or ``length``.

    ``logprobs``, where asked for, is a JSON list with one entry for each new token, also for those
    of which the text shows nothing, as `launcher.engines.logprobs` writes it.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a started engine can do.

    Attributes
    ----------
    max_in_flight
        Requests worth handing over at once: enough to keep it busy, no more. Of one that
        ``queues``, as many as it runs.
    chat_template
        Whether it can turn ``messages`` into a prompt.
    max_seq_len
        Prompt and new tokens together, or None where there is no limit.
    queues
        Whether it takes more than ``max_in_flight``, lets the rest wait, and says so in its
        figures (``running``, ``queued``).
    kv_tokens
        Tokens that its KV cache holds, where it tells.
    version
        Of the library that computes, where it has one.
    replaceable
        Whether this process can start another one once it has died.
    """

    max_in_flight: int
    chat_template: bool
    max_seq_len: int | None = None
    queues: bool = False
    kv_tokens: int | None = None
    version: str | None = None
    replaceable: bool = True


def window(rows: int) -> int:
    """``max_in_flight`` of an engine that runs ``rows`` at once, and another one when one ends.

    A full step, and enough waiting to fill the next ones.
    """
    return rows + max(32, rows // 4)


class Engine(Protocol):
    """One replica of a model.

    `generate` may be called up to ``capabilities.max_in_flight`` times at once, and more often if
    it ``queues``. It raises `launcher.errors.RowError` when this one row cannot be answered, and
    `launcher.errors.RunError` when the engine is dead: nothing more will come from it.
    """

    async def start(self) -> Capabilities: ...

    async def generate(self, request: Request) -> Completion: ...

    async def abort(self, request_id: str) -> None:
        """Give up a request; its `generate` raises `RowError` with code ``cancelled``."""

    def stats(self) -> Mapping[str, float]:
        """How it stands; each figure may be missing.

        ``running`` and ``queued`` requests; ``kv_cache_usage``, 0 to 1; ``iterations`` and
        ``generated_tokens`` since it started, of which only those may be there that grow while
        an answer is made: when they stand still for minutes, the engine is taken for dead.
        """

    async def close(self) -> None: ...
