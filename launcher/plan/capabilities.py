"""What each engine can do, as far as a plan needs to know before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.plan.types import Layout, StepKind

__all__ = ["ENGINES", "EngineFacts", "step_kind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """Facts about one engine.

    Attributes
    ----------
    needs_gpu, needs_model
        Whether it runs on GPUs only, and whether it reads a checkpoint.
    cuts
        The sizes of a cut it supports above 1, of ``tp``, ``pp`` and ``ep``.
    several_ranks
        The step kind of a replica of several ranks; one rank is always *single*. None when
        one process starts the workers of its node: *single* on one node, *per-node* over more.
    missing
        Why a cut outside ``cuts`` is refused, in words for the user.
    ep_is_tp
        Whether experts are spread over the whole TP group or not at all.
    """

    needs_gpu: bool
    needs_model: bool
    cuts: frozenset[str]
    several_ranks: StepKind | None
    missing: str = ""
    ep_is_tp: bool = False


ENGINES: Mapping[str, EngineFacts] = {
    "tensorrt-llm": EngineFacts(
        needs_gpu=True,
        needs_model=True,
        cuts=frozenset({"tp", "pp", "ep"}),
        several_ranks="leader",
    ),
    "vllm": EngineFacts(
        needs_gpu=True,
        needs_model=True,
        cuts=frozenset({"tp", "pp", "ep"}),
        several_ranks=None,
        # vllm/model_executor/layers/fused_moe/config.py, FusedMoEParallelConfig.make: under
        # enable_expert_parallel every rank owns whole experts, so ep_size is tp_size.
        ep_is_tp=True,
    ),
    "transformers": EngineFacts(
        needs_gpu=False,
        needs_model=True,
        cuts=frozenset({"tp"}),
        several_ranks="spmd",
        missing="it has no pipeline or expert parallelism for generation",
    ),
    "echo": EngineFacts(
        needs_gpu=False,
        needs_model=False,
        cuts=frozenset({"tp", "pp", "ep"}),
        several_ranks="spmd",
    ),
}


def step_kind(engine: str, layout: Layout) -> StepKind:
    """How a replica of ``engine`` is started."""
    facts = ENGINES[engine]
    if facts.several_ranks is None:
        return "per-node" if layout.allocation.nodes > 1 else "single"
    return facts.several_ranks if layout.cut.ranks > 1 else "single"
