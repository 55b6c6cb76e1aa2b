"""The CPUs of a rank: those next to its GPUs, where it is certain which GPUs these are.

Engines may still choose otherwise, since they start later and see more: TensorRT-LLM under
``TLLM_NUMA_AWARE_WORKER_AFFINITY=1``, or libraries that are told by ``OMP_PLACES``. Who sets such
a variable has said what they want. What nobody has asked for is kept from undoing the binding:
by itself TensorRT-LLM widens a worker that is bound to all CPUs of the machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from launcher.plan.types import NodeGpus

__all__ = ["bind", "cpu_list", "cpu_set", "gpu_indices", "near"]

# One directory for each GPU of the machine, by its PCI address (NVIDIA driver README, "The
# /proc/driver/nvidia filesystem"). In a container perhaps only those that it was given.
_DRIVER = Path("/proc/driver/nvidia/gpus")
_UUID = re.compile(r"GPU UUID:\s*(GPU-[0-9a-f-]+)")


def near(
    gpus: NodeGpus, positions: Sequence[int], listed: str | None, driver: Path = _DRIVER
) -> frozenset[int] | str:
    """The CPUs next to the GPUs at ``positions``, or why they are not known.

    Parameters
    ----------
    listed
        ``CUDA_VISIBLE_DEVICES`` as the job has it; None where it has the whole node without.
    """
    if len(gpus.cpus) < gpus.count:
        return "the site file does not say which are near"
    indices = gpu_indices(gpus.count, positions, listed, driver)
    if indices is None:
        return "it is not certain which GPUs of the node these are"
    return frozenset().union(*(cpu_set(gpus.cpus[index]) for index in indices))


def gpu_indices(
    count: int, positions: Sequence[int], listed: str | None, driver: Path = _DRIVER
) -> list[int] | None:
    """Which of the ``count`` GPUs of this node, by PCI order, are at ``positions`` of the list.

    Numbers are those of the node only where the list has all of them: on a part of it Slurm
    counts from 0 where devices are confined, and as the node does where they are not.
    """
    if listed is None:
        return list(positions)
    devices = listed.split(",")
    if sorted(devices) == sorted(map(str, range(count))):
        return [int(devices[position]) for position in positions]
    known = _uuids(driver)
    if len(known) != count:
        return None
    found = [[i for i, uuid in enumerate(known) if _is(uuid, devices[p])] for p in positions]
    return [each[0] for each in found] if all(len(each) == 1 for each in found) else None


def _is(uuid: str, device: str) -> bool:
    """CUDA takes the beginning of a UUID for it, where only one GPU has it."""
    return device.startswith("GPU-") and uuid.startswith(device)


def _uuids(driver: Path) -> list[str]:
    """Of all GPUs by PCI address; those that the driver does not tell are empty."""
    try:
        texts = [path.read_text() for path in sorted(driver.glob("*/information"))]
    except OSError:
        return []
    return [found[1] if (found := _UUID.search(text)) else "" for text in texts]


def bind(wanted: frozenset[int], *, whole_node: bool) -> str | None:
    """Keep this process, and what it starts, to ``wanted``; why not, where it stays as it is.

    On a whole node the kernel takes off what is not the job's (sched_setaffinity(2), cpusets).
    Elsewhere other jobs may have no cpuset, so that only what was given is taken. Who was given
    nothing but near CPUs keeps these: they are its own.
    """
    given = os.sched_getaffinity(0)
    if given <= wanted:
        return None
    try:
        os.sched_setaffinity(0, wanted if whole_node else wanted & given)
    except (OSError, ValueError, OverflowError):
        return "none of the near ones is the job's"
    return None


def cpu_set(text: str) -> frozenset[int]:
    """``0-2,8`` as numbers.

    >>> sorted(cpu_set("0-2,8"))
    [0, 1, 2, 8]
    """
    ends = (part.split("-") for part in text.split(","))
    return frozenset(
        n for first, *last in ends for n in range(int(first), int([first, *last][-1]) + 1)
    )


def cpu_list(cpus: Iterable[int]) -> str:
    """Numbers as Linux writes them.

    >>> cpu_list({8, 0, 1, 2})
    '0-2,8'
    """
    runs = []
    for _, group in groupby(enumerate(sorted(cpus)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        runs.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    return ",".join(runs)
