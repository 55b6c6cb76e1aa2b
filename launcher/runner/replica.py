"""One replica from start to outcome: anything left to do, engine, rows, and a clean leave."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.data.inputs import changed, missing_packages
from launcher.data.leases import TTL_S, Heartbeat, Leases
from launcher.data.open_unit import OpenUnit
from launcher.data.passes import open_pass
from launcher.data.tally import finish
from launcher.engines.base import EngineSetup
from launcher.engines.encoding import encodes_apart
from launcher.engines.registry import create
from launcher.errors import Problem, RunError
from launcher.plan.types import Plan, RunIdentity
from launcher.rundir import RunDir, publish
from launcher.runner.breaker import Breaker
from launcher.runner.dispatch import POLL_S, Dispatcher
from launcher.runner.identity import CPUS_GIVEN
from launcher.runner.keeper import EngineKeeper
from launcher.runner.preparing import InProcesses, InThread, Rows
from launcher.telemetry.metrics import Beat, WorkerLog, read_parts

__all__ = ["ReplicaTask", "engine_setup", "run_replica", "say", "write_line"]

BEAT_S = 2.0
# Ranks of which this process is none may have seen why the engine has failed.
FIRST_WORD_S = 3.0
# So many beats for each line in the step's log.
_BEATS_PER_LINE = 30
# Owners that have died are known by then, be the node of one as slow as it may.
TAKE_OVER_S = TTL_S + 5.0
# Left for closing the engine and releasing what is held, of the time before the limit.
CLOSING_S = 30.0
# One that makes 0.4 million tokens a second feeds most replicas.
_CORES_PER_PREPARER, _MOST_PREPARERS = 8, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTask:
    """Which replica of which run this process is, under which plan."""

    run: RunDir
    plan_number: str
    replica: int
    job: str
    restart: int
    worker: str

    @property
    def meeting(self) -> Path:
        """Where the ranks of this step find each other."""
        return self.run.path / "control" / f"{self.job}.{self.restart}.s{self.replica}.meeting"

    def say(self, text: str) -> None:
        say(self.replica, text)


def say(replica: int, text: str) -> None:
    """One line into the step's log, with the time of day."""
    write_line(f"[{time.strftime('%H:%M:%S')}] replica {replica}: {text}")


def write_line(line: str) -> None:
    """Into the step's log, in one write: print would make two, which launchers tear apart."""
    with contextlib.suppress(OSError):  # a full disk
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def run_replica(task: ReplicaTask) -> bool:
    """Work until every unit is published or it is time to leave.

    Returns
    -------
    bool
        Whether nothing is left to do. False: stopped early, resumable.

    Raises
    ------
    RunError
        ``input.changed`` when the input is not what it was at submission; what this Python lacks
        to read it; whatever the engine raised when it could not start or died.
    """
    plan = task.run.plan(task.plan_number)
    try:
        return _run_first_rank(task, plan)
    except RunError:
        if plan.step.kind == "leader":
            time.sleep(FIRST_WORD_S)  # its wrapper ends it meanwhile if a rank knows more
        raise
    finally:
        if plan.step.tasks > 1:
            # The other ranks wait for an address: when none was needed, this lets them go.
            publish(task.meeting, b"null")


def _run_first_rank(task: ReplicaTask, plan: Plan) -> bool:
    identity = task.run.identity()
    if missing := missing_packages(identity.inputs):
        raise RunError(missing)
    if differences := changed(identity.inputs):
        hint = "restore the files, or start a new run with another output.path"
        raise RunError(Problem("input.changed", "; ".join(differences[:5]), hint=hint))
    with Heartbeat(task.run, task.worker):
        leases = Leases(task.run, task.worker)
        return asyncio.run(_work(task, identity, plan, leases))


async def _work(task: ReplicaTask, identity: RunIdentity, plan: Plan, leases: Leases) -> bool:
    log = WorkerLog(task.run.path / "metrics", task.worker, plan=task.plan_number)
    dispatcher = Dispatcher(
        run=task.run,
        identity=identity,
        plan_number=task.plan_number,
        leases=leases,
        published=lambda counts: log.part(asdict(counts)),
        breaker=Breaker(tolerated=plan.max_bad_fraction),
        order=plan.order,
        replicas=plan.layout.replicas,
    )
    try:
        with _beats(task, dispatcher, log):
            return await _until_told_to_leave(task, plan, dispatcher)
    finally:
        log.close(answer_p95_s=dispatcher.latencies.p95_s())


async def _first_unit(run: RunDir, dispatcher: Dispatcher) -> OpenUnit | None:
    """A unit to begin with; None when all are published, or others work on those that are not.

    An owner that died on another node is known to be dead only once its heartbeat was seen to
    stand still. Who left before that would leave its units for good, however often resumed.
    """
    given_up = time.monotonic() + TAKE_OVER_S
    while (unit := await asyncio.to_thread(dispatcher.claim)) is None:
        if open_pass(run, dispatcher.identity) is None or time.monotonic() > given_up:
            return None
        await asyncio.sleep(POLL_S)
    return unit


def _nothing_to_claim(task: ReplicaTask, identity: RunIdentity) -> bool:
    """Whether the run is done; if not, others hold what is left, or died a moment ago."""
    done = open_pass(task.run, identity) is None
    task.say("nothing is left to do" if done else "other workers hold all that is left")
    if done:  # whoever published the last part may have died before it said so
        _finish(task.run)
    return done


