"""Starting TensorRT-LLM: its environment, its arguments, and what stops it, in words for the user.

The only module that imports TensorRT-LLM. Facts are those of NVIDIA/TensorRT-LLM 1.0.0, 1.1.0,
1.2.1 and of the 1.3 line, by file.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.engines.base import EngineSetup
from launcher.engines.overheard import Overheard
from launcher.engines.tensorrt_llm_causes import deepest
from launcher.engines.tensorrt_llm_marks import FIGURES, PHASES, figure, phase_after, plain
from launcher.engines.wording import condensed, said
from launcher.errors import Problem, RunError
from launcher.plan.trtllm_options import OWNED, complaints

__all__ = ["Started", "start"]

# What a batch run wants, where the user has not said otherwise.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRTLLM_NO_USAGE_STATS": "1",  # from 1.3 on
    # logger.py leaves out landmarks and figures otherwise.
    "TLLM_LOG_LEVEL": "INFO",
}
# executor/utils.py and mpi_session.py: who finds these looks for the leader of several ranks.
_OF_A_LEADER = (
    "TLLM_SPAWN_PROXY_PROCESS",
    "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR",
    "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY",
    "tllm_mpi_size",
)
# A line that a leader has printed before its engine was ready is known to the runner by then.
HEARD_S, _LOOK_S = 2.0, 0.05
# What llm.py logs before it raises anything that is wrong with the arguments.
_REFUSED = "Failed to parse the arguments for the LLM constructor"
_ARGS = "tensorrt_llm.llmapi.llm_args"
# Arguments that are one of several classes, and what these have in common.
_MADE = {
    "speculative_config": "DecodingBaseConfig",
    "sparse_attention_config": "BaseSparseAttentionConfig",
}
_INSTALL = "install tensorrt_llm there, or set runtime.image, runtime.venv or runtime.modules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A started engine and what the adapter uses of the installed TensorRT-LLM.

    Attributes
    ----------
    llm
        The ``LLM``.
    version
        ``tensorrt_llm.__version__``.
    tokenizer
        The Hugging Face tokenizer; None under ``skip_tokenizer_init``.
    params
        Makes sampling parameters.
    refused
        What it raises for one request that it will not take, or fails on: the engine goes on.
    max_seq_len, vocabulary
        Tokens of a sequence, and token ids; None where nobody tells.
    max_batch_size
        Sequences of a step, of all ranks together.
    kv_tokens
        What the KV cache holds, where this process is told.
    """

    llm: Any
    version: str
    tokenizer: Any
    params: Callable[..., Any]
    refused: type[Exception]
    max_seq_len: int | None
    max_batch_size: int
    vocabulary: int | None
    kv_tokens: int | None


def start(setup: EngineSetup, overheard: Overheard) -> Started:
    """Start an ``LLM`` on the ranks that are there; takes minutes, in a thread of its own.

    Raises
    ------
    RunError
        ``engine.import``, ``engine.options``, ``engine.model``, ``run.world-mismatch``, and what
        its output tells (`launcher.engines.tensorrt_llm_causes`).
    """
    # Slurm signals every process of a step, and to those of TensorRT-LLM a warning would be death:
    # USR1 stays blocked in all that this thread starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    arguments = _read(setup.arguments)
    config = _config(arguments["model"])
    _prepare_environment(setup.cut.ranks)
    library = _import("tensorrt_llm")
    version = str(library.__version__)
    _check_names(arguments, version)
    given = _for_this_version(arguments)
    try:
        llm = library.LLM(**given)
    except Exception as exc:
        raise RunError(_failure(overheard.settled(), exc, version)) from exc
    several = setup.cut.ranks > 1
    figures = _figures_of_leader() if several else _figures(overheard.lines())
    return _started(llm, library, given, config, figures)


def _read(path: Path | None) -> dict[str, Any]:
    """The engine file; it was written with the plan."""
    if path is None:
        message = "the engine tensorrt-llm was given no file of arguments"
        raise RunError(Problem("engine.options", message, hint="submit the job anew"))
    try:
        arguments: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        message = f"cannot read {path}: {said(exc)}"
        raise RunError(Problem("engine.options", message, hint="submit the job anew")) from exc
    return arguments


def _config(model: str) -> dict[str, Any]:
    """``config.json`` of the checkpoint, of models that see its part about text."""
    path = Path(model, "config.json")
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        message = f"there is no checkpoint at {model}: {said(exc)}"
        hint = "point model at a directory in the Hugging Face layout"
        raise RunError(Problem("engine.model", message, hint=hint)) from exc
    return {**config, **(config.get("text_config") or {})}


