"""A rank of TensorRT-LLM: its process of the MPI world, and beside the first one the runner.

The world outlives whatever it is told to do: a rank that fails leaves the others waiting, and the
process that asked for it too (``tensorrt_llm/llmapi/mpi_session.py``). So every rank has this
wrapper, which reads what its own processes print, kills them when it tells that they are lost,
and says why; the launcher then ends the other ranks. How the runner ended is how the step ended.

The runner is no rank and starts no MPI of its own. It reaches the first rank's process, the
leader, by an address and a key that this wrapper makes for the step, as
``tensorrt_llm/llmapi/trtllm-llmapi-launch`` does for a program of one's own.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.engines.tensorrt_llm_marks import FIGURES
from launcher.errors import Problem, RunError
from launcher.plan.types import Launcher, Plan
from launcher.process import adopt_orphans, descendants, kill
from launcher.rundir import RunDir, publish, replace
from launcher.runner.__main__ import EXIT_CODES, failed_or_died, write_outcome
from launcher.runner.family import Child, Deaf
from launcher.runner.network import NcclLog
from launcher.runner.watch import Fault, Watch, deadlines_s

__all__ = ["Rank", "inside_mpi", "meeting_point", "outside_mpi", "run_rank"]

# For the world to end in order once the work is done, and once there is a reason to hurry.
STOP_S = 30.0
HURRY_S = 5.0
# For the runner to let go of its rows once the step is asked to leave.
LEAVE_S = 10.0
# Another rank may have seen more than the consequences: its word stands if it comes in time.
FIRST_WORD_S = 3.0
_POLL_S = 0.1
# Between two looks of every rank at the file system that they share.
LOOK_S = 5.0

# trtllm-llmapi-launch takes the same from its task, but for SLURMD_: a process that MPI did not
# start must not believe that it did.
_OF_MPI = (
    "OMPI_",
    "PMIX_",
    "PMI_",
    "SLURM_",
    "SLURMD_",
    "MPI_",
    "UCX_",
    "I_MPI_",
    "HYDRA_",
    "KMP_",
    "MPICH_",
    "MV2_",
    "CRAY_",
)
_CONTRACT = re.compile(r"TLLM_SPAWN_PROXY_PROCESS\w*|tllm_mpi_size")
# Under mpirun those of the batch step, or of the one that started the daemon of a node, which
# TensorRT-LLM takes for the rank's own.
_LEAKED = re.compile(r"SLURM_(?:PROCID|NTASKS|NPROCS|LOCALID|NODEID|STEP\w*)")
_MODULES = "tensorrt_llm.llmapi."
# Where the user has not said otherwise. Phases are told from lines of this level.
_ENVIRONMENT = {"TLLM_LOG_LEVEL": "INFO", "HF_HUB_OFFLINE": "1", "TRTLLM_NO_USAGE_STATS": "1"}
_PATIENCE = "HPC_LLM_PATIENCE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One rank of a step, as its wrapper knows it.

    Attributes
    ----------
    environ
        What its processes get, but for MPI's part.
    runner
        The words that start the runner, on the first rank.
    nccl
        What NCCL says meanwhile.
    """

    run: RunDir
    args: argparse.Namespace
    plan: Plan
    number: int
    environ: Mapping[str, str]
    runner: Sequence[str]
    nccl: NcclLog

    @property
    def several(self) -> bool:
        return self.plan.step.tasks > 1


def run_rank(rank: Rank) -> int:
    """Run this rank to its end; the exit code of its wrapper."""
    adopt_orphans()
    family = _Family(rank)
    with family.signals():
        try:
            return family.lead() if rank.number == 0 else family.serve()
        finally:
            kill(descendants())


def outside_mpi(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a process that is no rank."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_OF_MPI) and not _CONTRACT.fullmatch(name)
    }


def inside_mpi(environ: Mapping[str, str], launcher: Launcher) -> dict[str, str]:
    """``environ`` for a process that is a rank."""
    return {
        name: value
        for name, value in environ.items()
        if not _CONTRACT.fullmatch(name) and not (launcher == "mpirun" and _LEAKED.fullmatch(name))
    }


