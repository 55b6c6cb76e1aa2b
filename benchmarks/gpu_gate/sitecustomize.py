"""vLLM is imported, and waits before it has touched a GPU: until the file GPU_GATE is there.

Python imports a module of this name at each start where this directory is on PYTHONPATH. So the
next engine imports while the one before it still has the GPU; a start takes half as long then.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import time
from typing import Any

# What each process that will have a GPU imports last (v1/worker/worker_base.py, init_worker).
_LAST = "vllm.v1.worker.gpu_worker"
_LOOK_S = 0.1


class _Gate(importlib.abc.MetaPathFinder):
    """Finds one module as others do, and waits once that has been imported."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002 - the protocol's
        if fullname != _LAST:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def waiting(module: Any) -> None:
                execute(module)
                while not os.path.exists(self._path):  # noqa: PTH110 - pathlib is not imported this early
                    time.sleep(_LOOK_S)

            spec.loader.exec_module = waiting  # type: ignore[method-assign] # of this one loader
        return spec


if "GPU_GATE" in os.environ:
    sys.meta_path.insert(0, _Gate(os.environ["GPU_GATE"]))
