"""Whether the GPUs of a replica hold a model that is cut as the job file says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from launcher.errors import Problem
from launcher.models.shapes import ModelShape
from launcher.plan.engine_memory import ENGINES, EngineMemory, cuda_bytes, engine_memory
from launcher.plan.memory import Fit, StageMemory, fit
from launcher.plan.types import Cut
from launcher.units import format_bytes

__all__ = ["check_memory", "uncounted"]

# Options that change what is loaded, or where to, in ways that are not counted here.
_CHANGING = frozenset(
    {
        *("context_parallel_size", "cp_config", "decode_context_parallel_size"),
        *("cpu_offload_gb", "cpu_offload_params", "offload_backend", "offload_params"),
        *("quantization", "quantization_config", "force_dynamic_quantization"),
        *("hf_overrides", "model_kwargs", "num_gpu_blocks_override"),
    }
)
# Of a GPU, or of what is free of it: those that leave a cache worth having.
_SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)


def check_memory(  # noqa: PLR0913 - one call, with names
    shape: ModelShape | None,
    cut: Cut,
    engine: str,
    options: Mapping[str, Any],
    *,
    gpu_model: str,
    gpu_bytes: int | None,
    prompt: int = 0,
    output: int = 0,
    env: Mapping[str, str] | None = None,
) -> Iterator[Problem]:
    """``plan.gpu-memory``: an error where it cannot fit, a warning where it may not.

    Nothing is said of a model whose sizes are not known, nor of a GPU whose memory the site file
    does not tell.

    Parameters
    ----------
    cut
        One that `launcher.plan.checks.check_cut` has nothing against.
    gpu_bytes
        As the site file has it.
    prompt, output
        Tokens that one row may have and get.
    """
    if shape is None or gpu_bytes is None or engine not in ENGINES or uncounted(options):
        return
    there = cuda_bytes(gpu_model, gpu_bytes)
    memory = engine_memory(engine, shape, options, gpu_bytes=there, gpu_model=gpu_model, env=env)
    found = fit(shape, cut, memory, there, prompt=prompt, output=output)
    if found is None or found.fits:
        return
    message = _message(shape, cut, found)
    hint = _hint(shape, cut, memory, there, (prompt, output))
    yield Problem(
        "plan.gpu-memory", message, hint=hint, severity="warning" if found.may_fit else "error"
    )


def uncounted(options: Mapping[str, Any]) -> list[str]:
    """Those of ``options`` that change what is loaded in ways that are not counted."""
    return sorted(_CHANGING & set(options))


def _message(shape: ModelShape, cut: Cut, found: Fit) -> str:
    tokens = max(found.longest, 1)

    def room(stage: StageMemory) -> int:
        return stage.free + stage.kv_bytes - stage.longest_bytes(tokens)

    stage = min(found.stages, key=room)
    beside = stage.activations + stage.graphs + stage.reserve + stage.outside
    return (
        f"{shape.name} {'may' if found.may_fit else 'does'} not fit: of {cut.ranks} "
        f"GPU{'s'[: cut.ranks != 1]} with {format_bytes(stage.capacity)} one takes "
        f"{format_bytes(stage.weights)} of weights and about {format_bytes(beside)} beside them, "
        f"and a sequence of {tokens} tokens {format_bytes(stage.longest_bytes(tokens))} of KV "
        "cache"
    )


def _hint(
    shape: ModelShape, cut: Cut, engine: EngineMemory, gpu_bytes: int, row: tuple[int, int]
) -> str:
    def fits(cut: Cut, engine: EngineMemory) -> bool:
        found = fit(shape, cut, engine, gpu_bytes, prompt=row[0], output=row[1])
        return found is not None and found.fits

    if fits(cut, replace(engine, whole_length=False)):
        return "set engine_options.max_model_len to the longest row that there is"
    stages = range(cut.pp + 1, shape.layers + 1)
    ranks = next((cut.tp * pp for pp in stages if fits(replace(cut, pp=pp), engine)), None)
    shares = (share for share in _SHARES if share < engine.fraction)
    share = next((s for s in shares if fits(cut, replace(engine, fraction=s))), None)
    ways = [
        ranks and f"raise parallelism.tp or pp to {ranks} ranks or more",
        share and f"lower engine_options.{_share_name(engine)} to {share}",
    ]
    told = ", or ".join(way for way in ways if way)
    return told or "use GPUs with more memory, or a quantised checkpoint"


def _share_name(engine: EngineMemory) -> str:
    if engine.of_free:
        return "kv_cache_config.free_gpu_memory_fraction"
    return "gpu_memory_utilization"
