"""What each rank of a team does in a process of its own; it prints one JSON object.

python team_ranks.py CASE RANK WORLD FOLDER [MODEL]
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from launcher.engines.base import Completion, Engine, EngineSetup, Request
from launcher.engines.causal_lm import Model, TransformersOptions, load
from launcher.engines.registry import create, follow
from launcher.engines.team import Team, quiet_torch
from launcher.errors import RowError, RunError
from launcher.plan.types import Cut, Sampling

__all__ = ["alone", "converse", "float64_logits", "setup"]

_IDS = [[1, 504, 3575, 282, 4649, 314, 351, 2, 49151, 7]]


def alone(model: Path) -> EngineSetup:
    return setup(model, 0, 1, None)


def setup(model: Path, rank: int, world: int, meeting: Path | None) -> EngineSetup:
    return EngineSetup(
        model_path=str(model),
        cut=Cut(tp=world),
        options={"dtype": "float32"},
        threads=1,
        rank=rank,
        meeting=meeting,
    )


def _chat(name: str, content: str, **sampling: Any) -> Request:
    return Request(
        id=name,
        messages=({"role": "user", "content": content},),
        sampling=Sampling(**{"max_tokens": 12, **sampling}),
    )


_ROWS = (
    _chat("greedy", "What is the capital of France?"),
    _chat("stopped", "What is the capital of France?", stop=(" Paris",)),
    _chat("drawn", "Name a colour and a city.", temperature=0.9, seed=1),
    _chat("twin", "Name a colour and a city.", temperature=0.9, seed=2),
    _chat(
        "narrow",
        "Tell a story about a very old bridge.",
        temperature=1.2,
        top_k=5,
        seed=3,
        logprobs=2,
    ),
    _chat("short", "What is the capital of France?", max_tokens=3),
)
_ENDLESS = _chat("endless", "Tell a story.", max_tokens=4000)


async def converse(engine: Engine) -> dict[str, Any]:
    """Every answer of one cohort, and whether its longest row ran on when all had been given."""
    await engine.start()
    try:
        blocker = asyncio.ensure_future(engine.generate(_ENDLESS))
        while not engine.stats()["generated_tokens"]:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.001)
        endless = asyncio.ensure_future(engine.generate(_chat("last", "Count.", max_tokens=4000)))
        rows = [asyncio.ensure_future(engine.generate(row)) for row in _ROWS]
        while engine.stats()["queued"] <= len(_ROWS):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        await engine.abort(_ENDLESS.id)
        answers = await asyncio.gather(*rows)
        ran_on = not endless.done()
    finally:
        await engine.close()
    ends = await asyncio.gather(blocker, endless, return_exceptions=True)
    return {
        "answers": {row.id: a._asdict() for row, a in zip(_ROWS, answers, strict=True)},
        "ran_on": ran_on,
        "ends": [_code(end) for end in ends],
    }


def _code(end: Completion | BaseException) -> str | None:
    if isinstance(end, RunError):
        return end.problems[0].code
    return end.code if isinstance(end, RowError) else None


def float64_logits(model: Model) -> list[list[float]]:
    """Logits of every position, of which in float64 no order of sums changes 9 digits."""
    import torch

    with torch.no_grad():
        logits: list[list[float]] = model.module.double()(torch.tensor(_IDS)).logits[0].tolist()
    return logits


def _numbers(model: Model) -> dict[str, int]:
    from torch.distributed.tensor import DTensor

    found = {"cut": 0, "held_of_cut": 0, "whole": 0}
    for parameter in model.module.parameters():
        if isinstance(parameter, DTensor) and any(p.is_shard() for p in parameter.placements):
            found["cut"] += parameter.numel()
            found["held_of_cut"] += parameter.to_local().numel()
        else:
            found["whole"] += parameter.numel()
    return found


def _talk(rank: int, world: int, folder: Path) -> dict[str, Any]:
    import torch

    team = Team(rank, world, folder / "first")
    said = (1, {"rows": [[2, 3]]}, "x" * 10**6, None)
    heard = [team.share(value if team.leads else "mine") for value in said]
    agreed = team.agree(torch.tensor([rank, rank + 1])).tolist()
    team.leave()
    return {"heard": heard == list(said), "agreed": agreed}


def _abandoned(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """The ranks meet again, and the first one is killed."""
    team = Team(rank, world, folder / "second")
    team.share(None)
    if team.leads:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        team.share(None)
    except RuntimeError as exc:
        return {"abandoned": type(exc).__name__}
    return {"abandoned": None}


def _model(rank: int, world: int, folder: Path, model: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    serving = setup(model, rank, world, folder / "first")
    if rank == 0:
        found |= asyncio.run(converse(create("transformers", serving)))
    else:
        follow("transformers", serving)
    own = load(setup(model, rank, world, folder / "second"), TransformersOptions(dtype="float32"))
    found |= {"numbers": _numbers(own), "logits": float64_logits(own)}
    own.team.leave()
    return found


def main() -> None:
    case, rank, world, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    quiet_torch()
    if case == "model":
        found = _model(rank, world, folder, Path(sys.argv[5]))
    else:
        found = _talk(rank, world, folder)
        print(json.dumps(found), flush=True)
        found |= _abandoned(rank, world, folder)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
