"""hpc-llm on GPUs, end to end, beside the same engine driven directly.

Parts, each in processes of its own, under its own limit, and written down as soon as it ends:

- ``same``: one engine that stays up, on the same rows in turns (ABBA): its asynchronous API
  driven directly, and all of hpc-llm but the script. For each of ``--cuts``.
- ``script``: each turn from nothing: the API in a process of its own, and a rendered script.
- ``offline``: vLLM's `LLM.generate` on the same file.
- ``run-batch``: `vllm run-batch` and a rendered script on the same chat rows, both from nothing
  (ABBA). It needs ``--prompts text``. Rates are those from the ready engine to the whole output.
- ``replicas``: two replicas on two GPUs against one, by script.
- ``start``: seconds from the script's start to the engine's import, and from the ready engine
  to the first row, with the engine and, several times, without any (echo).

Rates are new tokens a second between the beats after the first and before the last tenth of the
rows. GPUs are looked at twice a second by nvidia-smi, those in CUDA_VISIBLE_DEVICES alone: two of
these can measure at once, each on its GPU, with its own OUT and VLLM_CACHE_ROOT. The model has
random weights (`1b`, `8b`: Llama shapes, prompts of 64 to 255 token ids, 64 to 192 new tokens) or
is a checkpoint's directory.

    python benchmarks/gpu_end_to_end.py [--parts same,script,…] [--seconds 30] [--blocks 3] …
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_batch import run_batch  # noqa: E402
from benchmarks.gpu_given import (  # noqa: E402
    MEAN_TOKENS,
    SHAPES,
    environment,
    machine,
    machine_slots,
    make_model,
    write_rows,
)
from benchmarks.gpu_told import lines_of  # noqa: E402
from benchmarks.gpu_watch import (  # noqa: E402
    DONE,
    GENERATED,
    GpuWatch,
    Sample,
    gpus_seen,
    note_beats,
    parts_of,
    read_marks,
    session,
    steady,
    tail,
)

READY = re.compile(r"is ready after ([\d.]+) s, window (\d+)")
# What a run's script and a direct turn take beside the seconds that are measured.
START_S = 75.0

# What an engine may take to end.
CLOSE_S = 15.0
# How much longer than the turn before a turn from nothing may take.
NEXT = 1.2
# Fewer seconds are not worth a start.
LEAST_S = 15.0
LOG_TAIL = 4000


class Bench:
    """What all parts share."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.gpus = GpuWatch()
        self.model, self.options = self._model()
        self.rows = folder / "rows.jsonl"
        write_rows(self.rows, args.max_rows, args.prompts)
        self.rate: float | None = args.rate
        self.trees: list[Path] = []  # whose hpc-llm scripts run; this one's where there is none
        self._runs = 0

    def _model(self) -> tuple[Path, dict[str, Any]]:
        options: dict[str, Any] = {}
        if self.args.engine == "vllm":
            # Turns repeat the same rows: nothing may be left of the turn before.
            options = {"enable_prefix_caching": False, "max_model_len": 2048}
        if self.args.model in SHAPES:
            ids = self.args.prompts == "ids"
            model = self.folder / self.args.model
            make_model(model, self.args.model, tokenizer=not ids)
            if self.args.engine == "vllm":
                options |= {"load_format": "dummy"} | ({"skip_tokenizer_init": True} if ids else {})
        else:
            model = Path(self.args.model).expanduser().resolve()
        return model, options | json.loads(self.args.options)

    def turns(self, turns: str, limit_s: float, **more: Any) -> list[dict[str, Any]]:
        """`gpu_engine.py` in a process of its own; what it said."""
        given = {
            "--engine": self.args.engine,
            "--model": self.model,
            "--options": json.dumps(self.options),
            "--rows": self.rows,
            "--turns": turns,
            "--folder": self.folder / f"turns-{self._next()}",
            "--warm-rows": self.args.warm_rows,
            "--limit-s": max(10.0, limit_s - CLOSE_S),
            **{f"--{key}": value for key, value in more.items()},
        }
        words = [str(word) for pair in given.items() for word in pair]
        return self._told([sys.executable, str(HERE / "gpu_engine.py"), *words], limit_s)

    def _told(self, command: Sequence[str], limit_s: float) -> list[dict[str, Any]]:
        """What `gpu_engine.py` found, and at the end how it failed, if it did."""
        log, said = (self.folder / f"{name}-{self._next()}" for name in ("log", "said"))
        environ = environment() | {"GPU_SAID": str(said)}
        code: int | None = None
        with (
            log.open("w") as out,
            session(command, stdout=out, stderr=out, env=environ) as process,
            contextlib.suppress(subprocess.TimeoutExpired),
        ):
            code = process.wait(limit_s)
        text = said.read_text() if said.exists() else ""
        found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        if code != 0:
            how = f"no end in {limit_s:.0f} s" if code is None else f"exit code {code}"
            found.append({"failed": how, "log": log.read_text()[-LOG_TAIL:]})
            print(found[-1]["log"], file=sys.stderr)
        return found

    def script(
        self,
        rows: int,
        limit_s: float,
        *,
        engine: str | None = None,
        replicas: int = 1,
        source: Path | None = None,
    ) -> dict[str, Any]:
        """One run through a rendered script; ``source`` are chat rows in place of the others."""
        folder = self.folder / f"script-{self._next()}"
        folder.mkdir()
        first_rows(source or self.rows, folder / "in.jsonl", rows)
        run = self._render(folder, engine or self.args.engine, replicas, chat=source is not None)
        marks = folder / "marks"
        environ = environment(HERE / "gpu_marks", *self.trees) | {"GPU_MARKS": str(marks)}
        series: dict[str, list[Sample]] = {}
        started = time.time()
        with (
            (folder / "out").open("w") as out,
            session(["bash", run / "script.sh"], stdout=out, stderr=out, env=environ) as process,
        ):
            while process.poll() is None and time.time() - started < limit_s:
                note_beats(run, series)
                time.sleep(0.2)
            code = process.poll()
        ended = time.time()
        logs = "".join(path.read_text() for path in run.glob("logs/*.log"))
        found: dict[str, Any] = {"code": code, "rows": rows, "started": started, "ended": ended}
        if code != 0:
            found["log"] = logs[-LOG_TAIL:]
            print(f"exit code {code} of {run}\n{found['log']}", file=sys.stderr)
        ready = READY.findall(logs)
        found["ready_s"] = [float(seconds) for seconds, _ in ready]
        found["window"] = int(ready[0][1]) if ready else None
        parts = parts_of(run)
        found["failed"] = rows - sum(part["ok"] for part in parts)
        found["prompt_tokens"] = sum(part["prompt_tokens"] for part in parts)
        found["new_tokens"] = sum(part["completion_tokens"] for part in parts)
        found["marks"] = read_marks(marks, run)
        if "ready" in found["marks"]:
            found["ready_at"] = started + found["marks"]["ready"]
        written = [path.stat().st_mtime for path in run.glob("parts/*")]
        if code == 0 and written:
            found["output_at"] = max(written)
        found["samples"] = list(series.values())
        return found

    def _render(self, folder: Path, engine: str, replicas: int, *, chat: bool) -> Path:
        site = {
            "schema": 1,
            "name": "this-machine",
            "scheduler": {"type": "local"},
            "launch": {"with": "none"},
            "partitions": {"all": {"nodes": 1, **machine_slots()}},
        }
        job = {
            "name": "bench",
            "engine": engine,
            "model": str(self.model),
            "input": {"path": "in.jsonl", "chat": chat},
            "sampling": {"max_tokens": MEAN_TOKENS},  # each row has its own
            "parallelism": {"tp": 1},
            "replicas": replicas,
            "output": {"path": "run"},
            "engine_options": self.options if engine == self.args.engine else {},
        }
        (folder / "site.yaml").write_text(json.dumps(site))  # JSON is YAML
        (folder / "job.yaml").write_text(json.dumps(job))
        words = ["render", "job.yaml", "--site", "./site.yaml", "--out", "run"]
        environ = environment(*self.trees) | {"XDG_STATE_HOME": str(folder / "state")}
        command = [sys.executable, "-m", "launcher", *words]
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return folder / "run"

    def batch(self, rows: Path, limit_s: float) -> dict[str, Any]:
        """`vllm run-batch` on ``rows``."""
        output = self.folder / f"batch-{self._next()}.jsonl"
        return run_batch(self.model, self.options, rows, output, environment(), limit_s)

    def wanted_rows(self, replicas: int = 1) -> int:
        """Rows for ``--seconds`` of one turn."""
        rate = self.rate or 35000.0
        rows = int(rate * self.args.seconds * replicas / MEAN_TOKENS)
        most: int = self.args.max_rows
        return max(64, min(most, rows))

    def _next(self) -> int:
        self._runs += 1
        return self._runs


