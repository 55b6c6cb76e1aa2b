"""The wrapper of every rank: finds its rank, takes its GPUs, starts its child, tells its end.

It outlives whatever happens to the child, so a killed engine still leaves an outcome.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from launcher.errors import Problem, RunError, Stopped
from launcher.plan.types import Placement, Plan
from launcher.preflight.exchange import Preflight
from launcher.preflight.verdict import check_world
from launcher.process import adopt_orphans, descendants, kill
from launcher.rundir import RunDir
from launcher.runner.__main__ import (
    EXIT_CODES,
    add_arguments,
    ending,
    failed_or_died,
    write_outcome,
)
from launcher.runner.binding import bind, cpu_list, near
from launcher.runner.identity import CPUS_GIVEN, RankIds, RankReport, find_rank, visible_gpus
from launcher.runner.leader import Rank, run_rank
from launcher.runner.network import NcclLog
from launcher.runner.replica import say, write_line

__all__ = ["main"]

_OF_NETWORK = ("NCCL_", "UCX_", "GLOO_", "TP_SOCKET_", "FI_")


def main(argv: Sequence[str] | None = None) -> int:
    """Run this rank of a step; the exit code is the child's, or 7 when there was none."""
    parser = argparse.ArgumentParser(prog="launcher.runner.rank", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    run = RunDir(Path.cwd())
    try:
        plan = run.plan(args.plan)
        ids = find_rank(plan.launcher)
        where = {"rank": ids.rank, "world": ids.world, "local_rank": ids.local_rank}
        if found := list(check_world(plan, **where, host=socket.gethostname())):
            raise RunError(found)
        environ = _environment(plan, args.replica, ids)
        code = _preflight(run, args, plan, ids, environ)
        return _run(run, args, plan, ids.rank, environ) if code is None else code
    except Exception as exc:  # noqa: BLE001 - the outermost frame: recorded, and never swallowed
        outcome, problems = ending(exc)
        for problem in problems:
            say(args.replica, str(problem))
        write_outcome(run, args, outcome, problems)
        return EXIT_CODES[outcome]


def _run(
    run: RunDir, args: argparse.Namespace, plan: Plan, rank: int, environ: dict[str, str]
) -> int:
    """Start this rank's child and see it to its end; the exit code."""
    command = [sys.executable, "-m", "launcher.runner", *_forwarded(args), "--rank", str(rank)]
    note = run.network_path(args.job, args.restart, args.replica, rank)
    with contextlib.closing(NcclLog(plan, environ, note, first=rank == 0)) as nccl:
        if plan.engine == "tensorrt-llm":
            own = Rank(
                run=run,
                args=args,
                plan=plan,
                number=rank,
                environ=environ,
                runner=command,
                nccl=nccl,
            )
            return run_rank(own)
        code, told = _supervise(command, environ, nccl)
    problems = [nccl.fatal] if nccl.fatal else _death(code, plan.task(args.replica, rank))
    # Slurm's TERM reaches the child too, perhaps before this process has noted its own.
    if problems and (told or code == -signal.SIGTERM):
        # Ended before it could say so. A later rank says nothing: why is known elsewhere.
        if rank == 0:
            write_outcome(run, args, "resumable", ())
        return EXIT_CODES["resumable"]
    if problems:
        write_outcome(run, args, failed_or_died(problems), problems)
    return code


def _preflight(
    run: RunDir, args: argparse.Namespace, plan: Plan, ids: RankIds, environ: Mapping[str, str]
) -> int | None:
    """Have the first rank find whether all of them may go on; the exit code if they may not."""
    flight = Preflight(run=run, plan=plan, job=args.job, restart=args.restart, replica=args.replica)
    try:
        with _leaving_when_told():
            for check in flight.rounds():
                if ids.rank > 0:
                    if not check.passed(ids.rank, ids.local_rank, environ):
                        return EXIT_CODES["died"]
                    continue
                verdict = check.judged(ids.rank, ids.local_rank, environ)
                if verdict.problems:  # first, as the others' ends may end this process as well
                    write_outcome(run, args, verdict.outcome, verdict.problems, verdict.hosts)
                check.announce(verdict)
                for problem in (*verdict.problems, *verdict.warnings):
                    say(args.replica, str(problem))
                if verdict.problems:
                    return EXIT_CODES[verdict.outcome]
                say(args.replica, verdict.summary)
    except Stopped:
        kill(descendants())  # whoever is still asked
        if ids.rank == 0:
            write_outcome(run, args, "resumable", ())
        return EXIT_CODES["resumable"]
    return None


@contextlib.contextmanager
def _leaving_when_told() -> Iterator[None]:
    """Raise `Stopped` on what asks a step to leave: nothing is begun yet that would be lost."""

    def leave(number: int, _: object) -> NoReturn:
        raise Stopped(Problem("run.stopped", f"told to leave by {signal.Signals(number).name}"))

    numbers = (signal.SIGUSR1, signal.SIGTERM)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _environment(plan: Plan, replica: int, ids: RankIds) -> dict[str, str]:
    """The child's environment: this replica's GPUs, and nothing of the other replicas'.

    Says in the log where the rank sits.
    """
    environ = dict(os.environ)
    own = plan.task(replica, ids.rank)
    placement = own[0]
    # A machine without a scheduler is the run's own.
    whole = plan.layout.allocation.whole_node or plan.scheduler == "local"
    ranks = plan.layout.replica(replica)
    gpus = visible_gpus(ranks, placement.node, whole_node=whole, environ=environ)
    if gpus is not None:
        # Slurm numbers GPUs by PCI bus; CUDA's own default order is by speed.
        environ.update(CUDA_VISIBLE_DEVICES=gpus, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    unbound = _bind(plan, own, environ)
    report = RankReport(
        replica=replica,
        rank=placement.rank,
        last_rank=own[-1].rank,
        tp_rank=placement.tp_rank,
        pp_rank=placement.pp_rank,
        host=socket.gethostname(),
        gpus=gpus,
        cpus=len(os.sched_getaffinity(0)),
        cpu_list=cpu_list(os.sched_getaffinity(0)),
        unbound=unbound,
        network=tuple(f"{k}={environ[k]}" for k in sorted(environ) if k.startswith(_OF_NETWORK)),
    )
    write_line(report.line())
    return environ


def _bind(plan: Plan, ranks: Sequence[Placement], environ: dict[str, str]) -> str | None:
    """Keep this process to the CPUs next to the GPUs of ``ranks``; why not, where it is not."""
    if plan.gpus is None:
        return "it has no GPUs"
    positions = [p.gpu for p in ranks if p.gpu is not None]
    # `environ` holds the replica's GPUs by now, this process's own those of the job.
    cpus = near(plan.gpus, positions, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if isinstance(cpus, str):
        return cpus
    given = len(os.sched_getaffinity(0))
    whole = plan.scheduler == "slurm" and plan.layout.allocation.whole_node
    if (why := bind(cpus, whole_node=whole)) is None:
        environ[CPUS_GIVEN] = str(given)
        # tensorrt_llm/executor/base_worker.py, _configure_affinity
        environ.setdefault("TLLM_NUMA_AWARE_WORKER_AFFINITY", "0")
    return why


def _forwarded(args: argparse.Namespace) -> list[str]:
    names = ("plan", "replica", "job", "restart")
    return [word for name in names for word in (f"--{name}", str(getattr(args, name)))]


def _supervise(
    command: Sequence[str], environ: Mapping[str, str], nccl: NcclLog
) -> tuple[int, bool]:
    """Run the child to its end, handing on the signals that ask it to leave.

    A network on which the step must not go on ends it too.

    Returns
    -------
    tuple of int and bool
        Its exit code, and whether this rank was told by SIGTERM to end.
    """
    told = False
    # Ignored across exec, so that a warning which comes while the child still imports does not
    # kill it: USR1's default action is death.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    adopt_orphans()
    child = subprocess.Popen(command, env=environ)

    def hand_on(number: int, _: object) -> None:
        nonlocal told
        told = told or number == signal.SIGTERM
        child.send_signal(number)

    signal.signal(signal.SIGUSR1, hand_on)
    signal.signal(signal.SIGTERM, hand_on)
    nccl.on_fatal(lambda: kill(descendants()))
    code = child.wait()
    kill(descendants())  # workers of an engine that was killed, which would hold its GPUs
    return code, told


def _death(code: int, ranks: Sequence[Placement]) -> list[Problem]:
    """What to say of a child that ended without an outcome of its own."""
    if code in EXIT_CODES.values():
        return []
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    hint = "look at the end of the step's log; SIGKILL is often the kernel being out of memory"
    first, last = ranks[0].rank, ranks[-1].rank
    who = f"rank {first}" if first == last else f"the process of ranks {first}-{last}"
    return [Problem("run.died", f"{who} on {socket.gethostname()} {how}", hint=hint)]


if __name__ == "__main__":
    sys.exit(main())
