"""What the name of a GPU says: its model, and its memory where that is part of the name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GpuName", "hardware_words", "read_gpu_name"]


@dataclass(frozen=True, slots=True)
class GpuName:
    """A model as site files call it.

    Attributes
    ----------
    memory_bytes
        None where the name does not say it.
    nvlink
        The generation that it has, if it has one and is joined by it.
    """

    model: str
    memory_bytes: int | None
    nvlink: str | None


# Sizes in GB that it is made with, and its generation of NVLink, by NVIDIA's data sheets. No size
# where the name gives that of another memory: "GH200 480GB" is the CPU's.
_MODELS: Mapping[str, tuple[tuple[int, ...], str | None]] = {
    "p100": ((12, 16), None),
    "v100": ((16, 32), "nvlink2"),
    "t4": ((16,), None),
    "a100": ((40, 64, 80), "nvlink3"),
    "a30": ((24,), "nvlink3"),
    "a40": ((48,), "nvlink3"),
    "a10": ((24,), None),
    "a16": ((16,), None),
    "a6000": ((48,), "nvlink3"),
    "l4": ((24,), None),
    "l40": ((48,), None),
    "l40s": ((48,), None),
    "h100": ((64, 80, 94, 96), "nvlink4"),
    "h200": ((141,), "nvlink4"),
    "h800": ((80,), "nvlink4"),
    "h20": ((96, 141), "nvlink4"),
    "gh200": ((), "nvlink4"),
    "b200": ((180, 192), "nvlink5"),
    "b300": ((288,), "nvlink5"),
    "gb200": ((), "nvlink5"),
    "gb300": ((), "nvlink5"),
    "rtx8000": ((48,), None),
    "mi100": ((32,), None),
    "mi210": ((64,), None),
    "mi250": ((128,), None),
    "mi250x": ((128,), None),
    "mi300a": ((128,), None),
    "mi300x": ((192,), None),
}
_SIZE = re.compile(r"([0-9]{1,3})gb?")


def read_gpu_name(name: str) -> GpuName | None:
    """A GRES type or NVIDIA's own name; None where no one model is in it.

    A size that the model is not made with is a part of a GPU, or another model.

    >>> read_gpu_name("nvidia_h100_80gb_hbm3")
    GpuName(model='h100', memory_bytes=80000000000, nvlink='nvlink4')
    >>> read_gpu_name("NVIDIA GH200 480GB").memory_bytes
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    # "Grace Hopper" boards name both: "GH200 … H100" is one GPU, of which nothing is certain.
    models = sorted({word for word in words if word in _MODELS})
    if len(models) != 1:
        return None
    sizes, nvlink = _MODELS[models[0]]
    told = {int(match[1]) for word in words if (match := _SIZE.fullmatch(word))}
    if sizes and not told <= set(sizes):
        return None
    size = next(iter(told)) if sizes and len(told) == 1 else None
    return GpuName(models[0], None if size is None else size * 10**9, nvlink)


def hardware_words(features: tuple[str, ...]) -> frozenset[str]:
    """Features that tell one GPU from another: a model, a size of memory, a form."""
    return frozenset(
        feature
        for feature in features
        if re.search(r"[0-9]{2,3}gb?$|nvl|sxm|pcie", feature.lower()) or read_gpu_name(feature)
    )
