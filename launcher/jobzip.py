"""The part of this package that runs in the job, as one zip file without dependencies.

A compute node's Python, or an image's, has neither hpc-llm nor what it needs. So each run
carries its own code: pure Python, started with ``PYTHONPATH=RUN/lib/<sha>.zip``. An upgrade
of hpc-llm never changes the code under a queued job, and nothing is installed in an image.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it lives elsewhere on Python 3.10
    from importlib.resources.abc import Traversable

__all__ = ["IN_JOB", "build_zip"]

# Modules and packages of `launcher` that a job may import. A contract of import-linter and a
# test that starts the zip under a bare interpreter keep this list true.
IN_JOB = (
    "__init__.py",
    "errors.py",
    "nodelist.py",
    "process.py",
    "rundir.py",
    "parsers/__init__.py",
    "parsers/ibstat.py",
    "parsers/lscpu.py",
    "parsers/nccl.py",
    "parsers/text.py",
    "parsers/topo.py",
    "plan/__init__.py",
    "plan/types.py",
    "plan/grid.py",
    "plan/engine_options.py",
    "plan/trtllm_options.py",
    "plan/vllm_options.py",
    "data",
    "engines",
    "telemetry",
    "preflight",
    "runner",
)
_LIBRARIES = ("jinja2", "markupsafe")


def build_zip() -> tuple[str, bytes]:
    """The zip's file name, which is its content's digest, and its bytes.

    Equal sources give equal bytes: entries are sorted and carry no time.
    """
    entries = dict(_entries())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(entries):
            archive.writestr(zipfile.ZipInfo(name), entries[name], zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    return f"{hashlib.sha256(data).hexdigest()[:16]}.zip", data


def _entries() -> Iterator[tuple[str, bytes]]:
    package = resources.files("launcher")
    for name in IN_JOB:
        yield from _python_files(package / name, f"launcher/{name}")
    for library in _LIBRARIES:
        yield from _python_files(resources.files(library), library)


def _python_files(entry: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    if entry.is_dir():
        for child in entry.iterdir():
            yield from _python_files(child, f"{path}/{child.name}")
    elif path.endswith(".py"):
        yield path, entry.read_bytes()
