"""What works and is not the best use of the GPUs: warnings, each with what to try."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Problem
from launcher.models.shapes import ModelShape
from launcher.plan.constants import find_gpu
from launcher.plan.types import Cut
from launcher.spec.site import Gpus

__all__ = ["practices"]

# Sequences for each stage below which its GPUs read the weights for next to nothing.
_SEQUENCES_PER_STAGE = 16


def practices(
    cut: Cut, gpus: Gpus | None, shape: ModelShape | None, rows: float | None
) -> Iterator[Problem]:
    """Warnings about ``cut`` on ``gpus``.

    Parameters
    ----------
    rows
        Of one replica; None where that is not known.

    Yields
    ------
    Problem
        ``plan.tp-over-pcie``, ``plan.pp-few-rows``, ``plan.unquantised``.
    """
    # Where the site says which GPUs NVLink joins, `check_cut` has spoken already.
    if gpus is not None and gpus.link == "pcie" and gpus.topology is None and cut.tp > 1:
        message = f"tp {cut.tp} sends two messages a layer over PCIe, for each token"
        hint = "try pp in place of tp, or one GPU a replica if the model fits"
        yield _warning("plan.tp-over-pcie", message, hint)
    wanted = _SEQUENCES_PER_STAGE * cut.pp
    if cut.pp > 1 and rows is not None and rows < wanted:
        message = (
            f"a replica gets about {rows:.0f} rows, and its {cut.pp} stages want {wanted} at a "
            "time to be busy"
        )
        yield _warning("plan.pp-few-rows", message, "use fewer replicas, or less pp")
    if gpus is not None and shape is not None and _could_be_fp8(gpus, shape):
        message = f"{gpus.model} GPUs compute in FP8, and {shape.name} is a 16-bit checkpoint"
        hint = "try an FP8 checkpoint of it: half the memory, so fewer GPUs a replica"
        yield _warning("plan.unquantised", message, hint)


def _could_be_fp8(gpus: Gpus, shape: ModelShape) -> bool:
    """Whether it is cut because its 16 bits do not fit one GPU, and need not be so many."""
    gpu = find_gpu(gpus.model, gpus.memory, gpus.link)
    if gpu is None or shape.parameters is None or shape.quantisation is not None:
        return False
    return "fp8" in gpu.flops and 2 * shape.parameters > gpu.memory_gb * 10**9


def _warning(code: str, message: str, hint: str) -> Problem:
    return Problem(code, message, hint=hint, severity="warning")
