"""One vLLM under a full window for some seconds, by the engine protocol that runs use.

What is found goes into GPU_SAID, a line for each event: the ready engine, how it stood every half
second, how it failed. The process ends without ceremony: whoever started it kills what is left.

    GPU_SAID=FILE python benchmarks/planner_engine.py --model DIR --options JSON …
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_engine import Counted, say  # noqa: E402
from benchmarks.planner_predict import NEW, NEW_SPREAD, PROMPT, PROMPT_SPREAD  # noqa: E402
from launcher.engines.base import EngineSetup, Request  # noqa: E402
from launcher.engines.base import window as full_window  # noqa: E402
from launcher.engines.registry import create  # noqa: E402
from launcher.errors import RunError  # noqa: E402
from launcher.plan.types import Cut, Sampling  # noqa: E402

BEAT_S = 0.5
FIRST_TOKEN = 10  # those before it mean something in many vocabularies


async def load(engine: Any, args: argparse.Namespace, in_flight: int) -> None:
    """Rows without end, ``in_flight`` at a time, until ``--seconds`` are over."""
    draw, number = random.Random(0), itertools.count()
    counted = Counted(engine)
    samples = []

    async def ask(most: int) -> None:
        length = draw.randint(PROMPT - PROMPT_SPREAD, PROMPT + PROMPT_SPREAD)
        prompt = tuple(draw.choices(range(FIRST_TOKEN, args.vocabulary), k=length))
        sampling = Sampling(max_tokens=most)
        answer = await engine.generate(
            Request(id=f"{next(number)}:0", tokens=prompt, sampling=sampling)
        )
        counted.add(answer.prompt_tokens, answer.completion_tokens)

    async def rows(place: int) -> None:
        # In the middle of a run rows end at any time, and so they are begun here.
        if place < args.staggered:
            await ask(draw.randint(1, NEW))
        while True:
            await ask(draw.randint(NEW - NEW_SPREAD, NEW + NEW_SPREAD))

    async def beats() -> None:
        while True:
            stats = engine.stats()
            keys = ("generated_tokens", "running", "queued", "kv_cache_usage")
            state = [float(stats.get(key, 0)) for key in keys]
            samples.append([time.time(), counted.rows, counted.prompt_tokens, *state])
            await asyncio.sleep(BEAT_S)

    tasks = [asyncio.create_task(rows(place)) for place in range(in_flight)]
    tasks.append(asyncio.create_task(beats()))
    done, _ = await asyncio.wait(tasks, timeout=args.seconds, return_when=asyncio.FIRST_EXCEPTION)
    say(samples=samples, rows=counted.rows)
    for task in done:
        task.result()


async def converse(args: argparse.Namespace) -> None:
    """Say what is found, and leave at once: rows are in flight, and nobody waits for them."""
    code = 1
    try:
        await found(args)
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


async def found(args: argparse.Namespace) -> None:
    setup = EngineSetup(
        model_path=str(args.model),
        cut=Cut(tp=args.tp, pp=args.pp),
        options=json.loads(args.options),
        threads=len(os.sched_getaffinity(0)),
    )
    engine = create("vllm", setup)
    step = "start"
    try:
        capabilities = await engine.start()
        window = full_window(capabilities.max_in_flight)
        say(ready=time.time(), window=window, kv_tokens=capabilities.kv_tokens)
        step = "load"
        await load(engine, args, min(args.in_flight or window, window))
        say(done=time.time())
    except RunError as exc:
        problem = exc.problems[0]
        say(failed=step, code=problem.code, message=problem.message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--options", default="{}", help="engine_options as JSON")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--in-flight", type=int, default=0, help="fewer rows than a full window")
    parser.add_argument("--staggered", type=int, default=0, help="rows that begin in the middle")
    parser.add_argument("--seconds", type=float, default=30.0)
    asyncio.run(converse(parser.parse_args()))


if __name__ == "__main__":
    main()
