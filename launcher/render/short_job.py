"""The batch script of a job on one node that does a single thing beside all runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from launcher.errors import PlanError, Problem
from launcher.render.quoting import sbatch_value
from launcher.units import slurm_time

__all__ = ["short_job"]


def short_job(
    options: Mapping[str, str | None],
    body: Iterable[str],
    *,
    log: Path,
    time_s: int,
    reject: Iterable[str] = (),
) -> str:
    """The text of the script.

    Parameters
    ----------
    options
        Of ``sbatch``, besides those of every such job; None leaves one out, "" has no value.
    body
        Lines of bash.
    reject
        Options that the site refuses.

    Raises
    ------
    PlanError
        ``plan.sbatch-value``: a value that no ``#SBATCH`` line can hold.
    """
    every = {
        **options,
        "--nodes": "1",
        "--ntasks": "1",
        "--time": slurm_time(time_s),
        "--no-requeue": "",
        "--output": str(log).replace("%", "%%"),
    }
    given = {o: v for o, v in every.items() if v is not None and o not in {*reject}}
    try:
        lines = [f"#SBATCH {o}" + (f"={sbatch_value(v)}" if v else "") for o, v in given.items()]
    except ValueError as exc:
        raise PlanError(Problem("plan.sbatch-value", str(exc))) from exc
    return "\n".join(("#!/bin/bash", *lines, *body, ""))