def first_rows(source: Path, target: Path, count: int) -> None:
    with source.open() as lines, target.open("w") as out:
        out.writelines(itertools.islice(lines, count))


# --- the parts ------------------------------------------------------------------------------


def timed(said: Sequence[dict[str, Any]], bench: Bench, column: int) -> list[dict[str, Any]]:
    """The turns of one engine that stayed up, each with its rate; the warm-ups are left out."""
    turns = [e for e in said if "turn" in e and not e["turn"].startswith("warm-")]
    return [measured(t["turn"].split("-")[0], t, [t.pop("samples")], bench, column) for t in turns]


def measured(
    kind: str, turn: dict[str, Any], series: list[list[Sample]], bench: Bench, column: int
) -> dict[str, Any]:
    middle = steady(series, turn["rows"], column)
    took_s = turn["ended"] - turn["started"]
    found = {**turn, "kind": kind, "whole_tokens_per_s": turn["new_tokens"] / took_s}
    if middle is not None:
        found |= middle
        found["gpus"] = bench.gpus.between(middle["from"], middle["to"])
    if "output_at" in turn and "ready_at" in turn:
        last = tail(series, turn["rows"], turn["ready_at"], turn["output_at"])
        if last is not None:
            found["tail"] = last | {"gpus": bench.gpus.between(last["from"], last["to"])}
    return found


