"""A process that makes rows into requests for a replica: ``python -m launcher.runner.preparer``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from launcher.engines.base import EngineSetup
from launcher.engines.encoding import load_encoder
from launcher.errors import HpcLlmError
from launcher.rundir import RunDir
from launcher.runner.preparing import serve

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Serve the pipe ``argv[0]``: process ``argv[2]`` of ``argv[3]``, under plan ``argv[1]``."""
    pipe, run = Connection(int(argv[0])), RunDir(Path.cwd())
    plan = run.plan(argv[1])
    setup = EngineSetup(
        model_path=plan.model_path, cut=plan.layout.cut, options=plan.engine_options
    )
    with contextlib.suppress(EOFError, ConnectionError):  # nobody wants more
        try:
            serve(pipe, run.identity(), load_encoder(setup), int(argv[2]), int(argv[3]))
        except HpcLlmError as exc:
            pipe.send(exc)


if __name__ == "__main__":
    main(sys.argv[1:])
