"""``srun --mpi=list``: the process managers that Slurm was built with.

Versions differ in where it is printed: give standard output and error together.
"""

from __future__ import annotations

import re

from launcher.parsers.text import ParseError, split_lines

__all__ = ["read_mpi_list"]

_HEAD = re.compile(r"MPI (?:plugin )?types are\.*", re.IGNORECASE)
_VERSIONS = re.compile(r"specific (\w+) plugin versions available:\s*(.*)")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def read_mpi_list(text: str) -> tuple[str, ...]:
    """Values of ``srun --mpi=``, sorted, such as ``none``, ``pmi2``, ``pmix`` and ``pmix_v4``.

    Raises
    ------
    ParseError
        It is not such a list.
    """
    lines = split_lines(text)
    kept = [re.sub(r"^\s*srun:\s*", "", line).strip() for line in lines.lines]
    at = next((i for i, line in enumerate(kept) if _HEAD.fullmatch(line)), None)
    if at is None:
        raise ParseError(f"not the list of `srun --mpi=list`, but {lines.looks_like()}")
    found: set[str] = set()
    for number, line in enumerate(kept[at + 1 :], at + 2):
        versions = _VERSIONS.fullmatch(line)
        names = re.split(r"[,\s]+", versions[2]) if versions else [line]
        whole = names[:-1] if lines.cut and number == len(kept) else names
        found.update(name for name in whole if _NAME.fullmatch(name))
    return tuple(sorted(found))