def answering(turn: dict[str, Any]) -> dict[str, Any]:
    """New tokens a second from the ready engine until the whole output was written."""
    if "output_at" not in turn or "ready_at" not in turn:
        return turn
    took_s = turn["output_at"] - turn["ready_at"]
    return turn | {"answering_s": took_s, "answering_tokens_per_s": turn["new_tokens"] / took_s}


def part_same(bench: Bench, limit_s: float) -> dict[str, Any]:
    """ABBA in one process, for each cut."""
    args = bench.args
    cuts = args.cuts.split(",")
    turns = ",".join([args.turns] * args.blocks)
    found: dict[str, Any] = {}
    for cut in cuts:
        tp, pp = map(int, cut.split("x"))
        share = limit_s / len(cuts)
        said = bench.turns(turns, share, tp=tp, pp=pp, seconds=args.seconds)
        result = compared(timed(said, bench, GENERATED), "runner")
        told = ("ready_s", "window", "api", "warm_tokens_per_s", "seconds")
        result |= {k: e[k] for e in said for k in told if k in e}
        result["notes"] = [e for e in said if "failed" in e or "left_out" in e]
        found[f"tp{tp} pp{pp}"] = result
        if bench.rate is None and cut == "1x1" and result.get("runner"):
            bench.rate = result["runner"]["median"]
    return found


def compared(
    turns: list[dict[str, Any]], ours: str, base: str = "direct", by: str = "tokens_per_s"
) -> dict[str, Any]:
    """Median and range of either kind, and the ratio of the medians."""
    found: dict[str, Any] = {"turns": turns}
    for kind in dict.fromkeys(turn["kind"] for turn in turns):
        rates = [t[by] for t in turns if t["kind"] == kind and by in t]
        if rates:
            found[kind] = {
                "median": statistics.median(rates),
                "range": [min(rates), max(rates)],
                "turns": len(rates),
            }
    if ours in found and base in found:
        found["ratio"] = found[ours]["median"] / found[base]["median"]
    return found


def part_script(bench: Bench, limit_s: float) -> dict[str, Any]:
    """ABBA in which every turn starts from nothing."""
    until = time.time() + limit_s
    rows, turns, left_out = bench.wanted_rows(), [], 0
    longest_s = START_S + bench.args.seconds
    for kind in ["direct", "script", "script", "direct"] * bench.args.script_blocks:
        began = time.time()
        if began + longest_s > until:
            left_out += 1
            continue
        if kind == "direct":
            said = bench.turns("direct", until - began, count=rows)
            turns += timed(said, bench, DONE)
        else:
            run = bench.script(rows, until - began)
            series = run.pop("samples")
            turns.append(measured(kind, run, series, bench, DONE))
        longest_s = NEXT * (time.time() - began)
    return {**compared(turns, "script"), "left_out": left_out}


def part_offline(bench: Bench, limit_s: float) -> dict[str, Any]:
    """The same rows by `LLM.generate`, start to end, in one call."""
    if bench.args.engine != "vllm":
        return {"left_out": "only vLLM has it"}
    said = bench.turns("offline", limit_s, count=bench.wanted_rows())
    turns = [entry for entry in said if "turn" in entry]
    for turn in turns:
        turn["whole_tokens_per_s"] = turn["new_tokens"] / (turn["ended"] - turn["started"])
        turn["gpus"] = bench.gpus.between(turn["started"], turn["ended"])
    return {"turns": turns, "notes": [entry for entry in said if "failed" in entry]}


