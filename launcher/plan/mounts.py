"""What a container has to see: what the job reads, where no mount of the user's shows it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

__all__ = ["complete_mounts"]


def complete_mounts(mounts: tuple[str, ...], reads: Iterable[str]) -> tuple[str, ...]:
    """``mounts``, and after them the directories of ``reads`` that none of them shows.

    Parameters
    ----------
    mounts
        ``/path``, ``/path:/inside`` or ``/path:/inside:options``.
    reads
        Absolute directories, in any order; one below another needs no mount of its own.

    >>> complete_mounts(("/gpfs", "/raid:/models:ro"), ("/gpfs/in", "/models/m", "/u/a/b", "/u/a"))
    ('/gpfs', '/raid:/models:ro', '/u/a')
    """
    shown = [PurePosixPath((*mount.split(":"), "")[1] or mount) for mount in mounts]
    added: list[str] = []
    for place in sorted(set(reads)):  # a directory sorts before what lies in it
        path = PurePosixPath(place)
        if not any(path.is_relative_to(known) for known in shown):
            shown.append(path)
            added.append(place)
    return (*mounts, *added)
