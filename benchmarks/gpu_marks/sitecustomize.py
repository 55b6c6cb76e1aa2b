"""When a runner did what: put this directory on PYTHONPATH and name a file in GPU_MARKS.

Python imports a module of this name at each start. In the process of a replica it notes the
seconds since the epoch at which that process began, asked for its engine, first looked for the
engine's library, had the engine ready, handed over its first row and got its first answer.
"""

from __future__ import annotations

import importlib.abc
import json
import os
import sys
import time
from typing import Any


class _Marks(importlib.abc.MetaPathFinder):
    """Notes each event once, and finds no module."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: set[str] = set()
        self.note("python")

    def note(self, event: str) -> None:
        if event not in self._seen:
            self._seen.add(event)
            with open(self._path, "a", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is not imported this early
                file.write(json.dumps({event: time.time()}) + "\n")

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:  # noqa: ARG002 - the protocol's
        if fullname in ("vllm", "transformers"):
            self.note("import")
        if fullname == "launcher.runner.replica":
            from launcher.engines import registry

            registry.create = _marked(registry.create, self)


def _marked(create: Any, marks: _Marks) -> Any:
    def marked_create(*args: Any) -> Any:
        marks.note("engine")
        return _Engine(create(*args), marks)

    return marked_create


class _Engine:
    """An engine whose start and first row are noted, and nothing after that."""

    def __init__(self, engine: Any, marks: _Marks) -> None:
        self._engine, self._marks = engine, marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def start(self) -> Any:
        capabilities = await self._engine.start()
        self._marks.note("ready")
        return capabilities

    async def generate(self, request: Any) -> Any:
        self._marks.note("first row")
        self.generate = self._engine.generate  # type: ignore[method-assign] # later rows pass by
        answer = await self._engine.generate(request)
        self._marks.note("first answer")
        return answer


if "GPU_MARKS" in os.environ and "launcher.runner" in sys.orig_argv:
    sys.meta_path.insert(0, _Marks(os.environ["GPU_MARKS"]))
