"""The user's list of runs: names for run directories, in ``~/.local/state/hpc-llm/runs``.

Beside it, in ``sites``, stands under which site files a run has ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import OutputError, Problem, SpecError
from launcher.resources import state_home
from launcher.rundir import RunDir, replace

__all__ = ["find_run", "known_runs", "ran_sites", "remember", "site_digest"]


def remember(run: RunDir, environ: Mapping[str, str] = os.environ) -> None:
    """Put ``run`` on the list, under the name of its directory."""
    directory = state_home(environ) / "runs"
    directory.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(str(run.path).encode()).hexdigest()[:12]
    replace(directory / digest, str(run.path).encode())


def known_runs(environ: Mapping[str, str] = os.environ) -> list[RunDir]:
    """The runs on the list that still exist, by path."""
    directory = state_home(environ) / "runs"
    entries = directory.iterdir() if directory.is_dir() else ()
    paths = {Path(e.read_text()) for e in entries if not e.name.startswith(".")}
    return [RunDir(path) for path in sorted(paths) if (path / "run.json").is_file()]


def site_digest(text: str) -> str:
    """What a site file with this text is known by: any change makes another one of it."""
    return hashlib.sha256(text.encode()).hexdigest()


def ran_sites(environ: Mapping[str, str] = os.environ) -> set[str]:
    """Digests of the site files under which a run of this user has ended.

    Once seen they are noted, so that they outlive the directories of those runs.
    """
    directory = state_home(environ) / "sites"
    noted = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    ended = (run for run in known_runs(environ) if run.done_path.exists())
    found = set(filter(None, map(_digest_of_site, ended)))
    with contextlib.suppress(OSError):  # where nothing can be written, it is found again
        for digest in found - noted:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / digest).touch()
    return noted | found


def _digest_of_site(run: RunDir) -> str | None:
    try:
        return site_digest((run.path / "site.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):  # an old or damaged run tells nothing
        return None


def find_run(given: str, environ: Mapping[str, str] = os.environ) -> RunDir:
    """The run at the path ``given``, or of that name on the list.

    A name is the job's, or the last part of the run directory.

    Raises
    ------
    SpecError
        ``rundir.missing``, or ``rundir.ambiguous`` when several runs have the name.
    """
    # os.path's, because Path's raises for a name that is too long for any file
    is_path = os.path.exists(given)  # noqa: PTH110 - as said
    if is_path and (Path(given) / "run.json").is_file():
        return RunDir.open(Path(given))
    named = [run for run in known_runs(environ) if given in _names(run)]
    if len(named) > 1:
        message = f"several runs are called {given}: {', '.join(str(r.path) for r in named)}"
        raise SpecError(Problem("rundir.ambiguous", message, hint="give the path"))
    if is_path and not named:
        return RunDir.open(Path(given))
    if not named:
        hint = "give the job's output.path, or a name from `hpc-llm list`"
        raise SpecError(Problem("rundir.missing", f"no run at or called {given!r}", hint=hint))
    return named[0]


def _names(run: RunDir) -> set[str]:
    try:
        return {run.path.name, run.identity().name}
    except OutputError:  # a damaged run is still found by its directory
        return {run.path.name}