def part_run_batch(bench: Bench, limit_s: float) -> dict[str, Any]:
    """ABBA from nothing, on the same chat rows."""
    args = bench.args
    if args.engine != "vllm" or args.prompts != "text":
        return {"left_out": "only vLLM has it, and it needs --prompts text"}
    until, rows = time.time() + limit_s, bench.wanted_rows()
    source = bench.folder / "chat.jsonl"
    write_rows(source, rows, "chat")
    turns, left_out, longest_s = [], 0, START_S + args.seconds
    for kind in ["run-batch", "script", "script", "run-batch"] * args.script_blocks:
        began = time.time()
        if began + longest_s > until:
            left_out += 1
            continue
        if kind == "script":
            run = bench.script(rows, until - began, source=source)
        else:
            run = bench.batch(source, until - began)
        turn = measured(kind, run, run.pop("samples", []), bench, DONE)
        if "ready_at" in turn and "output_at" in turn:
            turn["gpus"] = bench.gpus.between(turn["ready_at"], turn["output_at"])
        turns.append(answering(turn))
        longest_s = NEXT * (time.time() - began)
    whole = compared(turns, "script", "run-batch", by="whole_tokens_per_s")
    result = compared(turns, "script", "run-batch", by="answering_tokens_per_s")
    sums = [[t["kind"], t["failed"], t["prompt_tokens"], t["new_tokens"]] for t in turns]
    return {
        **result,
        "whole": {key: value for key, value in whole.items() if key != "turns"},
        "left_out": left_out,
        "notes": [{"failed rows, prompt tokens and new tokens": sums}],
    }


def part_replicas(bench: Bench, limit_s: float) -> dict[str, Any]:
    """One replica, and two on twice the rows."""
    if len(gpus_seen()) == 1:
        return {"left_out": "there is one GPU"}
    until = time.time() + limit_s
    turns = []
    for replicas in [1, 2] * bench.args.script_blocks:
        rows = bench.wanted_rows(replicas)
        run = bench.script(rows, max(10.0, until - time.time()), replicas=replicas)
        series = run.pop("samples")
        turns.append(measured(("one", "two")[replicas - 1], run, series, bench, DONE))
    return compared(turns, "two", "one")


def part_start(bench: Bench, limit_s: float) -> dict[str, Any]:
    """A few rows, for the sake of the time before the first."""
    until = time.time() + limit_s
    found: dict[str, Any] = {"echo": [], bench.args.engine: []}
    for engine in ["echo"] * 3 + [bench.args.engine] * bench.args.script_blocks:
        run = bench.script(64, max(10.0, until - time.time()), engine=engine)
        found[engine].append({**run["marks"], "whole_s": run["ended"] - run["started"]})
    return found


PARTS: Mapping[str, Callable[[Bench, float], dict[str, Any]]] = {
    "same": part_same,
    "script": part_script,
    "offline": part_offline,
    "run-batch": part_run_batch,
    "replicas": part_replicas,
    "start": part_start,
}


# --- what is said ---------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--model", default="1b", help="1b, 8b, or a checkpoint's directory")
    parser.add_argument("--options", default="{}", help="more engine_options, as JSON")
    parser.add_argument("--prompts", choices=["ids", "text"], default="ids")
    parser.add_argument("--cuts", default="1x1", help="tp x pp of `same`, such as 1x1,2x1,1x2")
    parser.add_argument("--seconds", type=float, default=30.0, help="what a turn takes, at most")
    parser.add_argument("--blocks", type=int, default=3, help="blocks of `same`")
    parser.add_argument("--turns", default="direct,runner,runner,direct", help="a block of `same`")
    parser.add_argument("--script-blocks", type=int, default=1, help="blocks of the others")
    parser.add_argument("--max-rows", type=int, default=60_000)
    parser.add_argument("--warm-rows", type=int, default=2048)
    parser.add_argument("--rate", type=float, help="tokens/s to expect, where `same` is not run")
    parser.add_argument("--part-limit-s", type=float, default=540.0)
    parser.add_argument("--limit-s", type=float, default=570.0, help="for all parts")
    parser.add_argument("--name", default="gpu_end_to_end", help="of the JSON file")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    until = time.time() + args.limit_s
    target = Path(os.environ.get("OUT", ".")) / f"{args.name}.json"
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": sys.argv,
        "machine": machine(),
        "parts": {},
    }
    folder = Path(tempfile.mkdtemp(prefix="gpu-end-to-end-"))
    bench = Bench(args, folder)
    result["engine_options"] = bench.options
    print(json.dumps(result["machine"]), flush=True)
    try:
        for name in args.parts.split(","):
            limit_s = min(args.part_limit_s, until - time.time())
            print(f"== {name}, at most {limit_s:.0f} s", flush=True)
            try:
                found = (
                    PARTS[name](bench, limit_s) if limit_s > LEAST_S else {"left_out": "no time"}
                )
                result["parts"][name] = found
                print("\n".join(lines_of(name, found)), flush=True)
            except Exception as exc:  # noqa: BLE001 - the other parts are still worth their time
                result["parts"].setdefault(name, {})["failed"] = f"{type(exc).__name__}: {exc}"
                traceback.print_exc()
            target.write_text(json.dumps(result, indent=1))
    finally:
        bench.gpus.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"written: {target}")


if __name__ == "__main__":
    main()
