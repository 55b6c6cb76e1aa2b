"""How long a run takes, against the least that it could: 16 replicas on a simulated clock.

The dispatchers are real, with leases, logs and parts on a disk in memory; engines are simulated
(`tests/simulated_engine.py`), and so is the time between their tokens (`tests/virtual_time.py`).
The bound is all work over the capacity of all replicas while they live, or the longest row alone.
Beside it stand simpler ways to divide the rows, and orders that know what cannot be known
(`makespan_ways.py`). The budgets are for the scenario with one slow replica.

    python benchmarks/makespan.py [--lengths NAME]... [--trouble NAME]... [--known no|yes]
        [--way NAME]... [--rows-a-slot N] [--replicas N] [--slots N] [--waiting N] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from dispatching import scene_of  # noqa: E402
from run_making import make_identity, make_run  # noqa: E402
from simulated_engine import LLAMA_8B_ON_H100 as COST  # noqa: E402
from simulated_engine import SimulatedEngine, Use  # noqa: E402
from virtual_time import run as run_virtually  # noqa: E402

from benchmarks.makespan_rows import LENGTHS, Lengths, input_lines, prompts  # noqa: E402
from benchmarks.makespan_ways import FIXED_WAYS, feed, know_end, order_of  # noqa: E402
from launcher.data.leases import BEAT_S  # noqa: E402
from launcher.data.passes import open_pass  # noqa: E402
from launcher.data.rows import UnitReader  # noqa: E402
from launcher.errors import RunError  # noqa: E402
from launcher.plan import grid  # noqa: E402
from launcher.plan.types import PromptSpec, RunIdentity, Sampling  # noqa: E402
from launcher.process import ProcessIds  # noqa: E402
from launcher.rundir import RunDir  # noqa: E402
from launcher.rundir import replace as replace_file  # noqa: E402
from launcher.runner import dispatch  # noqa: E402
from launcher.runner.keeper import EngineKeeper  # noqa: E402
from launcher.runner.preparing import InThread  # noqa: E402

DISPATCHER = "dispatcher"
SLOW, LATE_S, DIES_AT = 0.7, 60.0, 0.5  # the latter of the run's own least time
# Who has nothing left to do looks at every lease that is left, time and again. In one process that
# takes longer than all else, so less often here; it delays only who takes over from the dead.
IDLE_POLL_S = 5.0
BUDGET = {False: 1.10, True: 1.05}
TROUBLES = {
    "equal": (),
    "slow": ("slow",),
    "late": ("late",),
    "lost": ("lost",),  # the node goes without a word
    "died": ("died",),  # the engine does, and the replica says so
    "all": ("slow", "late", "lost"),
}
# What a plain call shows: lengths, trouble, whether lengths are known, and ways beside ours.
NAIVE = ("static", "barriers", "in-order")
ORACLES = ("longest:1024", "longest")
DEFAULT: tuple[tuple[str, str, bool, tuple[str, ...]], ...] = (
    ("chat", "equal", False, NAIVE),
    ("chat", "slow", False, ("static", "in-order")),
    ("chat", "late", False, ("in-order",)),
    ("chat", "lost", False, ("in-order",)),
    ("chat", "all", False, ("in-order",)),
    ("chat", "slow", True, ORACLES),
    ("reasoning", "slow", False, ("in-order",)),
    ("reasoning", "slow", True, ORACLES),
    ("growing", "slow", False, ("in-order",)),
)


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One replica: its speed, when it starts, and when it ends without having to."""

    speed: float = 1.0
    late_s: float = 0.0
    lost_s: float | None = None
    dies_s: float | None = None

    def capacity_s(self, until_s: float) -> float:
        """Seconds of a whole engine that it gives until then."""
        ends = (until_s, self.lost_s, self.dies_s)
        return self.speed * max(0.0, min(e for e in ends if e is not None) - self.late_s)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Rows and replicas; ``seed`` shuffles what threads do at the same moment."""

    lengths: str
    trouble: str
    known: bool
    replicas: int = 16
    slots: int = 256
    rows_a_slot: int = 20
    seed: int = 0
    waiting: int | None = None

    @property
    def model(self) -> Lengths:
        return LENGTHS[self.lengths]

    @property
    def surplus(self) -> int:
        """Requests that wait in a full engine, as it is started."""
        return self.waiting or 0

    @property
    def rows(self) -> int:
        return self.rows_a_slot * self.slots * self.replicas

    def each(self, sizes: Sequence[tuple[int, int]]) -> list[Replica]:
        """The replicas; who has trouble is not who has other trouble."""
        found = [Replica() for _ in range(self.replicas)]
        dies_s = DIES_AT * bound_s(sizes, found, self.slots)
        for number, trouble in enumerate(TROUBLES[self.trouble]):
            change = {"slow": {"speed": SLOW}, "late": {"late_s": LATE_S}}
            change |= {"lost": {"lost_s": dies_s}, "died": {"dies_s": dies_s}}
            place = (1 + number * max(1, self.replicas // 4)) % self.replicas
            found[place] = replace(found[place], **change[trouble])
        return found


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one way made of one scenario; ``tail`` as the table says."""

    scenario: Scenario
    way: str
    makespan_s: float
    bound_s: float
    ratio: float
    below_half_s: float
    last_tenth_use: float
    wall_s: float


