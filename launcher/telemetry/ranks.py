"""Where the ranks of a run's newest starts really sit: what their wrappers said in the logs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["read_ranks"]

# Wrappers speak before engines do, so the beginning of a log has them all.
_READ_BYTES = 1 << 18
_LINE = re.compile(rb"hpc-llm rank (\{.*\})")


def read_ranks(directory: Path, jobs: Iterable[str]) -> list[dict[str, Any]]:
    """The fields of `launcher.runner.identity.RankReport` and ``job``, for each rank of ``jobs``.

    Of a job that was started several times only the last start counts.
    """
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for job in jobs:
        names = (f"{job}.s*.log", f"{job}_*.s*.log")
        for path in sorted(path for name in names for path in directory.glob(name)):
            with path.open("rb") as log:
                for text in _LINE.findall(log.read(_READ_BYTES)):
                    rank = {"job": path.name.partition(".s")[0], **json.loads(text)}
                    found[rank["job"], rank["replica"], rank["rank"]] = rank
    return [found[key] for key in sorted(found)]
