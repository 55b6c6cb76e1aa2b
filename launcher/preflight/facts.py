"""What one rank, and the first rank of each node for its node, can tell before the engine starts.

Nothing here judges, and nothing waits long for a node that is ill: what cannot be learnt is None.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from launcher.parsers.ibstat import Port
from launcher.plan.types import Plan
from launcher.preflight.fingerprint import Fingerprint, fingerprint

__all__ = ["Facts", "NodeFacts", "gather", "look"]

# A driver that has lost a GPU may answer never.
ANSWER_S = 60.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where NCCL has its segments
_DEVICES = Path("/sys/class/infiniband")
_DRIVER = Path("/proc/driver/nvidia/version")
_PACKAGES = {
    "vllm": ("vllm", "torch", "transformers"),
    "transformers": ("transformers", "torch"),
    "tensorrt-llm": ("tensorrt_llm", "torch", "mpi4py"),
}
_NCCL = ("nvidia-nccl-cu12", "nvidia-nccl-cu13")
_GPU = re.compile(r"^GPU \d+: (.*?) ?\(UUID: (\S+)\)", re.MULTILINE)
_PMI = ("PMIX_RANK", "PMIX_VERSION", "PMI_RANK", "PMI_FD", "PMI_CONTROL_PORT")
# MPI_Get_library_version may be called before MPI_Init (MPI 3.1, 8.1.1), which mpi4py else makes.
_ASK_MPI = (
    "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
    "print(MPI.Get_library_version().splitlines()[0].split(',')[0])"
)
# capabilities(7): who has it in the first user namespace locks as much as he likes.
_CAP_IPC_LOCK = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What all ranks of a node have in common, as its first one found it.

    Attributes
    ----------
    shm_bytes
        Free in ``/dev/shm``.
    memlock_bytes
        How much memory a process may lock; None for any amount.
    gpus
        UUIDs by index, as far as this process is let see them; None without ``nvidia-smi``.
    gpu_names
        Of the same, as the driver calls them.
    gpu_error, mpi_error
        What was said in the place of an answer.
    mpi
        The MPI library that mpi4py loads, in its own words.
    rdma
        Devices of InfiniBand and its like.
    ports
        Theirs, with state and rate.
    versions
        Of Python, the engine, what it computes with and the driver, as far as they are installed.
    model, model_error
        The checkpoint, or why there is none.
    model_s
        Seconds that it took to look at it.
    """

    boot_id: str = ""
    shm_bytes: int | None = None
    memlock_bytes: int | None = None
    gpus: tuple[str, ...] | None = None
    gpu_names: tuple[str, ...] = ()
    gpu_error: str | None = None
    mpi: str | None = None
    mpi_error: str | None = None
    rdma: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    versions: Mapping[str, str]
    model: Fingerprint | None = None
    model_error: str | None = None
    model_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one rank (one task of a step) can tell.

    Attributes
    ----------
    pmi
        Variables by which its MPI would find the others.
    visible
        ``CUDA_VISIBLE_DEVICES`` of what it will start; None on CPUs.
    job, nodes
        Slurm's job here, and the list of its nodes.
    node
        Of the first rank on a node.
    """

    rank: int
    local_rank: int
    host: str
    pmi: Mapping[str, str]
    visible: str | None
    job: str | None = None
    nodes: str | None = None
    node: NodeFacts | None

    @property
    def who(self) -> str:
        return f"rank {self.rank} on {self.host}"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Facts:
        node = data["node"]
        if node is not None:
            model = node["model"]
            node = NodeFacts(
                **{
                    **node,
                    "gpus": None if node["gpus"] is None else tuple(node["gpus"]),
                    "gpu_names": tuple(node["gpu_names"]),
                    "rdma": tuple(node["rdma"]),
                    "ports": tuple(Port(**port) for port in node["ports"]),
                    "model": None if model is None else Fingerprint(**model),
                }
            )
        return cls(**{**data, "node": node})


def gather(plan: Plan, rank: int, local_rank: int, environ: Mapping[str, str]) -> Facts:
    """Look at this rank and, as the first one of its node, at the node; seconds.

    Parameters
    ----------
    environ
        What the engine will be started with.
    """
    node = None
    if local_rank == 0:
        node = look(
            None if plan.engine == "echo" else plan.engine,
            environ,
            gpus=_has_gpus(plan),
            mpi=plan.step.kind == "leader",
            model=None if plan.model_path is None else Path(plan.model_path),
            ends=plan.step.nodes > 1,
        )
    return Facts(
        rank=rank,
        local_rank=local_rank,
        host=socket.gethostname(),
        pmi={name: environ[name] for name in _PMI if name in environ},
        visible=environ.get("CUDA_VISIBLE_DEVICES") if _has_gpus(plan) else None,
        job=environ.get("SLURM_JOB_ID"),
        nodes=environ.get("SLURM_JOB_NODELIST"),
        node=node,
    )


def look(
    engine: str | None,
    environ: Mapping[str, str],
    *,
    gpus: bool,
    mpi: bool = False,
    model: Path | None = None,
    ends: bool = False,
) -> NodeFacts:
    """Look at this node.

    Parameters
    ----------
    engine
        Whose versions to tell; those of every engine for None.
    gpus, mpi
        Whether to ask for GPUs, and for the MPI library.
    model, ends
        The checkpoint, and whether its weights' ends are read.
    """
    listing = _Question(("nvidia-smi", "-L"), environ) if gpus else None
    library = _Question((sys.executable, "-c", _ASK_MPI), environ) if mpi else None
    began_s = time.monotonic()
    found, model_error = (None, None) if model is None else _model(model, ends=ends)
    model_s = time.monotonic() - began_s
    listed, gpu_error = listing.answer() if listing else (None, None)
    told, mpi_error = library.answer() if library else (None, None)
    seen = _GPU.findall(listed or "")
    return NodeFacts(
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        shm_bytes=_free_bytes(_SHARED_MEMORY),
        memlock_bytes=_memlock_bytes(),
        gpus=None if listed is None else tuple(uuid for _, uuid in seen),
        gpu_names=tuple(name for name, _ in seen),
        gpu_error=gpu_error,
        mpi=told and told.rpartition("\n")[2],
        mpi_error=mpi_error,
        rdma=tuple(sorted(entry.name for entry in _DEVICES.glob("*"))),
        ports=tuple(sorted(map(_port, _DEVICES.glob("*/ports/*")), key=lambda port: port.name)),
        versions=_versions(engine),
        model=found,
        model_error=model_error,
        model_s=round(model_s, 3),
    )


def _has_gpus(plan: Plan) -> bool:
    return plan.layout.allocation.gpus_per_node > 0


def _model(directory: Path, *, ends: bool) -> tuple[Fingerprint | None, str | None]:
    try:
        (directory / "config.json").stat()  # of a mount that is missing, the directory is there
        return fingerprint(directory, ends=ends), None
    except OSError as exc:
        return None, f"{exc.strerror}: {exc.filename}"


def _versions(engine: str | None) -> dict[str, str]:
    found = {"python": platform.python_version()}
    everything = {name for names in _PACKAGES.values() for name in names}
    for name in (*sorted(everything if engine is None else _PACKAGES.get(engine, ())), *_NCCL):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    with suppress(OSError):
        # Its first line is like: NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat …
        if told := re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _DRIVER.read_text()):
            found["driver"] = told[1]
    return found


def _port(place: Path) -> Port:
    """What the kernel says of one port (Documentation/ABI/stable/sysfs-class-infiniband)."""

    def said(name: str) -> str | None:
        with suppress(OSError):  # as reading a port of a device that fails is
            return (place / name).read_text().strip().rpartition(": ")[2]
        return None

    # A kernel calls a speed that it does not know SDR (drivers/infiniband/core/sysfs.c, rate_show).
    state, rate = said("state"), re.match(r"([\d.]+)(?!.* SDR\))", said("rate") or "")
    return Port(
        adapter=place.parent.parent.name,
        number=int(place.name),
        state=state and state.capitalize(),
        physical=said("phys_state"),
        rate_gbps=float(rate[0]) if rate else None,
        link_layer=said("link_layer"),
    )


def _free_bytes(place: Path) -> int | None:
    with suppress(OSError):
        found = os.statvfs(place)
        return found.f_bavail * found.f_frsize
    return None


def _memlock_bytes() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return None
    capable = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    first = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    unbound = first and capable is not None and int(capable[1], 16) >> _CAP_IPC_LOCK & 1
    return None if unbound else soft


class _Question:
    """A program that tells something; one that is not there tells nothing."""

    def __init__(self, words: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._words = words
        self._process = None
        with suppress(FileNotFoundError):
            self._process = subprocess.Popen(
                words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )

    def answer(self) -> tuple[str | None, str | None]:
        """What it printed, or what is wrong with it instead."""
        if self._process is None:
            return None, None
        try:
            said, _ = self._process.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # it hangs in the driver
                self._process.communicate(timeout=1.0)
            return None, f"{self._words[0]} did not answer within {ANSWER_S:.0f} s"
        last = said.strip().rpartition("\n")[2]
        return (said.strip(), None) if self._process.returncode == 0 else (None, last)
