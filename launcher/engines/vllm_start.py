"""Starting vLLM: its environment, its arguments, and what stops it, in words for the user.

The only module that imports vLLM. Facts are those of vLLM 0.20, 0.24 and 0.33, by file.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.engines.base import EngineSetup
from launcher.engines.overheard import Overheard
from launcher.engines.vllm_causes import start_failure
from launcher.engines.wording import condensed, said
from launcher.errors import Problem, RunError
from launcher.plan.vllm_options import complaints

__all__ = ["Started", "check_owned", "start", "start_workers"]

# What a batch run wants, where the user has not said otherwise.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # This process has threads, and signal handlers that a forked one would keep.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Weights of hundreds of GB take longer than the ten minutes that are vLLM's default
    # (vllm/v1/engine/core_client.py, MPClient).
    "VLLM_ENGINE_READY_TIMEOUT_S": "3600",
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "tekken.json",
    "vocab.json",
)
_INSTALL = "install vllm there, or set runtime.venv, runtime.image or runtime.modules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A started engine and what the adapter uses of the installed vLLM.

    Attributes
    ----------
    llm
        The ``AsyncLLM``.
    tokenizer
        None under ``skip_tokenizer_init``.
    params, tokens_input
        Make sampling parameters, and a prompt of token ids. The latter is what vLLM's own
        tokenisation ends in; raw prompts are tokenised on the event loop and deprecated
        (vllm/v1/engine/input_processor.py, ``process_inputs``).
    refusals
        What vLLM raises for a request that it will not take. Up to 0.24 that is `ValueError`
        and its kin; in 0.33 ``VLLMClientError``, which is none.
    kv_tokens
        What the KV cache holds, where vLLM has counted it (0.24, ``vllm/config/cache.py``).
    max_seq_len, max_num_seqs, vocabulary
        Tokens of a sequence, sequences of a step, token ids.
    """

    llm: Any
    tokenizer: Any
    params: Callable[..., Any]
    tokens_input: Callable[[list[int]], Any]
    refusals: tuple[type[Exception], ...]
    max_seq_len: int
    max_num_seqs: int
    vocabulary: int
    kv_tokens: int | None


def check_owned(options: Mapping[str, Any]) -> None:
    """Refuse options that the plan decides.

    Raises
    ------
    RunError
        ``engine.options``.
    """
    _refuse(options, options, "vLLM")


def start(
    setup: EngineSetup,
    overheard: Overheard,
    record: Callable[..., None],
    node: Mapping[str, Any] | None = None,
) -> Started:
    """Start an ``AsyncLLM`` and all its processes; takes minutes, in a thread of its own.

    Parameters
    ----------
    node
        Arguments that say which of several nodes this is, and where they meet.
    record
        Called after each iteration with vLLM's ``SchedulerStats`` and ``IterationStats``,
        either of which may be None.

    Raises
    ------
    RunError
        ``engine.import``, ``engine.options``, ``engine.model``, ``engine.no-memory``,
        ``gpu.in-use``, ``gpu.failed``.
    """
    given, config, context = _configured(setup, node or {}, headless=False)
    try:
        llm = _import("vllm.v1.engine.async_llm").AsyncLLM.from_vllm_config(
            config,
            usage_context=context,
            stat_loggers=[_statistics(record)],
            enable_log_requests=given.enable_log_requests,
            disable_log_stats=given.disable_log_stats,
        )
        return _started(llm)
    except Exception as exc:
        raise RunError(start_failure(overheard.settled(), exc)) from exc


def start_workers(setup: EngineSetup, overheard: Overheard, node: Mapping[str, Any]) -> Any:
    """Start the workers of a node after the first: an executor to be monitored, and no engine.

    As ``vllm serve --headless`` does (vllm/entrypoints/cli/serve.py, ``run_headless``). The
    executor begins with rank ``local_world_size * node_rank``
    (vllm/v1/executor/multiproc_executor.py, ``_init_executor``), and PP is outside of TP
    (vllm/distributed/parallel_state.py, ``initialize_model_parallel``), as in the plan.

    Raises
    ------
    RunError
        As `start`.
    """
    _, config, _ = _configured(setup, node, headless=True)
    try:
        executor = _import("vllm.v1.executor.multiproc_executor").MultiprocExecutor
        return executor(config, monitor_workers=False)
    except Exception as exc:
        raise RunError(start_failure(overheard.settled(), exc)) from exc


