"""Whether the planner is right: what it says of models on this machine's GPUs, and what vLLM does.

For each of ``--shapes`` (``MODEL`` or ``MODEL:tp2``; random weights) and each of ``--plans``:

- ``default``: vLLM at its own share of the GPU. Tokens of the KV cache, counted and logged (10 %);
  the most memory in use; new tokens a second under a full window, predicted and measured (30 %).
- ``full``, ``least``: the largest KV cache and the smallest share of the GPU that the planner
  accepts. They must start and answer.
- ``over``, ``below``: the smallest KV cache and the largest share that it refuses. They must run
  out of memory.

Each in a session of its own with its own deadline; one GPU each has cases of its own where there
are several, and the next one imports vLLM meanwhile. Results are printed as they come, tables at
the end or when ``--limit-s`` are over, and all of it is in OUT/planner_gpu.json.

    python benchmarks/planner_gpu.py [--plans default,full,over] [--limit-s 570] …
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_given import environment, machine  # noqa: E402
from benchmarks.gpu_watch import GpuWatch, gpu_lines, session  # noqa: E402
from benchmarks.planner_predict import (  # noqa: E402
    FILL_S,
    MIB,
    MODELS,
    PLANS,
    Card,
    Case,
    Plan,
    Said,
    find_card,
    predict,
    read_models,
)
from benchmarks.planner_told import judged, lines_of, read_log, steady, summary  # noqa: E402
from launcher.plan.types import Cut  # noqa: E402

ONE = "llama-3.1-8b,qwen3-30b-a3b-fp8,gemma-3-27b,gpt-oss-20b,qwen3-8b,llama-3.2-3b,llama-3.2-1b"
TWO = "llama-3.1-8b:tp2,llama-3.1-8b:pp2,qwen3-32b:tp2"
SHAPE = re.compile(r"(?P<model>[^:]+)(?::(?P<kind>tp|pp)(?P<size>\d+))?")
# Parts of --start-s that an import takes, and a start without CUDA graphs.
IMPORT, EAGER = 0.9, 0.45
# Engines that import while another one has the GPU.
AHEAD = 2
START_LIMIT_S = 180.0
DRAIN_S = 20.0
DRAINED_MIB = 300.0
ENVIRONMENT = {
    # These build kernels when they are first wanted, which takes minutes.
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER": "0",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # by which nvidia-smi counts
}
LOG_TAIL = 3000
NOT_SHOWN = {"samples", "log", "kernels", "from", "to"}


@dataclass(frozen=True, slots=True)
class Task:
    """A case, what was said of it, and how long it is asked for rows."""

    case: Case
    config: Mapping[str, Any]
    said: Said
    start_s: float
    seconds: float

    @property
    def expected_s(self) -> float:
        return self.start_s + self.seconds


def used_mib() -> dict[str, float]:
    """What is in use of each GPU, by its number."""
    lines = gpu_lines("--query-gpu=index,memory.used", "--format=csv,noheader,nounits")
    return {index: float(used) for index, used in (line.split(", ") for line in lines)}


class Bench:
    """What all lanes share: the clock, the GPUs that are watched, and the results."""

    def __init__(self, args: argparse.Namespace, folder: Path, card: Card) -> None:
        self.args, self.folder, self.card = args, folder, card
        self._until: float = time.time() + args.limit_s
        self.gpus, self.idle_mib = GpuWatch(), used_mib()
        self.results: list[dict[str, Any]] = []
        self.target = Path(os.environ.get("OUT", ".")) / f"{args.name}.json"
        self.machine = machine()
        self._lock = threading.Lock()

    def left_s(self) -> float:
        return self._until - time.time()

    def add(self, case: Case, said: Said | None, measured: Mapping[str, Any]) -> None:
        """Keep, print and write down one result."""
        result = {
            "name": case.name,
            "plan": case.plan,
            "options": dict(said.options) if said else {},
            "said": said.figures() if said else {},
            "measured": dict(measured),
        }
        result["right"] = judged(result)
        shown = {
            key: round(value, 1) if isinstance(value, float) else value
            for key, value in measured.items()
            if key not in NOT_SHOWN
        }
        with self._lock:
            self.results.append(result)
            print(f"{case.name}, {case.plan}: {result['right']} {json.dumps(shown)}", flush=True)
            kept = {"command": sys.argv, "machine": self.machine, "results": self.results}
            self.target.write_text(json.dumps(kept, indent=1))


class Engine:
    """`planner_engine.py` for one task, started, and held before it touches a GPU until `go`."""

    def __init__(self, bench: Bench, task: Task, gpus: Sequence[str]) -> None:
        self.bench, self.task, self.gpus = bench, task, gpus
        folder = Path(tempfile.mkdtemp(dir=bench.folder))
        self.gate, self.said, self.log = folder / "gate", folder / "said", folder / "log"
        model = folder / "model"
        model.mkdir()
        # Nothing ends a row before its tokens are made.
        (model / "config.json").write_text(json.dumps({**task.config, "eos_token_id": None}))
        self._stack = contextlib.ExitStack()
        out = self._stack.enter_context(self.log.open("w"))
        environ = environment(HERE / "gpu_gate") | ENVIRONMENT
        environ |= {
            "GPU_GATE": str(self.gate),
            "GPU_SAID": str(self.said),
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            "VLLM_CACHE_ROOT": str(bench.folder / f"cache-{'-'.join(gpus)}"),
        }
        self.process = self._stack.enter_context(
            session(self._command(model), stdout=out, stderr=out, env=environ)
        )

    def _command(self, model: Path) -> list[str]:
        case, said = self.task.case, self.task.said
        sequences = int(said.cost.sequences) if said.cost else 0
        few = said.cost is not None and said.cost.batch_limit == "rows"
        given: dict[str, Any] = {
            "model": model,
            "options": json.dumps(dict(said.options)),
            "tp": case.cut.tp,
            "pp": case.cut.pp,
            "vocabulary": self.task.config["vocab_size"],
            "in-flight": sequences if few else 0,
            "staggered": sequences,
            "seconds": self.task.seconds,
        }
        words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
        return [sys.executable, str(HERE / "planner_engine.py"), *words]

    def run(self) -> dict[str, Any]:
        """Let it go, and wait for its end or its deadline; what was measured."""
        try:
            self._wait_until_free()
            began = time.time()
            self.gate.touch()
            limit_s = min(START_LIMIT_S + self.task.seconds, self.bench.left_s())
            code: int | None = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(max(limit_s, 0.0))
            ended = time.time()
        finally:
            self._stack.close()
        return self._measured(code, began, ended)

    def kill(self) -> None:
        self._stack.close()

    def _wait_until_free(self) -> None:
        given_up = time.time() + DRAIN_S
        while time.time() < given_up:
            now, idle = used_mib(), self.bench.idle_mib
            if all(now[gpu] <= idle[gpu] + DRAINED_MIB for gpu in self.gpus):
                return
            time.sleep(0.2)

    def _measured(self, code: int | None, began: float, ended: float) -> dict[str, Any]:
        text = self.log.read_text(errors="replace")
        found: dict[str, Any] = read_log(text) | {"took_s": ended - began}
        lines = self.said.read_text().splitlines() if self.said.exists() else []
        events: dict[str, Any] = {}
        for line in lines:
            events |= json.loads(line)
        if "ready" in events:
            found["start_s"] = events["ready"] - began
        if events.get("kv_tokens"):
            found["kv_tokens"] = events["kv_tokens"]
        samples = events.get("samples", [])
        found |= {"rows": events.get("rows", 0), "samples": samples}
        found |= steady(samples) or {}
        seen = [
            gpu for gpu in self.bench.gpus.between(began, ended) if f"{gpu['gpu']:.0f}" in self.gpus
        ]
        if seen:
            found["peak"] = int(max(gpu["memory_most_mib"] for gpu in seen) * MIB)
        if "done" not in events:
            how = events.get("message") or (
                f"no end in {ended - began:.0f} s" if code is None else f"exit code {code}"
            )
            found |= {"failed": how, "code": events.get("code"), "log": text[-LOG_TAIL:]}
        return found


def run_lane(bench: Bench, gpus: Sequence[str], tasks: collections.deque[Task]) -> None:
    """The tasks in turn, on these GPUs; while one has them, the next ones import."""
    waiting: collections.deque[Engine] = collections.deque()
    before_s = bench.args.start_s * IMPORT
    while waiting or tasks:
        if not waiting:
            waiting.extend(_begun(bench, gpus, tasks, 1, before_s))
            continue
        before_s, now = 0.0, waiting.popleft()
        task = now.task
        if bench.left_s() < task.expected_s:
            now.kill()
            bench.add(task.case, task.said, {"left_out": "no time"})
            continue
        ahead_s = task.expected_s + sum(engine.task.expected_s for engine in waiting)
        waiting.extend(_begun(bench, gpus, tasks, AHEAD - len(waiting), ahead_s))
        bench.add(task.case, task.said, now.run())


def _begun(
    bench: Bench, gpus: Sequence[str], tasks: collections.deque[Task], count: int, before_s: float
) -> Iterator[Engine]:
    """Engines for the next tasks, as far as there is time for them."""
    while count > 0:
        try:
            task = tasks.popleft()
        except IndexError:
            return
        before_s += task.expected_s
        if bench.left_s() < before_s:
            bench.add(task.case, task.said, {"left_out": "no time"})
            before_s -= task.expected_s
            continue
        count -= 1
        yield Engine(bench, task, gpus)


def read_shapes(words: str, plans: Sequence[Plan]) -> list[Case]:
    """Every shape at vLLM's own share first, then each with the other plans.

    Raises
    ------
    ValueError
        A shape is not ``MODEL``, ``MODEL:tpN`` or ``MODEL:ppN``.
    """
    shapes = []
    for word in words.split(","):
        found = SHAPE.fullmatch(word)
        if found is None:
            raise ValueError(f"{word!r} is not MODEL, MODEL:tp2 or MODEL:pp2")
        size = {found["kind"]: int(found["size"])} if found["kind"] else {}
        shapes.append((found["model"], Cut(**size)))
    default = [Case(model=m, cut=c, plan="default") for m, c in shapes if "default" in plans]
    others = [plan for plan in plans if plan != "default"]
    return default + [Case(model=m, cut=c, plan=plan) for m, c in shapes for plan in others]


def tasks_of(bench: Bench, cases: Iterable[Case]) -> list[Task]:
    """The cases that can be had here; of the others it is said why not."""
    models = read_models(bench.args.models)
    tasks = []
    for case in cases:
        if case.model not in models:
            raise SystemExit(f"{case.model} is none of {', '.join(models)}")
        why = None
        said = predict(models[case.model], case, bench.card, bench.args.fill_s)
        if case.cut.ranks > bench.card.count:
            why = f"needs {case.cut.ranks} GPUs"
        elif said is None:
            why = "no such plan for this GPU"
        if why is not None or said is None:
            bench.add(case, said, {"left_out": why})
            continue
        start_s, seconds = bench.args.start_s * EAGER, bench.args.probe_s
        if case.plan == "default":
            start_s = bench.args.start_s
            seconds = bench.args.seconds + said.figures().get("fill_s", 0.0)
        tasks.append(Task(case, models[case.model], said, start_s, seconds))
    return tasks


def run_all(bench: Bench, gpus: Sequence[str], tasks: Sequence[Task]) -> None:
    """Those of several GPUs in turn, then the others on a GPU each, then what is left of both."""
    whole = [task for task in tasks if task.case.cut.ranks > 1]
    run_lane(bench, gpus, collections.deque(t for t in whole if t.case.plan == "default"))
    single = collections.deque(task for task in tasks if task.case.cut.ranks == 1)
    lanes = [threading.Thread(target=run_lane, args=(bench, [gpu], single)) for gpu in gpus]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    run_lane(bench, gpus, collections.deque(t for t in whole if t.case.plan != "default"))


def find_gpus() -> tuple[list[str], Card]:
    """The numbers of the GPUs that may be used, and what they are.

    Raises
    ------
    SystemExit
        There is none, or it is not known, or they differ.
    """
    query = ["--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    rows = [line.split(", ") for line in gpu_lines(*query)]
    kinds = {(name, float(size)) for _, name, size in rows}
    if len(kinds) != 1:
        raise SystemExit(f"this needs GPUs of one kind, and there are {len(kinds)} kinds")
    ((name, size),) = kinds
    try:
        card, _ = find_card(name, size, len(rows))
    except ValueError as exc:
        raise SystemExit(str(exc)) from exc
    return [index for index, _, _ in rows], card


def arguments(gpus: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=f"{TWO},{ONE}" if gpus > 1 else ONE)
    parser.add_argument("--plans", default=",".join(PLANS))
    parser.add_argument("--seconds", type=float, default=15.0, help="of a rate, once all run")
    parser.add_argument("--fill-s", type=float, default=FILL_S, help="until all run, at most")
    parser.add_argument("--probe-s", type=float, default=8.0, help="of rows for other plans")
    parser.add_argument("--start-s", type=float, default=45.0, help="of a start, as expected")
    parser.add_argument("--limit-s", type=float, default=570.0, help="for everything")
    parser.add_argument("--models", type=Path, default=MODELS, help="configs by name, as JSON")
    parser.add_argument("--name", default="planner_gpu", help="of the JSON file")
    return parser.parse_args()


def main() -> int:
    gpus, card = find_gpus()
    args = arguments(len(gpus))
    unknown = set(args.plans.split(",")) - set(PLANS)
    if unknown:
        raise SystemExit(f"{', '.join(sorted(unknown))}: plans are {', '.join(PLANS)}")
    folder = Path(tempfile.mkdtemp(prefix="planner-gpu-"))
    bench = Bench(args, folder, card)
    print(json.dumps(bench.machine), flush=True)
    try:
        plans = [plan for plan in PLANS if plan in args.plans.split(",")]
        run_all(bench, gpus, tasks_of(bench, read_shapes(args.shapes, plans)))
    finally:
        bench.gpus.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(("", *lines_of(bench.results))))
    print(f"{json.dumps(bench.machine)}\nwritten: {bench.target}")
    text, good = summary(bench.results)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
