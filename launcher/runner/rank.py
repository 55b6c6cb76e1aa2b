"""The wrapper of every rank: finds its rank, takes its GPUs, starts its child, tells its end.

It outlives whatever happens to the child, so a killed engine still leaves an outcome.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import HpcLlmError, Problem, RunError
from launcher.plan.types import Plan
from launcher.rundir import RunDir
from launcher.runner.__main__ import EXIT_CODES, add_arguments, write_outcome
from launcher.runner.identity import RankIds, find_rank, visible_gpus

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run this rank of a step; the exit code is the child's, or 7 when there was none."""
    parser = argparse.ArgumentParser(prog="launcher.runner.rank", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    run = RunDir(Path.cwd())
    try:
        environ = _environment(run.plan(args.plan), args.replica)
        code = _supervise([sys.executable, "-m", "launcher.runner", *_forwarded(args)], environ)
        problems = _death(code)
    except HpcLlmError as exc:
        code, problems = RunError.exit_code, list(exc.problems)
        print(exc, file=sys.stderr, flush=True)  # noqa: T201 - the step's log
    if problems:
        write_outcome(run, args, "failed", problems)
    return code


def _environment(plan: Plan, replica: int) -> dict[str, str]:
    """The child's environment: this replica's GPUs, and nothing of the other replicas'."""
    ids = find_rank(plan.launcher)
    _check_world(plan, ids)
    environ = dict(os.environ)
    ranks = plan.layout.replica(replica)
    placement = ranks[ids.rank if plan.step.kind != "single" else 0]
    whole = plan.layout.allocation.whole_node
    gpus = visible_gpus(ranks, placement.node, whole_node=whole, environ=environ)
    if gpus is not None:
        # Slurm numbers GPUs by PCI bus; CUDA's own default order is by speed.
        environ.update(CUDA_VISIBLE_DEVICES=gpus, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    return environ


def _check_world(plan: Plan, ids: RankIds) -> None:
    if ids.world != plan.step.tasks:
        message = f"rank {ids.rank} is one of {ids.world}, and the plan has {plan.step.tasks} ranks"
        hint = "start script.sh as it was rendered; compare launch.mpi with `srun --mpi=list`"
        raise RunError(Problem("run.world-mismatch", message, hint=hint))


def _forwarded(args: argparse.Namespace) -> list[str]:
    names = ("plan", "replica", "job", "restart")
    return [word for name in names for word in (f"--{name}", str(getattr(args, name)))]


def _supervise(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the child to its end, handing on the signals that ask it to leave."""
    # Ignored across exec, so that a warning which comes while the child still imports does not
    # kill it: USR1's default action is death.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    child = subprocess.Popen(command, env=environ)

    def hand_on(number: int, _: object) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGUSR1, hand_on)
    signal.signal(signal.SIGTERM, hand_on)
    return child.wait()


def _death(code: int) -> list[Problem]:
    """What to say of a child that ended without an outcome of its own."""
    if code in EXIT_CODES.values():
        return []
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    hint = "look at the end of the step's log; SIGKILL is often the kernel being out of memory"
    return [Problem("run.died", f"the runner {how}", hint=hint)]


if __name__ == "__main__":
    sys.exit(main())