def _configured(
    setup: EngineSetup, node: Mapping[str, Any], *, headless: bool
) -> tuple[Any, Any, Any]:
    """``AsyncEngineArgs``, vLLM's configuration of them, and its usage context."""
    # Slurm signals every process of a step, and to those of vLLM a warning would be death:
    # USR1 stays blocked in all that this thread starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    arguments = _import("vllm.engine.arg_utils").AsyncEngineArgs
    version = _import("vllm").__version__
    known = {f.name for f in dataclasses.fields(arguments) if not f.name.startswith("_")}
    _refuse(setup.options, known, f"vLLM {version}")
    _check_device(version)
    context = _import("vllm.usage.usage_lib").UsageContext.LLM_CLASS
    try:
        given = arguments(**_arguments(setup), **node)
        # The context decides how many sequences share a step: 1024 on a large GPU, and 128 in
        # the one that AsyncLLM takes by itself (vllm/engine/arg_utils.py, get_batch_defaults).
        config = given.create_engine_config(usage_context=context, headless=headless)
    except Exception as exc:
        raise RunError(_refused_config(exc)) from exc
    return given, config, context


def _started(llm: Any) -> Started:
    sampling, exceptions = _import("vllm.sampling_params"), _import("vllm.exceptions")
    refused = getattr(exceptions, "VLLMClientError", exceptions.VLLMValidationError)
    model = llm.vllm_config.model_config  # as the engine's processes have corrected it
    return Started(
        llm=llm,
        tokenizer=None if model.skip_tokenizer_init else llm.get_tokenizer(),
        params=functools.partial(
            sampling.SamplingParams, output_kind=sampling.RequestOutputKind.FINAL_ONLY
        ),
        tokens_input=_import("vllm.inputs").tokens_input,
        refusals=(ValueError, refused),
        max_seq_len=model.max_model_len,
        max_num_seqs=llm.vllm_config.scheduler_config.max_num_seqs,
        vocabulary=model.get_vocab_size(),
        kv_tokens=getattr(llm.vllm_config.cache_config, "kv_cache_size_tokens", None),
    )


def _arguments(setup: EngineSetup) -> dict[str, Any]:
    """``AsyncEngineArgs`` of the plan, under what the user asks for."""
    path, cut = setup.model_path, setup.cut
    if path is None or not Path(path, "config.json").is_file():
        message = f"there is no checkpoint at {path}: config.json is missing"
        hint = "point model at a directory in the Hugging Face layout"
        raise RunError(Problem("engine.model", message, hint=hint))
    # Random weights are for measuring, and then a tokenizer is not missed.
    dummy = setup.options.get("load_format") == "dummy" and "tokenizer" not in setup.options
    bare = dummy and not any(Path(path, name).exists() for name in _TOKENIZER_FILES)
    return {
        "disable_log_stats": True,  # vLLM's own lines of statistics: the runner has its own
        "skip_tokenizer_init": bare,
        **setup.options,
        "model": path,
        "tensor_parallel_size": cut.tp,
        "pipeline_parallel_size": cut.pp,
        "enable_expert_parallel": cut.ep > 1,
        "distributed_executor_backend": "mp" if cut.ranks > 1 else None,
    }


def _statistics(record: Callable[..., None]) -> type[Any]:
    """A class of which vLLM makes one object, to tell it how each iteration went."""
    logger = _import("vllm.v1.metrics.loggers").PrometheusStatLogger

    # Of this class because vLLM adds one that observes the latency of each token unless it is
    # given one (vllm/v1/metrics/loggers.py, StatLoggerManager).
    class Statistics(logger):  # type: ignore[misc, valid-type]
        def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
            pass  # nothing is to be registered

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,  # noqa: ARG002 - the interface
            engine_idx: int = 0,  # noqa: ARG002 - as before
        ) -> None:
            record(scheduler_stats, iteration_stats)

        def log(self) -> None:
            pass

        def log_engine_initialized(self) -> None:
            pass

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            pass

    return Statistics


def _refuse(options: Mapping[str, Any], known: Any, where: str) -> None:
    found = complaints(options, known, where)
    if found:
        raise RunError(Problem("engine.options", c.message, hint=c.hint) for c in found)


def _check_device(version: str) -> None:
    """Whether this vLLM has the GPU that the plan gave it."""
    platform = _import("vllm.platforms").current_platform
    if not (platform.is_cuda_alike() or platform.is_xpu()):
        kind = platform.device_type or "no device"
        message = f"vLLM {version} sees {kind} here, and no GPU"
        hint = (
            "install a build of vllm for this GPU, and look whether nvidia-smi works in the job "
            "(an apptainer image needs --nv)"
        )
        raise RunError(Problem("engine.import", message, hint=hint))


def _refused_config(exc: Exception) -> Problem:
    if isinstance(exc, RunError):
        return exc.problems[0]
    hint = "correct engine_options, or use a checkpoint that this vLLM supports"
    return Problem("engine.options", f"vLLM refuses: {condensed(exc)}", hint=hint)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as exc:  # a library of another torch raises what it likes
        missing = isinstance(exc, ModuleNotFoundError) and exc.name == "vllm"
        hint = _INSTALL if missing else "install vllm and torch together, as pip resolves them"
        message = f"the vllm engine cannot import {name}: {said(exc)}"
        raise RunError(Problem("engine.import", message, hint=hint)) from exc