def bound_s(sizes: Sequence[tuple[int, int]], replicas: Sequence[Replica], slots: int) -> float:
    """The least time in which ``sizes``, (prompt, new) tokens of each row, can be answered."""
    work_s = sum(COST.at_best(prompt, new, slots) for prompt, new in sizes)
    low = max(COST.alone(prompt, new) for prompt, new in sizes)
    high = low + work_s + LATE_S
    if sum(r.capacity_s(low) for r in replicas) >= work_s:
        return low
    while (1 + 1e-9) * low < high:
        middle = (low + high) / 2
        enough = sum(r.capacity_s(middle) for r in replicas) >= work_s
        low, high = (low, middle) if enough else (middle, high)
    return high


def simulate(scenario: Scenario, way: str) -> Outcome:
    """One way through one scenario, in a fresh directory."""
    started_s = time.perf_counter()
    texts = prompts(scenario.model, scenario.rows)
    sizes = [scenario.model.of(text) for text in texts]
    replicas = scenario.each(sizes)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        identity = make_input(Path(name), scenario, texts)
        use = Use()
        if way == DISPATCHER:
            work = by_dispatchers(Path(name), identity, scenario, replicas, use)
        else:
            news = [new for _, new in sizes]
            work = by_order(way, texts, news, rows_of_units(identity), scenario, replicas, use)
        makespan_s = run_virtually(work, seed=scenario.seed)
        if way == DISPATCHER:
            check_answered(RunDir(Path(name) / "run"), scenario.rows)
    return outcome(
        scenario,
        way,
        makespan_s,
        bound_s(sizes, replicas, scenario.slots),
        use,
        time.perf_counter() - started_s,
    )


