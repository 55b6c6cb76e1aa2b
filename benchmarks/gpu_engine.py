"""One engine in this process, on the same rows in turns: driven directly, and by the runner.

`gpu_end_to_end.py` starts this, and reads what it found from the file $GPU_SAID. The turns are
``direct`` (the engine's own asynchronous API, with the runner's window), ``runner`` (everything
of hpc-llm but the script: reading, prompts, log, parts, beats) and ``offline`` (vLLM's
`LLM.generate`, alone).

    GPU_SAID=FILE python benchmarks/gpu_engine.py --model DIR --rows FILE --folder DIR …
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_watch import parts_of  # noqa: E402
from launcher.data.leases import Heartbeat, Leases  # noqa: E402
from launcher.engines.base import Capabilities, EngineSetup, Request  # noqa: E402
from launcher.engines.base import window as full_window  # noqa: E402
from launcher.engines.registry import create  # noqa: E402
from launcher.plan.types import Cut, Sampling  # noqa: E402
from launcher.rundir import RunDir  # noqa: E402
from launcher.runner import replica  # noqa: E402
from launcher.telemetry.metrics import WorkerLog  # noqa: E402

STALL_EVERY_S = 0.01
# Turns take this much longer than the warm-up makes one expect.
SLACK = 1.1
# Of the tokens of a warm-up: those after them are made while few rows are left.
BUSY = 0.9

# Seconds since the epoch, rows, their prompt and new tokens, and new tokens by the engine's own
# count, which has those of unfinished rows too.
Sample = tuple[float, int, int, int, float]
Ask = Callable[[str, Any, int], Awaitable[tuple[int, int]]]


def say(**found: Any) -> None:
    """Into a file: engines and their workers print what they like."""
    with Path(os.environ["GPU_SAID"]).open("a") as file:
        file.write(json.dumps(found) + "\n")


class Counted:
    """What has been answered, and how that stood at each beat."""

    def __init__(self, engine: Any) -> None:
        self._stats = engine.stats
        self.rows = self.prompt_tokens = self.new_tokens = 0
        self.samples: list[Sample] = []

    def add(self, prompt_tokens: int, new_tokens: int) -> None:
        self.rows += 1
        self.prompt_tokens += prompt_tokens
        self.new_tokens += new_tokens

    def sample(self) -> None:
        generated = float(self._stats().get("generated_tokens", 0))
        done = self.rows, self.prompt_tokens, self.new_tokens
        self.samples.append((time.time(), *done, generated))

    def rate(self) -> float:
        """New tokens a second, by the engine's count, until most of them were made.

        Prompts are read within that time, as in a turn. The fastest second is one in which none
        is, and was up to 2.4 times as fast as the turn that was cut to it.
        """
        first, last = self.samples[0], self.samples[-1]
        wanted = first[4] + BUSY * (last[4] - first[4])
        for before, after in itertools.pairwise(self.samples):
            if before[4] < wanted <= after[4]:
                share = (wanted - before[4]) / (after[4] - before[4])
                return (wanted - first[4]) / (before[0] - first[0] + share * (after[0] - before[0]))
        return 0.0

    async def beat(self, every_s: float) -> None:
        while True:
            self.sample()
            await asyncio.sleep(every_s)


async def late(found: list[float]) -> None:
    """How much later than asked the loop comes back."""
    while True:
        asked = time.perf_counter() + STALL_EVERY_S
        await asyncio.sleep(STALL_EVERY_S)
        found.append(time.perf_counter() - asked)


def way_in(engine: Any) -> Ask:
    """One prompt to the engine, without anything of ours in between where it is vLLM."""
    llm = own_api(engine)
    if llm is not None:
        return by_async_llm(llm)

    async def by_protocol(key: str, prompt: str | list[int], most: int) -> tuple[int, int]:
        form: dict[str, Any] = {"text" if isinstance(prompt, str) else "tokens": prompt}
        request = Request(id=key, sampling=Sampling(max_tokens=most), **form)
        answer = await engine.generate(request)
        return answer.prompt_tokens, answer.completion_tokens

    return by_protocol


def by_async_llm(llm: Any) -> Ask:
    tokens_input = importlib.import_module("vllm.inputs").tokens_input
    sampling = importlib.import_module("vllm.sampling_params")
    detokenize = not llm.vllm_config.model_config.skip_tokenizer_init

    async def ask(key: str, prompt: str | list[int], most: int) -> tuple[int, int]:
        answer = None
        params = sampling.SamplingParams(
            temperature=0.0,
            max_tokens=most,
            detokenize=detokenize,
            output_kind=sampling.RequestOutputKind.FINAL_ONLY,
        )
        form = prompt if isinstance(prompt, str) else tokens_input(prompt)
        async for answer in llm.generate(form, params, key):  # noqa: B007 - the last one is meant
            pass
        if answer is None:
            raise RuntimeError("no answer")
        return len(answer.prompt_token_ids), len(answer.outputs[0].token_ids)

    return ask


def own_api(engine: Any) -> Any:
    """The `AsyncLLM` inside of an engine; None where it is not vLLM."""
    return getattr(getattr(engine, "_started", None), "llm", None)


async def directly(ask: Ask, rows: Path, window: int, counted: Counted) -> None:
    """Every row of the file, ``window`` of them at once."""
    slots = asyncio.Semaphore(window)
    prefix = f"{time.monotonic_ns()}:"
    tasks: set[asyncio.Task[None]] = set()
    failed: list[BaseException] = []

    async def one(key: str, body: Any) -> None:
        counted.add(*await ask(key, body["prompt"], body["max_tokens"]))

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            failed.append(error)

    with rows.open() as file:
        for number, line in enumerate(file):
            await slots.acquire()
            if failed:
                break
            task = asyncio.create_task(one(f"{prefix}{number}", json.loads(line)["body"]))
            tasks.add(task)
            task.add_done_callback(ended)
    while tasks:
        await asyncio.wait(tuple(tasks))
    if failed:
        raise failed[0]


class Shared:
    """An engine that is ready, and stays so when the runner closes it."""

    def __init__(self, engine: Any, capabilities: Capabilities) -> None:
        self._capabilities = capabilities
        self.generate, self.abort, self.stats = engine.generate, engine.abort, engine.stats

    async def start(self) -> Capabilities:
        return self._capabilities

    async def close(self) -> None:
        pass


def render(folder: Path, rows: Path) -> RunDir:
    """A new run over ``rows``. Its plan names the echo engine, in whose place ours is put."""
    job = {
        "name": "same-engine",
        "engine": "echo",
        "model": "echo",
        "input": {"path": str(rows), "chat": False},
        "output": {"path": "run"},
    }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(job))
    words = ["render", "job.json", "--site", "local", "--out", "run"]
    environ = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "launcher", *words]
    subprocess.run(command, cwd=folder, env=environ, check=True, capture_output=True)
    return RunDir(folder / "run")


async def by_runner(run: RunDir, counted: Counted) -> None:
    """The rows of ``run`` through the runner, in this event loop."""

    class Log(WorkerLog):
        def beat(self, beat: Any) -> None:
            counted.rows = beat.rows
            counted.prompt_tokens = beat.prompt_tokens
            counted.new_tokens = beat.completion_tokens
            counted.sample()
            super().beat(beat)

    vars(replica)["WorkerLog"] = Log  # the one that the runner uses
    task = replica.ReplicaTask(
        run=run, plan_number="0001", replica=0, job="b", restart=0, worker="b.0"
    )
    with Heartbeat(run, task.worker):
        plan, leases = run.plan("0001"), Leases(run, task.worker)
        done = await replica._work(task, run.identity(), plan, leases)  # noqa: SLF001 - one engine, two drivers
    if not done:
        raise RuntimeError(f"{run.path} is not done")
    parts = parts_of(run.path)
    counted.rows = sum(part["ok"] for part in parts)
    counted.prompt_tokens = sum(part["prompt_tokens"] for part in parts)
    counted.new_tokens = sum(part["completion_tokens"] for part in parts)


async def take_turn(
    turn: str, counted: Counted, work: Callable[[Counted], Awaitable[None]], every_s: float
) -> None:
    """One turn; what it did is said, with the time and the lateness of the loop."""
    stalls = [0.0, 0.0]
    beats = [asyncio.ensure_future(late(stalls))]
    if "direct" in turn:  # the runner has beats of its own
        beats.append(asyncio.ensure_future(counted.beat(every_s)))
    cpu_s, started = time.process_time(), time.time()
    try:
        await work(counted)
    finally:
        for beat in beats:
            beat.cancel()
    counted.sample()
    ended = time.time()
    say(
        turn=turn,
        started=started,
        ended=ended,
        rows=counted.rows,
        prompt_tokens=counted.prompt_tokens,
        new_tokens=counted.new_tokens,
        cpu_s=time.process_time() - cpu_s,
        stall_p99_ms=statistics.quantiles(stalls, n=100)[98] * 1000,
        stall_max_ms=max(stalls) * 1000,
        samples=counted.samples,
    )


def first_rows(source: Path, target: Path, count: int) -> Path:
    with source.open() as lines, target.open("w") as out:
        out.writelines(itertools.islice(lines, count))
    return target


async def converse(args: argparse.Namespace) -> None:
    setup = EngineSetup(
        model_path=str(args.model) if args.model else None,
        cut=Cut(tp=args.tp, pp=args.pp),
        options=json.loads(args.options),
        threads=len(os.sched_getaffinity(0)),
    )
    began = time.time()
    engine = create(args.engine, setup)
    try:
        capabilities = await engine.start()
        window = full_window(capabilities.max_in_flight)
        api = "AsyncLLM" if own_api(engine) is not None else "engine protocol"
        say(ready_s=time.time() - began, window=window, api=api)
        vars(replica)["create"] = lambda *_: Shared(engine, capabilities)
        replica.BEAT_S = args.beat_s
        await take_turns(args, engine, window)
    finally:
        await engine.close()


async def take_turns(args: argparse.Namespace, engine: Any, window: int) -> None:
    """A warm-up of each kind, then the turns, on as many rows as take ``--seconds``."""
    turns = args.turns.split(",")
    until = args.started + args.limit_s
    ask = way_in(engine)

    async def one(turn: str, rows: Path, label: str) -> Counted:
        counted = Counted(engine)
        if turn == "direct":
            work = partial(directly, ask, rows, window)
        else:
            run = await asyncio.to_thread(render, args.folder / label, rows)
            work = partial(by_runner, run)
        await take_turn(label, counted, work, args.beat_s)
        return counted

    small = first_rows(args.rows, args.folder / "warm.jsonl", args.warm_rows)
    warm = [await one(turn, small, f"warm-{turn}") for turn in dict.fromkeys(turns)]
    rate = max(counted.rate() for counted in warm)
    mean = warm[0].new_tokens / warm[0].rows
    seconds = min(args.seconds, (until - time.time()) / len(turns) / SLACK)
    count = args.count or max(window * 4, int(rate * seconds / mean))
    rows = first_rows(args.rows, args.folder / "turns.jsonl", count)
    say(warm_tokens_per_s=rate, mean_new_tokens=mean, rows=count, seconds=seconds)
    longest_s = seconds
    for number, turn in enumerate(turns):
        began = time.time()
        if began + longest_s > until:
            say(left_out=turns[number:], would_take_s=longest_s, left_s=until - began)
            break
        await one(turn, rows, f"{turn}-{number}")
        longest_s = max(time.time() - began, longest_s if number else 0.0)


def offline(args: argparse.Namespace) -> None:
    """The same rows by vLLM's own batch API, which takes them all at once."""
    vllm = importlib.import_module("vllm")
    options = json.loads(args.options)
    cut = {"tensor_parallel_size": args.tp, "pipeline_parallel_size": args.pp}
    began = time.time()
    llm = vllm.LLM(model=str(args.model), **cut, **options)
    say(ready_s=time.time() - began)
    bodies = [json.loads(line)["body"] for line in args.rows.open()]
    detokenize = not options.get("skip_tokenizer_init", False)
    params = [
        vllm.SamplingParams(temperature=0.0, max_tokens=body["max_tokens"], detokenize=detokenize)
        for body in bodies
    ]
    given = [body["prompt"] for body in bodies]
    prompts = [p if isinstance(p, str) else {"prompt_token_ids": p} for p in given]
    llm.generate(prompts[: args.warm_rows], params[: args.warm_rows], use_tqdm=False)
    count = args.count or len(prompts)
    started = time.time()
    answers = llm.generate(prompts[:count], params[:count], use_tqdm=False)
    say(
        turn="offline",
        started=started,
        ended=time.time(),
        rows=len(answers),
        prompt_tokens=sum(len(a.prompt_token_ids or ()) for a in answers),
        new_tokens=sum(len(a.outputs[0].token_ids) for a in answers),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--options", default="{}", help="engine_options as JSON")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument(
        "--rows", type=Path, required=True, help="OpenAI batch lines of completions"
    )
    parser.add_argument("--turns", default="direct,runner,runner,direct", help="or offline")
    parser.add_argument("--folder", type=Path, required=True, help="for runs and rows")
    parser.add_argument("--seconds", type=float, default=30.0, help="what a turn takes, at most")
    parser.add_argument("--count", type=int, help="rows of a turn, instead")
    parser.add_argument("--warm-rows", type=int, default=2048)
    parser.add_argument("--beat-s", type=float, default=1.0)
    parser.add_argument("--limit-s", type=float, default=400.0, help="for the start and all turns")
    args = parser.parse_args()
    args.started = time.time()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.turns == "offline":
        offline(args)
    else:
        asyncio.run(converse(args))


if __name__ == "__main__":
    main()
