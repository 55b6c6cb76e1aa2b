"""A dispatcher over a run of equal units, and an engine that does what a test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from run_making import json_lines, make_identity, make_run

from launcher.data.leases import Leases
from launcher.data.open_unit import OpenUnit
from launcher.data.tally import PartCounts
from launcher.engines.base import Capabilities, Completion, Request
from launcher.plan.types import RunIdentity, UnitGrid
from launcher.rundir import RunDir
from launcher.runner.breaker import Breaker
from launcher.runner.dispatch import Dispatcher
from launcher.runner.keeper import EngineKeeper
from launcher.runner.preparing import InThread

__all__ = [
    "LIMIT_S",
    "ROWS_PER_UNIT",
    "Scene",
    "ToldEngine",
    "at_once",
    "scene",
    "scene_of",
    "until",
    "work",
]

ROWS_PER_UNIT = 4
LIMIT_S = 20.0


@dataclass
class ToldEngine:
    """Answers with what ``tell`` does; counts how many requests it holds at once."""

    tell: Callable[[str], Awaitable[str]]
    window: int = 8
    held: int = 0
    most: int = 0
    asked: list[str] = field(default_factory=list)

    async def start(self) -> Capabilities:
        return Capabilities(max_in_flight=self.window, chat_template=False)

    async def generate(self, request: Request) -> Completion:
        assert request.text is not None
        self.asked.append(request.text)
        self.held += 1
        self.most = max(self.most, self.held)
        try:
            answer = await self.tell(request.text)
        finally:
            self.held -= 1
        return Completion(text=answer, finish_reason="stop", prompt_tokens=2, completion_tokens=3)

    async def abort(self, request_id: str) -> None:
        raise NotImplementedError

    def stats(self) -> Mapping[str, float]:
        return {}

    async def close(self) -> None:
        return None


async def at_once(text: str) -> str:
    return text


@dataclass
class Scene:
    """A run of ``units`` units of equal rows, and its dispatcher."""

    dispatcher: Dispatcher
    counts: list[PartCounts]

    @property
    def run(self) -> RunDir:
        return self.dispatcher.run

    def published(self) -> set[int]:
        return self.run.published_units()

    def part(self, unit: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run.part_path(unit).read_bytes().splitlines()]

    def texts(self) -> list[str]:
        rows = [row for unit in sorted(self.published()) for row in self.part(unit)]
        return [row["response"]["text"] for row in rows]

    async def work(
        self, engine: ToldEngine, window: int, unit: OpenUnit, *, restarts: int = 0
    ) -> bool:
        """Start ``engine`` and answer all units, beginning with ``unit``."""
        engine.window = window
        keeper = EngineKeeper("told", lambda: engine, restarts=restarts)
        await keeper.start()
        rows = InThread(self.dispatcher.identity)
        try:
            return await self.dispatcher.work(keeper, rows, unit)
        finally:
            rows.close()

    def claim(self) -> OpenUnit:
        unit = self.dispatcher.claim()
        assert unit is not None
        return unit


def scene(
    folder: Path, units: int, *, rows_per_unit: int = ROWS_PER_UNIT, worker: str = "worker"
) -> Scene:
    """A run of ``units`` units in ``folder``; the same one again for another ``worker``."""
    lines = [{"text": f"row-{n:04}"} for n in range(units * rows_per_unit)]
    data = json_lines(lines)
    size = len(data) // units
    identity = make_identity(
        folder,
        data,
        grid=UnitGrid(total_bytes=len(data), unit_bytes=size, head_units=units, tail_bytes=size),
    )
    return scene_of(folder, identity, worker)


def scene_of(folder: Path, identity: RunIdentity, worker: str = "worker") -> Scene:
    """The run of ``identity`` in ``folder``, which is made unless it is there."""
    counts: list[PartCounts] = []
    run = RunDir(folder / "run")
    if not run.identity_path.exists():
        make_run(run.path, identity)
    return Scene(
        Dispatcher(
            run=run,
            identity=identity,
            plan_number="0001",
            leases=Leases(run, worker),
            breaker=Breaker(tolerated=0.0),
            published=counts.append,
        ),
        counts,
    )


def work(found: Scene, engine: ToldEngine, window: int = 8) -> bool:
    async def limited() -> bool:
        unit = found.claim()
        return await asyncio.wait_for(found.work(engine, window, unit), LIMIT_S)

    return asyncio.run(limited())


async def until(true: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not true():
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.005)