def outcome(
    scenario: Scenario, way: str, makespan_s: float, least_s: float, use: Use, wall_s: float
) -> Outcome:
    slots = scenario.slots * scenario.replicas
    ended = sorted(use.ended.values())
    last_s = ended[len(ended) * 9 // 10]
    half_s = next((at for at, running in use.running if running >= slots / 2), 0.0)
    area, _ = use.area(last_s, makespan_s)
    return Outcome(
        scenario=scenario,
        way=way,
        makespan_s=makespan_s,
        bound_s=least_s,
        ratio=makespan_s / least_s,
        below_half_s=use.area(half_s, makespan_s, slots // 2)[1],
        last_tenth_use=area / (slots * max(makespan_s - last_s, 1e-9)),
        wall_s=wall_s,
    )


def make_input(folder: Path, scenario: Scenario, texts: Sequence[str]) -> RunIdentity:
    """A run of its own prompts, without templates, on the grid that a submission cuts."""
    data = input_lines(scenario.model, texts, known=scenario.known)
    return replace(
        make_identity(folder, data),
        prompt=PromptSpec(chat=False),
        sampling=Sampling(max_tokens=scenario.model.most),
    )


def rows_of_units(identity: RunIdentity) -> list[int]:
    with UnitReader(identity.inputs, identity.grid) as reader:
        return [sum(1 for _ in reader.read(unit)) for unit in grid.units(identity.grid)]


def engine_of(scenario: Scenario, replica: Replica, use: Use) -> SimulatedEngine:
    return SimulatedEngine(
        scenario.model.of_request,
        COST,
        slots=scenario.slots,
        waiting=scenario.surplus,
        speed=replica.speed,
        late_s=replica.late_s,
        dies_s=replica.dies_s,
        use=use,
    )


async def by_dispatchers(
    folder: Path, identity: RunIdentity, scenario: Scenario, replicas: Sequence[Replica], use: Use
) -> float:
    """The real dispatcher in each replica; when the last part was out."""
    dispatch.POLL_S = IDLE_POLL_S
    make_run(folder / "run", identity)
    published: list[float] = []
    one = functools.partial(one_dispatcher, folder, identity, published, len(replicas))
    engines = [engine_of(scenario, replica, use) for replica in replicas]
    await together([one(number, engine) for number, engine in enumerate(engines)], replicas)
    return max(published)


async def one_dispatcher(
    folder: Path,
    identity: RunIdentity,
    published: list[float],
    replicas: int,
    number: int,
    engine: SimulatedEngine,
) -> None:
    """As launcher/runner/replica.py goes about it."""
    loop = asyncio.get_running_loop()
    worker = f"1.0.s{number}"
    dispatcher = scene_of(folder, identity, worker).dispatcher
    dispatcher.replicas = replicas
    dispatcher.leases.clock = loop.time
    dispatcher.published = lambda _: published.append(loop.time())
    async with beating(dispatcher.run, worker):
        while (first := await asyncio.to_thread(dispatcher.claim)) is None:
            if open_pass(dispatcher.run, identity) is None:
                return
            await asyncio.sleep(IDLE_POLL_S)
        keeper = EngineKeeper("simulated", lambda: engine, say=lambda _: None)
        await keeper.start()
        rows = InThread(identity)
        try:
            await dispatcher.work(keeper, rows, first)
        finally:
            rows.close()


@contextlib.asynccontextmanager
async def beating(run: RunDir, worker: str) -> AsyncIterator[None]:
    """A heartbeat by the simulated clock. Who is cancelled is a node that went without a word."""
    counter = 0
    # Each on a node of its own: only the counter tells others whether it lives.
    process = asdict(replace(ProcessIds.of(os.getpid()), host=worker))

    def beat(*, released: bool = False) -> None:
        nonlocal counter
        counter += 1
        state = {"counter": counter, "released": released, "process": process}
        path = run.path / "workers" / f"{worker}.hb"
        replace_file(path, json.dumps(state).encode(), sync=False)

    async def repeat() -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            beat()

    beat()
    task = asyncio.ensure_future(repeat())
    try:
        yield
    except asyncio.CancelledError:
        raise
    except BaseException:
        beat(released=True)
        raise
    else:
        beat(released=True)
    finally:
        task.cancel()


async def by_order(
    way: str,
    texts: Sequence[str],
    news: Sequence[int],
    units: Sequence[int],
    scenario: Scenario,
    replicas: Sequence[Replica],
    use: Use,
) -> float:
    order = order_of(way, news, scenario.replicas, units)
    least_s = bound_s([scenario.model.of(text) for text in texts], replicas, scenario.slots)
    know_end(order, least_s, [r.speed for r in replicas], COST.of_step(scenario.slots))
    engines = [engine_of(scenario, replica, use) for replica in replicas]
    await together(
        [feed(engine, texts, order, number) for number, engine in enumerate(engines)], replicas
    )
    assert not order.left
    return max(use.ended.values())


async def together(works: Sequence[Awaitable[None]], replicas: Sequence[Replica]) -> None:
    """All replicas, some of which are lost or die, until the others have ended."""
    loop = asyncio.get_running_loop()
    tasks = [asyncio.ensure_future(work) for work in works]
    for task, replica in zip(tasks, replicas, strict=True):
        if replica.lost_s is not None:
            loop.call_at(replica.lost_s, task.cancel)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for error, replica in zip(found, replicas, strict=True):
        lost = replica.lost_s is not None and isinstance(error, asyncio.CancelledError)
        died = replica.dies_s is not None and isinstance(error, RunError)
        if error is not None and not lost and not died:
            raise error


def check_answered(run: RunDir, rows: int) -> None:
    """Every row is in a part, once."""
    keys: set[tuple[int, int]] = set()
    lines = 0
    for unit in run.published_units():
        for line in run.part_path(unit).read_bytes().splitlines():
            lines += 1
            keys.add(tuple(json.loads(line)["row"]))
    assert lines == len(keys) == rows, f"{rows} rows, {lines} answers, {len(keys)} of them distinct"


def scenarios(args: argparse.Namespace) -> Iterator[tuple[Scenario, str]]:
    """What to simulate: the default set, or every combination of what was asked for."""
    size = {
        "waiting": args.waiting,
        "replicas": args.replicas,
        "slots": args.slots,
        "rows_a_slot": args.rows_a_slot,
    }
    asked = DEFAULT
    if args.lengths or args.trouble or args.known:
        knows = {"no": (False,), "yes": (True,), None: (False, True)}[args.known]
        asked = tuple(
            (lengths, trouble, known, NAIVE if not known else ORACLES)
            for lengths in args.lengths or LENGTHS
            for trouble in args.trouble or TROUBLES
            for known in knows
        )
    for lengths, trouble, known, ways in asked:
        scenario = Scenario(lengths=lengths, trouble=trouble, known=known, seed=args.seed, **size)
        for way in args.way or (DISPATCHER, *ways):
            yield scenario, way


def row_of(found: Outcome) -> str:
    scenario = found.scenario
    known = "known" if scenario.known else "unknown"
    budget = ""
    if found.way == DISPATCHER and scenario.trouble == "slow":
        most = BUDGET[scenario.known]
        budget = f"<= {most:.2f} {'kept' if found.ratio <= most else 'MISSED'}"
    return (
        f"{scenario.lengths:10} {scenario.trouble:6} {known:8} {found.way:13} "
        f"{found.makespan_s:8.1f} {found.bound_s:8.1f} {found.ratio:7.3f} "
        f"{found.below_half_s:9.1f} {100 * found.last_tenth_use:9.0f} {found.wall_s:6.1f}  {budget}"
    )


HEADER = (
    f"{'lengths':10} {'one is':6} {'lengths':8} {'way':13} {'takes s':>8} {'bound s':>8} "
    f"{'ratio':>7} {'< half s':>9} {'last 10 %':>9} {'wall s':>6}  budget\n"
    "(< half: seconds with less than half of all slots in use, once half of them have been;\n"
    " last 10 %: slots in use, in percent, from nine tenths of the rows on)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", action="append", choices=list(LENGTHS))
    parser.add_argument("--trouble", action="append", choices=list(TROUBLES))
    parser.add_argument("--known", choices=["no", "yes"])
    ways = ", ".join((DISPATCHER, *FIXED_WAYS, "longest:N", "shared:N"))
    parser.add_argument("--way", action="append", help=ways)
    parser.add_argument("--rows-a-slot", type=int, default=20)
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--waiting", type=int, help="requests that wait in a full engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.json:
        print(HEADER)
    with ProcessPoolExecutor(args.jobs) as pool:
        found = []
        for one in pool.map(simulate, *zip(*scenarios(args), strict=True)):
            found.append(one)
            if not args.json:
                print(row_of(one), flush=True)
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=1))


if __name__ == "__main__":
    main()