@contextmanager
def meeting_point(world: int) -> Iterator[dict[str, str]]:
    """What leader, runner and stop action have in common: where they meet, and a key.

    The port is bound here, and goes on to be: nobody else is given it. The leader may listen at it
    since ZeroMQ sets SO_REUSEADDR on its sockets too (zeromq/libzmq, ``src/tcp_listener.cpp``).
    The key is known to the environment of these processes alone.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield _contract(world) | {
            "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR": f"tcp://127.0.0.1:{held.getsockname()[1]}",
            "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY": secrets.token_hex(32),
        }


def _contract(world: int) -> dict[str, str]:
    return {"TLLM_SPAWN_PROXY_PROCESS": "1", "tllm_mpi_size": str(world)}


class _Family:
    """The processes of one rank, from their start to their end."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._who = f"rank {rank.number} on {socket.gethostname()}"
        environ = {**_ENVIRONMENT, **rank.environ}
        self._inside = inside_mpi(environ, rank.plan.launcher)
        self._outside = outside_mpi(environ)
        self._watch = Watch(self._who, several=rank.several, limits_s=_limits_s(rank))
        rank.nccl.also = self._watch.hear
        self._runner: Child | None = None
        self._told_s: float | None = None
        self._look_s, self._over_s = 0.0, math.inf
        self._figures: dict[str, int] = {}

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Hand on to the runner, and to nobody else, what asks the step to leave."""

        def hand_on(number: int, _: object) -> None:
            if number == signal.SIGTERM and self._told_s is None:
                self._told_s = time.monotonic()
            if self._runner is not None:
                self._runner.tell(number)

        before = {n: signal.signal(n, hand_on) for n in (signal.SIGUSR1, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def lead(self) -> int:
        """Be the first rank: the leader, unless it is the only one, and the runner."""
        if not self._rank.several:
            return self._work({}, None)
        args = self._rank.args
        publish(self._rank.run.world_path(args.job, args.restart, args.replica), b"")
        with meeting_point(self._rank.plan.step.tasks) as contract:
            leader = self._start("leader", _module("mgmn_leader_node"), self._inside | contract)
            return self._work(contract, leader)

    def serve(self) -> int:
        """Be a later rank: a worker, until the leader lets it go."""
        contract = _contract(self._rank.plan.step.tasks)
        worker = self._start("worker", _module("mgmn_worker_node"), self._inside | contract)
        while not worker.over:
            if fault := self._fault():
                return self._fail(fault)
            if self._is_late():
                return EXIT_CODES["resumable"]
            if self._is_left_behind():
                self._say(f"{self._who}: the step is over, and its worker is killed")
                return EXIT_CODES["died"]
            self._watch.alarm.wait(_POLL_S)
        if worker.code == 0:
            return 0
        if self._told_s is not None:
            return EXIT_CODES["resumable"]
        return self._fail(self._death(worker))

    def _work(self, contract: Mapping[str, str], leader: Child | None) -> int:
        told = self._figures_path()
        environ = {**self._outside, **contract, FIGURES: str(told)}
        # Ignored across exec, so that a warning which comes while it imports does not kill it.
        warned = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._runner = runner = Child("runner", self._rank.runner, environ, self._watch.hear)
        signal.signal(signal.SIGUSR1, warned)
        ready = False
        while not runner.over:
            fault = self._fault()
            if fault is None and leader is not None and leader.over and self._told_s is None:
                fault = self._death(leader)
            if fault is None and not ready and self._watch.phase == "ready":
                ready, fault = True, self._too_short()
            if fault is not None:
                return self._fail(fault)
            if self._is_late():
                return self._leave()
            self._pass_on_figures(told)
            self._watch.alarm.wait(_POLL_S)
        return self._after(runner, leader, environ)

    def _figures_path(self) -> Path:
        args = self._rank.args
        return self._rank.run.figures_path(args.job, args.restart, args.replica)

    def _pass_on_figures(self, path: Path) -> None:
        """The leader prints what its KV cache holds; the runner hears none of it, and asks."""
        found = self._watch.settled_figures()
        if self._rank.several and found != self._figures:
            self._figures = found
            with suppress(OSError):  # a full disk stops no work
                replace(path, json.dumps(found).encode(), sync=False)

    def _after(self, runner: Child, leader: Child | None, environ: Mapping[str, str]) -> int:
        """The runner is over: end the rest. What it returned is what the step did."""
        code = runner.code
        if code in (EXIT_CODES["done"], EXIT_CODES["resumable"]):
            patience_s = STOP_S if code == EXIT_CODES["done"] else HURRY_S
            if leader is None or self._has_stopped(leader, environ, patience_s):
                return code
            self._say("the leader did not end in time and is killed")
            # The other ranks wait for it: the launcher has to end them.
            return code or EXIT_CODES["died"]
        if code in EXIT_CODES.values():
            return code
        # Slurm's TERM reaches it too, perhaps before this process has noted its own.
        if self._told_s is not None or code == -signal.SIGTERM:
            return self._leave()
        return self._fail(self._death(runner))

    def _has_stopped(self, leader: Child, environ: Mapping[str, str], patience_s: float) -> bool:
        """Whether the leader, and with it the world, has ended in order."""
        given_up_s = time.monotonic() + patience_s
        words = (*_module("mgmn_leader_node"), "--action", "stop")
        self._start("stop action", words, environ)
        while not leader.over and time.monotonic() < given_up_s:
            time.sleep(_POLL_S)
        return leader.over

    def _leave(self) -> int:
        """The step was asked to end, and the runner has not said that it does."""
        kill(descendants())
        if not self._another_has_spoken():
            write_outcome(self._rank.run, self._rank.args, "resumable", ())
        return EXIT_CODES["resumable"]

    def _fail(self, fault: Fault) -> int:
        """End this rank for ``fault``; another's word for it stands."""
        if fault.echo:
            kill(descendants())
            self._until(
                lambda: self._told_s is not None or self._another_has_spoken(), FIRST_WORD_S
            )
        silent = self._another_has_spoken() or (fault.echo and self._told_s is not None)
        if not silent:  # first, as what has failed may end this process as well
            problems = [fault.problem]
            write_outcome(self._rank.run, self._rank.args, failed_or_died(problems), problems)
        self._say(f"{fault.problem}\n{self._who} was in phase {self._watch.phase}")
        kill(descendants())
        return EXIT_CODES["died"]

    def _death(self, child: Child) -> Fault:
        code = child.code
        self._rank.nccl.settle()
        if fatal := self._rank.nccl.fatal:
            return Fault(fatal)
        return self._watch.death(f"its {child.name} {child.how}", killed=code < 0)

    def _fault(self) -> Fault | None:
        fatal = self._rank.nccl.fatal
        return Fault(fatal) if fatal else self._watch.fault()

    def _too_short(self) -> Fault | None:
        """What to say of an engine that is ready for shorter rows than it was asked to be."""
        figures = self._watch.figures
        tokens = figures.get("kv_tokens")
        if tokens is not None:
            self._say(f"{self._who}: the KV cache holds {tokens} tokens")
        got = figures.get("max_seq_len")
        if got is None:
            return None
        asked = self._rank.plan.engine_options.get("max_seq_len")
        least = int(asked) if asked is not None else self._new_tokens() + 1
        what = "engine_options ask for" if asked is not None else "a prompt and max_tokens need"
        message = f"{self._who}: the KV cache has room for rows of {got} tokens"
        hint = "raise parallelism.tp or pp, or lower max_num_tokens and max_batch_size"
        if got < least:
            problem = Problem("engine.no-memory", f"{message}, and {what} {least}", hint=hint)
            return Fault(problem)
        self._say(str(Problem("engine.no-memory", message, hint=hint, severity="warning")))
        return None

    def _new_tokens(self) -> int:
        return self._rank.run.identity().sampling.max_tokens

    def _another_has_spoken(self) -> bool:
        """Whether a rank of this step has said why it failed."""
        return self._has_ended("died", "failed")

    def _has_ended(self, *kinds: str) -> bool:
        args, path = self._rank.args, self._rank.run.outcome_path
        return any(path(args.job, args.restart, args.replica, k).exists() for k in kinds)

    def _is_left_behind(self) -> bool:
        """Whether the step is over, and the leader has had its time to let this worker go.

        A worker that hangs in its own shutdown would hold the nodes: mpirun waits for it.
        """
        now_s = time.monotonic()
        if now_s > self._look_s:
            self._look_s = now_s + LOOK_S
            if self._over_s == math.inf and self._has_ended(*EXIT_CODES):
                self._over_s = now_s
        return now_s > self._over_s + STOP_S + HURRY_S

    def _is_late(self) -> bool:
        """Whether the step was asked to leave, and has had its time."""
        if self._told_s is None:
            return False
        return self._another_has_spoken() or time.monotonic() > self._told_s + LEAVE_S

    def _until(self, true: Callable[[], bool], patience_s: float) -> None:
        given_up_s = time.monotonic() + patience_s
        while not true() and time.monotonic() < given_up_s:
            time.sleep(_POLL_S)

    def _start(self, name: str, words: Sequence[str], environ: Mapping[str, str]) -> Child:
        """A process of the world, which ends when it is told to by the world or killed."""
        with Deaf():
            return Child(name, words, environ, self._watch.hear)

    def _say(self, text: str) -> None:
        sys.stdout.write(f"hpc-llm: {text}\n")
        sys.stdout.flush()


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", _MODULES + name)


def _limits_s(rank: Rank) -> dict[str, float]:
    """How long each phase may take; as long as all of them where lines do not tell each one."""
    if rank.number > 0:
        return {}
    limits_s = deadlines_s(rank.plan.model_path, _patience(rank.environ.get(_PATIENCE, "1")))
    level = rank.environ.get("TLLM_LOG_LEVEL", "INFO").upper()
    if level in ("INFO", "VERBOSE", "DEBUG", "TRACE"):
        return limits_s
    return dict.fromkeys(limits_s, sum(limits_s.values()))


def _patience(text: str) -> float:
    with suppress(ValueError):
        if 0 < (factor := float(text)) < math.inf:
            return factor
    message = f"{_PATIENCE} is {text!r}, not a number above 0"
    raise RunError(Problem("engine.options", message, hint="correct it in env of the job file"))
