"""How a run ends, before a change and after: the same rows by two trees of hpc-llm.

Answers are as long as chats' are, log-normal, and each row's ``max_tokens`` is its length: who
orders rows by what they ask for knows all there is to know, the best case. Each turn is a
rendered script from nothing, on all GPUs of CUDA_VISIBLE_DEVICES, a replica on each.

Two of these at once, one a GPU, with their turns in opposite order, make equal neighbours:

    CUDA_VISIBLE_DEVICES=0 … python benchmarks/gpu_tail.py --before DIR --turns before,after
    CUDA_VISIBLE_DEVICES=1 … python benchmarks/gpu_tail.py --before DIR --turns after,before
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_end_to_end import NEXT, START_S, Bench  # noqa: E402
from benchmarks.gpu_given import WORDS, machine  # noqa: E402
from benchmarks.gpu_watch import gpus_seen  # noqa: E402
from benchmarks.makespan_rows import LENGTHS, Lengths  # noqa: E402

MOST_PROMPT = 900
HEAD = (
    "| tree | GPUs | ready to output | new tokens/s | busy: run, last tenth of the time |"
    " power: run, last tenth | power below 0.8 of its median before the end |\n"
    "|---|---|---|---|---|---|---|"
)


def write_rows(path: Path, count: int, lengths: Lengths) -> int:
    """OpenAI batch lines of chats; how many new tokens they ask for."""
    draw = random.Random(0)
    total = 0
    with path.open("w") as file:
        for number in range(count):
            prompt, new = lengths.of(lengths.prompt(number))
            words = " ".join(draw.choices(WORDS, k=min(prompt, MOST_PROMPT)))
            body = {
                "model": "bench",
                "messages": [{"role": "user", "content": words}],
                "max_tokens": new,
                "temperature": 0.0,
            }
            line = {"custom_id": f"row-{number}", "method": "POST", "body": body}
            file.write(json.dumps(line | {"url": "/v1/chat/completions"}) + "\n")
            total += new
    return total


def take_turn(bench: Bench, rows: Path, count: int, limit_s: float) -> dict[str, Any]:
    """One run, from nothing; what it did between the ready engine and the whole output."""
    run = bench.script(count, limit_s, source=rows, replicas=max(1, len(gpus_seen())))
    if "ready_at" not in run or "output_at" not in run:
        return run
    ready, end = run["ready_at"], run["output_at"]
    last = end - (end - ready) / 10
    return run | {
        "answering_s": end - ready,
        "answering_tokens_per_s": run["new_tokens"] / (end - ready),
        "gpus": bench.gpus.between(ready, end),
        "last_tenth": bench.gpus.between(last, end),
        "lull_s": bench.gpus.lull_s(ready, end),
    }


def line_of(turn: Mapping[str, Any]) -> str:
    """A turn as a line of the table; how it failed, if it did."""
    if "answering_s" not in turn:
        return f"{turn['kind']}: exit code {turn['code']}, no output"
    pairs = list(zip(turn["gpus"], turn["last_tenth"], strict=False))
    cells = [
        turn["kind"] + ("" if turn["failed"] == 0 else f" ({turn['failed']} rows failed)"),
        ", ".join(str(gpu["gpu"]) for gpu in turn["gpus"]),
        f"{turn['answering_s']:.1f} s",
        f"{turn['answering_tokens_per_s']:,.0f}",
        "; ".join(f"{a['utilisation_mean']:.0f}, {b['utilisation_mean']:.0f} %" for a, b in pairs),
        "; ".join(f"{a['power_median_w']:.0f}, {b['power_median_w']:.0f} W" for a, b in pairs),
        "; ".join(f"{seconds:.1f} s" for seconds in turn["lull_s"].values()),
    ]
    return f"| {' | '.join(cells)} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="the other tree")
    parser.add_argument("--turns", default="before,after")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--model", default="8b", help="1b, 8b, or a checkpoint's directory")
    parser.add_argument(
        "--options", default='{"max_num_seqs": 256}', help="engine_options, as JSON"
    )
    parser.add_argument("--rows", type=int, default=3200, help="for each GPU")
    parser.add_argument("--most", type=int, default=1024, help="new tokens of a row")
    parser.add_argument("--limit-s", type=float, default=570.0)
    parser.add_argument("--name", default="gpu_tail", help="of the JSON file")
    args = parser.parse_args()
    # What `Bench` asks beside that: prompts are text, and its own rows are not used.
    vars(args).update(prompts="text", max_rows=1, rate=None)
    return args


def main() -> None:
    args = arguments()
    until = time.time() + args.limit_s
    folder = Path(tempfile.mkdtemp(prefix="gpu-tail-"))
    bench = Bench(args, folder)
    rows, count = folder / "chat.jsonl", args.rows * max(1, len(gpus_seen()))
    asked = write_rows(rows, count, dataclasses.replace(LENGTHS["chat"], most=args.most))
    result: dict[str, Any] = {"command": sys.argv, "machine": machine(), "turns": []}
    result |= {"rows": count, "new_tokens": asked, "engine_options": bench.options}
    print(f"{count} rows, {asked} new tokens\n{HEAD}", flush=True)
    longest_s = START_S
    try:
        for kind in args.turns.split(","):
            began = time.time()
            if began + longest_s > until:
                print(f"{kind} left out: {until - began:.0f} s are left", flush=True)
                continue
            bench.trees = [args.before.resolve()] if kind == "before" else []
            turn = {"kind": kind, **take_turn(bench, rows, count, until - began)}
            result["turns"].append(turn)
            print(line_of(turn), flush=True)
            (Path(os.environ.get("OUT", ".")) / f"{args.name}.json").write_text(json.dumps(result))
            # The first one compiles kernels for the others.
            longest_s = (time.time() - began) * (1.0 if len(result["turns"]) == 1 else NEXT)
    finally:
        bench.gpus.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
