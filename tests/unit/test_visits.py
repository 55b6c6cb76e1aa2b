"""The last units are gone through several times, by all workers, their long rows first."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dispatching import scene_of
from run_making import make_identity, make_run
from simulated_engine import Cost, SimulatedEngine
from virtual_time import run as run_virtually

from benchmarks.makespan import one_dispatcher
from benchmarks.makespan_rows import Lengths as Drawn
from benchmarks.makespan_rows import input_lines, prompts
from launcher.data.leases import TTL_S
from launcher.engines.base import Completion, Request
from launcher.plan.types import PromptSpec, RunIdentity, Sampling
from launcher.rundir import RunDir
from launcher.runner.keeper import EngineKeeper
from launcher.runner.preparing import InThread
from launcher.runner.ready import Lengths, Order

CHAT = Drawn(prompt_median=30, prompt_sigma=0.1, median=60, sigma=1.2, most=4096)
COST = Cost(step_s=0.01, request_s=0.0, prompt_token_s=0.0)
SLOTS, ROWS = 8, 480


@dataclass
class Asked:
    """What the engines of one world were asked for, in order, and by which of them."""

    rows: list[tuple[int, int, int]] = field(default_factory=list)  # engine, offset, tokens

    def of(self, engine: int) -> list[int]:
        return [offset for number, offset, _ in self.rows if number == engine]

    def times(self) -> Counter[int]:
        return Counter(offset for _, offset, _ in self.rows)


class Listening(SimulatedEngine):
    def __init__(self, number: int, asked: Asked) -> None:
        super().__init__(CHAT.of_request, COST, slots=SLOTS)
        self._number, self._asked = number, asked

    async def generate(self, request: Request) -> Completion:
        offset = int(request.id.partition(":")[2])
        self._asked.rows.append((self._number, offset, request.sampling.max_tokens))
        return await super().generate(request)


@dataclass
class World:
    """Workers over one run, as nodes that can go without a word."""

    folder: Path
    identity: RunIdentity
    asked: Asked = field(default_factory=Asked)

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / "run")

    async def work(self, *numbers: int, lost: int | None = None, at_s: float = 0.0) -> float:
        """When the last of the workers ``numbers`` ended; ``lost`` is one that goes at ``at_s``."""
        loop = asyncio.get_running_loop()
        tasks = {
            number: asyncio.ensure_future(
                one_dispatcher(
                    self.folder,
                    self.identity,
                    [],
                    len(numbers),
                    number,
                    Listening(number, self.asked),
                )
            )
            for number in numbers
        }
        if lost is not None:
            loop.call_at(at_s, tasks[lost].cancel)
        found = await asyncio.gather(*tasks.values(), return_exceptions=True)
        for number, error in zip(tasks, found, strict=True):
            if error is not None and number != lost:
                raise error
        return loop.time()

    def leases(self) -> list[str]:
        paths = sorted((self.run.path / "leases").iterdir())
        return [path.read_text() for path in paths]

    def rows(self) -> Counter[int]:
        """How often each row, by its offset, is in a part."""
        parts = sorted((self.run.path / "parts").glob("*.jsonl"))
        lines = [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]
        return Counter(line["row"][1] for line in lines)


def world(tmp_path: Path, *, known: bool = True) -> World:
    data = input_lines(CHAT, prompts(CHAT, ROWS), known=known)
    identity = dataclasses.replace(
        make_identity(tmp_path, data),
        prompt=PromptSpec(chat=False),
        sampling=Sampling(max_tokens=CHAT.most),
    )
    make_run(tmp_path / "run", identity)
    return World(tmp_path, identity)


def test_each_row_is_asked_once_whoever_begins_it_and_whoever_makes_the_part(
    tmp_path: Path,
) -> None:
    found = world(tmp_path)
    run_virtually(found.work(0, 1, 2))
    assert set(found.asked.times().values()) == {1}
    assert len(found.asked.rows) == ROWS
    assert set(found.rows().values()) == {1}
    assert len(found.rows()) == ROWS
    assert sum(lease.startswith("shared") for lease in found.leases()) > 20
    assert list((found.run.path / "wal").iterdir()) == []


def test_the_long_rows_of_what_is_left_are_begun_before_its_short_ones(tmp_path: Path) -> None:
    found = world(tmp_path)
    run_virtually(found.work(0, 1, 2))
    tokens = [tokens for _, _, tokens in found.asked.rows]
    longest = sorted(tokens)[-ROWS // 10]
    begun = [place for place, count in enumerate(tokens) if count >= longest]
    # They would be begun anywhere; the first unit of each worker is answered as a whole.
    assert begun[len(begun) // 2] < 0.3 * ROWS
    assert begun[-1] < 0.7 * ROWS


@pytest.mark.parametrize("at_s", [3.0, 8.0, 14.0])
def test_rows_of_a_worker_that_goes_without_a_word_are_asked_again_and_no_others(
    tmp_path: Path, at_s: float
) -> None:
    found = world(tmp_path)
    ended_s = run_virtually(found.work(0, 1, 2, lost=1, at_s=at_s))
    assert set(found.rows().values()) == {1}
    assert len(found.rows()) == ROWS
    twice = {offset for offset, times in found.asked.times().items() if times > 1}
    assert twice
    assert twice <= set(found.asked.of(1))
    # In flight then, or finished in the half second that a log lags behind.
    assert len(twice) <= SLOTS + 4 + 2 * SLOTS
    assert max(found.asked.times().values()) == 2
    assert ended_s > at_s + TTL_S


def test_a_later_start_asks_only_for_what_no_log_has(tmp_path: Path) -> None:
    found = world(tmp_path)

    async def cut_off(at_s: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(found.work(0, 1, 2), at_s)

    run_virtually(cut_off(15.0))
    published = len(found.rows())
    first = len(found.asked.rows)
    assert any(lease.startswith("shared") for lease in found.leases())
    run_virtually(found.work(10, 11))
    assert set(found.rows().values()) == {1}
    assert len(found.rows()) == ROWS
    assert max(found.asked.times().values()) == 2
    assert len(found.asked.rows) - ROWS <= 3 * (SLOTS + 4 + 2 * SLOTS)
    assert published < first < ROWS


def test_rows_of_unknown_and_equal_expectation_are_taken_as_they_come(tmp_path: Path) -> None:
    found = world(tmp_path, known=False)
    run_virtually(found.work(0, 1))
    assert not any(lease.startswith("shared") for lease in found.leases())
    assert set(found.rows().values()) == set(found.asked.times().values()) == {1}


@pytest.mark.parametrize("order", ["input", "random"])
def test_other_orders_have_no_visits(tmp_path: Path, order: Order) -> None:
    found = world(tmp_path)

    async def work() -> None:
        dispatcher = scene_of(tmp_path, found.identity).dispatcher
        dispatcher.order = order
        unit = dispatcher.claim()
        assert unit is not None
        keeper = EngineKeeper("told", lambda: Listening(0, found.asked))
        await keeper.start()
        rows = InThread(found.identity)
        try:
            assert await dispatcher.work(keeper, rows, unit)
        finally:
            rows.close()

    run_virtually(work())
    assert not any(lease.startswith("shared") for lease in found.leases())


def learned(sizes: list[int], answers: dict[int, int], limit: int = 1000) -> Lengths:
    """What is known after prompts of ``sizes`` and, by size, ``answers``."""
    found = Lengths()
    for size in sizes:
        found.see(size, limit)
    for size, tokens in answers.items():
        for _ in range(400):
            found.note(size, limit, tokens)
    return found


def test_long_is_the_length_in_which_the_mean_token_lies() -> None:
    found = learned([10] * 90 + [100] * 10, {10: 100, 100: 900})
    # 90 answers of 100 tokens and 10 of 900: half of all tokens are of either kind.
    assert found.long() == pytest.approx(500, rel=0.05)


def test_nothing_is_long_where_all_are_alike_or_nothing_is_known() -> None:
    assert learned([10] * 50 + [100] * 50, {10: 100, 100: 130}).long() is None
    assert learned([10] * 50 + [100] * 50, {}).long() is None
    assert Lengths().long() is None


def test_limits_of_their_own_tell_long_rows_before_any_answer() -> None:
    found = Lengths()
    for limit in [100] * 90 + [900] * 10:
        found.see(10, limit)
    assert found.long() == pytest.approx(250)  # of half their limits, as a first guess