def _prepare_environment(ranks: int) -> None:
    """One rank works in this process, several under a leader that the step has started.

    Otherwise TensorRT-LLM would spawn its ranks by MPI (executor/executor.py, ``create``: also a
    single one, unless ``TLLM_WORKER_USE_SINGLE_PROCESS`` is 1), which no step of Slurm allows.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ranks == 1:
        os.environ["TLLM_WORKER_USE_SINGLE_PROCESS"] = "1"
        for name in _OF_A_LEADER:
            os.environ.pop(name, None)
    elif os.environ.get("TLLM_SPAWN_PROXY_PROCESS") != "1":
        message = f"the engine has {ranks} ranks, and this process was told of no leader of them"
        hint = "start script.sh as it was rendered"
        raise RunError(Problem("run.world-mismatch", message, hint=hint))


def _check_names(arguments: Mapping[str, Any], version: str) -> None:
    fields = _import(_ARGS).TorchLlmArgs.model_fields
    chosen = {name: value for name, value in arguments.items() if name not in OWNED}
    found = complaints(chosen, fields, f"TensorRT-LLM {version}")
    if found:
        raise RunError(Problem("engine.options", c.message, hint=c.hint) for c in found)


def _for_this_version(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` with what one version needs and others do not know.

    The sampler that 1.0 takes by itself knows one strategy for all requests (llm_args.py,
    ``enable_mixed_sampler``); the other one has all of them, and takes each request's seed.

    Up to 1.2 a constructor takes some configurations as objects only, which the loader of YAML
    files for ``trtllm-serve`` makes by ``from_dict``.
    """
    library = _import(_ARGS)
    found = dict(arguments)
    samplers = {"enable_trtllm_sampler", "enable_mixed_sampler"}
    if samplers <= library.TorchLlmArgs.model_fields.keys() and not samplers & found.keys():
        found["enable_trtllm_sampler"] = True
    for name, base in _MADE.items():
        make = getattr(getattr(library, base, None), "from_dict", None)
        if make is not None and isinstance(found.get(name), dict):
            try:
                found[name] = make(found[name])
            except Exception as exc:
                message = f"TensorRT-LLM refuses {name}: {condensed(exc)}"
                hint = "correct engine_options in the job file"
                raise RunError(Problem("engine.options", message, hint=hint)) from exc
    return found


def _failure(lines: Sequence[str], exc: Exception, version: str) -> Problem:
    if any(_REFUSED in line for line in lines):
        hint = "correct engine_options, or use a checkpoint that this version supports"
        message = f"TensorRT-LLM {version} refuses: {condensed(exc)}"
        return Problem("engine.options", message, hint=hint)
    found = deepest(lines)
    if found is not None:
        return Problem(found.code, found.message, hint=found.hint)
    message = f"TensorRT-LLM {version} could not start: {said(exc)}"
    return Problem("engine.model", message, hint="see the step's log")


def _started(
    llm: Any,
    library: Any,
    arguments: Mapping[str, Any],
    config: Mapping[str, Any],
    figures: Mapping[str, int],
) -> Started:
    wanted = arguments.get("max_seq_len") or config.get("max_position_embeddings")
    lengths = [n for n in (wanted, figures.get("max_seq_len")) if n is not None]
    own = getattr(llm, "tokenizer", None)
    # Requests are spread over the ranks of a TP group whose attention is not cut.
    groups = arguments["tensor_parallel_size"] if arguments.get("enable_attention_dp") else 1
    return Started(
        llm=llm,
        version=str(library.__version__),
        tokenizer=getattr(own, "tokenizer", own),
        params=_params(library.SamplingParams, own, config),
        refused=_request_error(),
        max_seq_len=min(lengths, default=None),
        max_batch_size=arguments["max_batch_size"] * groups,
        vocabulary=config.get("vocab_size"),
        kv_tokens=figures.get("kv_tokens"),
    )


def _figures(lines: Iterable[str]) -> dict[str, int]:
    """What the log says of the real KV cache, not of the small one that is tried before it."""
    phase, found = PHASES[0], dict[str, int]()
    for text in map(plain, lines):
        before, phase = phase, phase_after(phase, text)
        if phase == "kv" != before:
            found.clear()
        if told := figure(text):
            found[told[0]] = told[1]
    return found


def _figures_of_leader() -> dict[str, int]:
    """The same of several ranks, as `launcher.runner.leader` has heard it by now, or soon will."""
    path = os.environ.get(FIGURES)
    given_up_s = time.monotonic() + HEARD_S
    while path is not None and time.monotonic() < given_up_s:
        with suppress(OSError, ValueError):  # there is none yet
            found: dict[str, int] = json.loads(Path(path).read_bytes())
            if "kv_tokens" in found:  # the last of them
                return found
        time.sleep(_LOOK_S)
    return {}


def _params(make: Callable[..., Any], tokenizer: Any, config: Mapping[str, Any]) -> Any:
    """``SamplingParams``; without a tokenizer they have to say themselves what ends an answer."""
    if tokenizer is not None:
        return make
    ends = config.get("eos_token_id")
    ids = [ends] if isinstance(ends, int) else list(ends or ())
    # -1 is no token (bench/benchmark/throughput.py has it for answers that nothing ends).
    first, *others = ids or [-1]
    return functools.partial(
        make, end_id=first, pad_id=first, stop_token_ids=others or None, detokenize=False
    )


def _request_error() -> type[Exception]:
    """Of ``llmapi/__init__.py`` since 1.0; defined in ``executor/utils.py``."""
    found = getattr(_import("tensorrt_llm.llmapi"), "RequestError", None)
    error: type[Exception] = found or _import("tensorrt_llm.executor.utils").RequestError
    return error


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as exc:  # a library for another machine raises what it likes
        missing = isinstance(exc, ModuleNotFoundError) and exc.name == "tensorrt_llm"
        hint = _INSTALL if missing else "use NVIDIA's image of the release, which has all it needs"
        message = f"the tensorrt-llm engine cannot import {name}: {said(exc)}"
        raise RunError(Problem("engine.import", message, hint=hint)) from exc
