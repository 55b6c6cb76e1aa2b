"""Schedulers by the name that site files use; each is imported when it is asked for."""

from __future__ import annotations

from launcher.schedulers.base import Scheduler

__all__ = ["scheduler_for"]


def scheduler_for(kind: str) -> Scheduler:
    """The scheduler of a plan: ``slurm``, or ``local`` for the machine at hand."""
    if kind == "slurm":
        from launcher.schedulers.slurm import SlurmScheduler  # noqa: PLC0415 - start-up time

        return SlurmScheduler()
    from launcher.schedulers.local import LocalScheduler  # noqa: PLC0415 - start-up time

    return LocalScheduler()