async def _until_told_to_leave(task: ReplicaTask, plan: Plan, dispatcher: Dispatcher) -> bool:
    """Answer until the end; on SIGUSR1 let what is in flight end, on SIGTERM or STOP do not.

    The warning may come long before the end of the job: rows go on being handed over for as long
    as most of them can still be answered.
    """
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(_answer(task, plan, dispatcher))
    least_s = math.inf

    def leave(patience_s: float) -> None:
        nonlocal least_s
        if patience_s >= least_s:  # a launcher hands on what Slurm has told this process already
            return
        least_s = patience_s
        if dispatcher.phase == "starting":
            patience_s = 0.0
        more_s = max(0.0, patience_s - (dispatcher.latencies.p95_s() or patience_s))
        task.say(f"leaving: rows are begun for {more_s:.0f} s, and end within {patience_s:.0f} s")
        if more_s:
            loop.call_later(more_s, dispatcher.leave)
        else:
            dispatcher.leave()
        loop.call_later(patience_s, work.cancel)

    async def watch_stop() -> None:
        """A run can be cancelled from where no signal gets to this process."""
        while not await asyncio.to_thread(task.run.stop_path.exists):  # noqa: ASYNC110 - a file
            await asyncio.sleep(BEAT_S)
        leave(0.0)

    warned_s = max(0.0, plan.warn_before_s - CLOSING_S)
    patience_s = {signal.SIGUSR1: warned_s, signal.SIGTERM: 0.0}
    watching = asyncio.ensure_future(watch_stop())
    try:
        with _heard(lambda number: loop.call_soon_threadsafe(leave, patience_s[number])):
            return await work
    except asyncio.CancelledError:
        return False
    finally:
        watching.cancel()


@contextlib.contextmanager
def _heard(told: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Have ``told`` called by what asks a step to leave; at the end that does again what it did.

    A warning then does nothing, as `launcher.runner.rank` starts this process: Slurm tells it, and
    launchers hand that on whenever they get to it. A loop's own handlers would leave the default
    behind, which is death. Where a signal wakes another thread, it is seen by the next beat.
    """

    def hear(number: int, _: object) -> None:
        told(signal.Signals(number))

    before = {n: signal.signal(n, hear) for n in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _answer(task: ReplicaTask, plan: Plan, dispatcher: Dispatcher) -> bool:
    first = await _first_unit(task.run, dispatcher)
    if first is None:  # before anything heavy is imported
        return _nothing_to_claim(task, dispatcher.identity)
    # Before the engine's libraries are imported: what prepares rows starts at the same time.
    rows = _rows(task, plan, dispatcher.identity)
    keeper = EngineKeeper(
        plan.engine,
        lambda: create(plan.engine, engine_setup(task, plan, 0)),
        restarts=plan.engine_restarts if plan.step.tasks == 1 else 0,
        say=task.say,
    )
    try:
        await keeper.start()
        done = await dispatcher.work(keeper, rows, first)
        if done:
            _finish(task.run)
        return done
    finally:
        rows.close()
        await keeper.close()


def _rows(task: ReplicaTask, plan: Plan, identity: RunIdentity) -> Rows:
    setup = engine_setup(task, plan, 0)
    if not encodes_apart(plan.engine, setup):
        return InThread(identity)
    count = min(_MOST_PREPARERS, max(1, setup.threads // _CORES_PER_PREPARER))
    return InProcesses([task.plan_number], count)


def _finish(run: RunDir) -> None:
    finish(run, read_parts(run.path / "metrics"))


def engine_setup(task: ReplicaTask, plan: Plan, rank: int) -> EngineSetup:
    """The view of the plan that the engine has in ``rank``.

    CPU threads are shared by the processes of this node, unless Slurm already gave each its own;
    the near CPUs of a bound process are no more than it may use.
    """
    own = len(os.sched_getaffinity(0))
    cores = int(os.environ.get(CPUS_GIVEN, own))
    sharing = plan.step.tasks_per_node * plan.layout.allocation.replicas
    return EngineSetup(
        model_path=plan.model_path,
        cut=plan.layout.cut,
        options=plan.engine_options,
        threads=max(1, min(own, cores // sharing)),
        rank=rank,
        tasks=plan.step.tasks,
        meeting=task.meeting if plan.step.tasks > 1 else None,
        arguments=task.run.engine_path(task.plan_number),
    )


@contextlib.contextmanager
def _beats(task: ReplicaTask, dispatcher: Dispatcher, log: WorkerLog) -> Iterator[None]:
    """Report how the worker stands every few seconds."""

    async def repeat() -> None:
        for number in itertools.count(1):
            t, figures = dispatcher.totals, dispatcher.figures()
            beat = Beat(
                replica=task.replica,
                phase=dispatcher.phase,
                rows=t.rows,
                in_flight=int(figures.get("in_flight", 0)),
                queued=figures.get("queued"),
                running=figures.get("running"),
                kv_cache_usage=figures.get("kv_cache_usage"),
                generated_tokens=figures.get("generated_tokens"),
                engine_restarts=int(figures.get("engine_restarts", 0)),
                prompt_tokens=t.prompt_tokens,
                completion_tokens=t.completion_tokens,
                engine_version=dispatcher.engine_version,
            )
            with contextlib.suppress(OSError):  # a full disk stops no work
                log.beat(beat)
            if number % _BEATS_PER_LINE == 0 and beat.phase != "starting":
                task.say(log.summary())
            await asyncio.sleep(BEAT_S)

    ticker = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        ticker.cancel()
