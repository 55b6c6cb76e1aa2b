"""The job file: which model, over which data, cut how, on how much of which machine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from launcher.spec.leaves import (
    EnvName,
    Fraction,
    Name,
    NonNegative,
    Option,
    Positive,
    Seconds,
    Text,
)

__all__ = [
    "EngineName",
    "Input",
    "JobSpec",
    "Limits",
    "Message",
    "Output",
    "Parallelism",
    "Resources",
    "Runtime",
    "SamplingSpec",
]

EngineName = Literal["tensorrt-llm", "vllm", "transformers", "echo"]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a chat prompt; ``content`` is a template over the row."""

    role: Literal["system", "user", "assistant"]
    content: str


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The data set and how a row of it becomes a prompt.

    Attributes
    ----------
    path
        A file, directory or glob, or a list of them, relative to the job file.
    prompt, messages
        A sandboxed Jinja2 template over the row's fields, as one text or as chat turns. With
        neither, a row brings its own ``prompt``, ``messages`` or OpenAI ``body``.
    chat
        Whether the model's chat template is applied. ``false`` sends the bare prompt.
    newlines
        Whether fields of CSV files may hold line breaks. ``false`` promises that they do not:
        then a large file can be entered anywhere.
    too_long
        What becomes of a prompt that is longer than the model takes: an ``error``, or it is cut
        at its beginning or end, chat template included; the row says by how many tokens.
    order
        Which rows go first: ``auto`` those with the longest answers, as far as that is learned;
        ``input`` as they come; ``random``. It changes no answer, nor the order of the output.
    """

    path: Text | list[Text]
    prompt: Text | None = None
    messages: list[Message] | None = None
    chat: bool = True
    newlines: bool = True
    too_long: Literal["error", "truncate-left", "truncate-right"] = "error"
    order: Literal["auto", "input", "random"] = "auto"


class SamplingSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn. An OpenAI batch line may override these for its row.

    Attributes
    ----------
    max_tokens
        Upper bound of new tokens for each row.
    temperature
        0 is greedy.
    top_k
        Keep the k likeliest tokens; 0 keeps all.
    seed
        Seed of the run; each row draws from its own seed derived from this one and its place
        in the input, so that a row answered again after a crash gives the same text.
    logprobs
        Output rows tell the log probability of each new token, and of so many of the likeliest
        tokens in its place; 0 tells that of the new token alone.
    """

    max_tokens: Positive = 512
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: NonNegative = 0
    seed: NonNegative = 0
    stop: list[Text] = []
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class Parallelism(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one replica is cut over GPUs; it spans ``tp * pp`` ranks.

    Attributes
    ----------
    tp, pp
        Tensor- and pipeline-parallel sizes.
    ep
        Expert-parallel size of a mixture-of-experts model. It divides ``tp``.
    """

    tp: Positive = 1
    pp: Positive = 1
    ep: Positive = 1


class Output(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the run lives.

    Attributes
    ----------
    path
        The run directory, relative to the job file.
    keep
        Which fields of an input row its output row repeats: ``all``, ``none`` or their names.
    """

    path: Text
    keep: Literal["all", "none"] | list[Text] = "none"


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of the scheduler.

    Attributes
    ----------
    at_once
        Allocations that may run at the same time; all of them unless stated, or as many as the
        site lets one user run.
    constraint
        Features that the nodes have to have, as ``--constraint`` takes them, in place of the
        site's.
    exclude
        Nodes to do without, as a list of host names in Slurm's form.
    sbatch
        More options for Slurm, such as ``--mail-type=END``. One that the plan would give too,
        as ``--mem=200G``, has the last word.
    """

    partition: Text | None = None
    time: Seconds | None = None
    account: Text | None = None
    qos: Text | None = None
    reservation: Text | None = None
    gpus_per_node: Positive | None = None
    at_once: Positive | None = None
    constraint: Text | None = None
    exclude: Text | None = None
    sbatch: list[Option] = []


class Runtime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine runs in: a container image, or a virtual environment and modules."""

    image: Text | None = None
    mounts: list[Text] = []
    venv: Text | None = None
    modules: list[Text] = []
    python: Text | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a run gives up or leaves.

    Attributes
    ----------
    max_bad_fraction
        Share of error rows above which the run counts as failed (exit code 8).
    warn_before
        How long before the time limit the job starts to leave.
    attempts
        How often one job may be restarted: 20 times where it requeues itself. Where the site's
        jobs are a chain, the length of the chain, 4.
    engine_restarts
        How often an engine that dies is started again inside its job, where it is one process.
    preflight
        What is checked of the nodes of a replica over several: all that they tell of themselves
        (``quick``), or their links too where the site says how fast these are (``full``).
    """

    preflight: Literal["quick", "full"] = "full"
    max_bad_fraction: Fraction = 0.01
    engine_restarts: NonNegative = 8
    warn_before: Seconds = Seconds(300)
    attempts: Positive | None = None


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole job file.

    Attributes
    ----------
    parallelism, replicas
        ``auto`` computes them: the cut with the most output tokens a second for each GPU, of those
        that provably fit, and as many replicas as end in time. Sizes left out of a stated cut
        are 1.
    """

    schema: Literal[1] = 1
    name: Name
    engine: EngineName = "tensorrt-llm"
    model: Text
    input: Input
    sampling: SamplingSpec = SamplingSpec()
    parallelism: Parallelism | Literal["auto"] = "auto"
    replicas: Positive | Literal["auto"] = "auto"
    output: Output
    resources: Resources = Resources()
    runtime: Runtime = Runtime()
    limits: Limits = Limits()
    engine_options: dict[str, Any] = {}
    env: dict[EnvName, str] = {}
    allow: list[Literal["tp-over-fabric", "mixed-nodes", "unlisted-qos", "tcp-fallback"]] = []
