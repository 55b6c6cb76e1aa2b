"""Questions about cuts, as tests ask them: a model over nodes of one kind."""

from __future__ import annotations

from typing import Any

from launcher.models.catalogue import BUILTIN
from launcher.plan.candidates import Question
from launcher.plan.cost import Workload
from launcher.plan.layout import NodeShape
from launcher.spec.leaves import Bytes
from launcher.spec.site import Fabric, Gpus

__all__ = ["ROWS", "question"]

GB = 10**9
ROWS = Workload(
    prompt_tokens=500, new_tokens=256, most_new_tokens=512, spread=0.5, doubt=2, rows=100_000
)


def question(
    model: str,
    gpu: str = "h100",
    memory_gb: int = 80,
    *,
    slots: int = 8,
    topology: Any = "all-to-all",
    link: Any = "nvlink4",
    unit: Any = "gpu",
    fabric: Fabric | None = Fabric(type="infiniband", rate=400, nics=8),  # noqa: B008 - frozen
    **changes: Any,
) -> Question:
    """Nodes of ``slots`` GPUs, as many as it takes, on a network of eight ports."""
    gpus = Gpus(
        model=gpu, per_node=slots, memory=Bytes(memory_gb * GB), topology=topology, link=link
    )
    fields: dict[str, Any] = {
        "shape": BUILTIN[model],
        "engine": "tensorrt-llm",
        "gpus": gpus,
        "fabric": fabric,
        "node": NodeShape(slots=slots, slots_all=slots, has_gpus=True, unit=unit),
        "most_nodes": 16,
        "workload": ROWS,
        "longest": 1000,
    }
    return Question(**(fields | changes))
