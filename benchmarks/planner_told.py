"""What vLLM's log and a run's beats tell, and how they stand beside what the planner said."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Result", "judged", "lines_of", "read_log", "steady", "summary"]

Result = Mapping[str, Any]
GIB, MIB = 2**30, 2**20
NEAR_KV, NEAR_RATE = 0.10, 0.30
LEAST_STEADY_S = 5.0
FULL = 0.95
# vLLM 0.24: v1/core/kv_cache_utils.py; v1/worker/gpu_worker.py; v1/worker/gpu_model_runner.py and
# v1/worker/gpu/model_runner.py. Of several workers the largest counts, of caches the smallest.
_GIB_SAID = {
    "weights": (r"Model loading took ([\d.]+) GiB", max),
    "kv": (r"Available KV cache memory: (-?[\d.]+) GiB", min),
    "graphs": (r"Graph capturing finished in .+ took (-?[\d.]+) GiB", max),
    "graphs_counted": (r"GiB \(actual\), (-?[\d.]+) GiB \(estimated\)", max),
}
_TOKENS = re.compile(r"GPU KV cache size: ([\d,]+) tokens")
# The causes that launcher/engines/vllm_causes.py knows as `engine.no-memory`.
_RAN_OUT = re.compile(
    r"Failed to load model - not enough GPU memory|No available memory for the cache blocks|"
    r"To serve at least one request .{0,300}|(?:CUDA|HIP) (?:error: )?out of memory.{0,200}"
)
_CHOSEN = re.compile(r"Using .{0,80}?(?:backend|kernel)\b.{0,40}", re.IGNORECASE)


def read_log(text: str) -> dict[str, Any]:
    """What vLLM printed of memory, in bytes, of its kernels, and of why it failed."""
    found: dict[str, Any] = {}
    for name, (pattern, of_all) in _GIB_SAID.items():
        if told := re.findall(pattern, text):
            found[name] = int(of_all(float(size) for size in told) * GIB)
    if tokens := _TOKENS.findall(text):
        found["kv_tokens"] = int(tokens[-1].replace(",", ""))
    if ran_out := _RAN_OUT.search(text):
        found["ran_out"] = ran_out[0].strip()
    found["kernels"] = sorted({words.strip() for words in _CHOSEN.findall(text)})
    return found


def steady(samples: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """New tokens a second once the engine is full; None where that was for too short a time.

    Parameters
    ----------
    samples
        Seconds, rows, prompt tokens of these, new tokens of all, and rows that run, that wait,
        and the share of the KV cache in use.
    """
    most = max((sample[4] for sample in samples), default=0.0)
    full = [sample for sample in samples if sample[4] >= FULL * most]
    if not most or samples[-1][0] - full[0][0] < LEAST_STEADY_S:
        return None
    first, last = full[0], samples[-1]
    middle = [sample for sample in samples if sample[0] >= first[0]]
    took_s = last[0] - first[0]
    return {
        "from": first[0],
        "to": last[0],
        "tokens_s": (last[3] - first[3]) / took_s,
        "prompt_tokens_s": (last[2] - first[2]) / took_s,
        "sequences": statistics.fmean(sample[4] for sample in middle),
        "kv_share": statistics.fmean(sample[6] for sample in middle),
    }


def judged(result: Result) -> dict[str, bool]:
    """Whether the planner was right in each thing that was measured."""
    said, measured = result["said"], result["measured"]
    right: dict[str, bool] = {}
    if result["plan"] == "default":
        if tokens := measured.get("kv_tokens"):
            right["kv"] = abs(said["kv_tokens"] / tokens - 1) <= NEAR_KV
        if rate := measured.get("tokens_s"):
            right["rate"] = abs(said["tokens_s"] / rate - 1) <= NEAR_RATE
    else:
        answered, ran_out = bool(measured.get("rows")), "ran_out" in measured
        if answered or ran_out:
            right["plan"] = said["fits"] == (answered and not ran_out)
    return right


def summary(results: Sequence[Result]) -> tuple[str, bool]:
    """How many of how many were right, and whether all were that were wanted."""
    words, good = [], True
    kinds = {"kv": "KV caches within 10 %", "rate": "rates within 30 %", "plan": "plans as counted"}
    for kind, what in kinds.items():
        told = [right[kind] for r in results if kind in (right := judged(r))]
        words.append(f"{what}: {sum(told)} of {len(told)}")
        good = good and all(told)
    nothing = [r for r in results if "left_out" in r["measured"] or not judged(r)]
    words.append(f"not measured: {len(nothing)}")
    return "; ".join(words), good and not nothing and bool(results)


def lines_of(results: Sequence[Result]) -> Iterator[str]:
    """Tables as docs/results has them."""
    default = [r for r in results if r["plan"] == "default" and "kv_tokens" in r["measured"]]
    if default:
        yield "KV cache at vLLM's own share of the GPU; GiB of one GPU, counted / measured:"
        yield ""
        yield (
            "| model | weights | beside them | most in use | KV tokens counted | logged | ratio | |"
        )
        yield "|---|---|---|---|---|---|---|---|"
        yield from (f"| {' | '.join(_memory(result))} |" for result in default)
        yield ""
    rates = [r for r in results if "tokens_s" in r["measured"] and r["plan"] == "default"]
    if rates:
        yield "New tokens a second in the steady state:"
        yield ""
        yield (
            "| model | in flight: predicted | seen | tokens/s: predicted | seen | ratio | | limit |"
        )
        yield "|---|---|---|---|---|---|---|---|"
        yield from (f"| {' | '.join(_rate(result))} |" for result in rates)
        yield ""
    limits = [r for r in results if r["plan"] != "default"]
    if limits:
        yield "Plans at the limits:"
        yield ""
        yield "| model | plan | option | counted | what happened | most in use, GiB | |"
        yield "|---|---|---|---|---|---|---|"
        yield from (f"| {' | '.join(_limit(result))} |" for result in limits)
        yield ""
    for result in results:
        if not judged(result):
            yield f"{result['name']}, {result['plan']}: {_why(result['measured'])}"


def _yes(result: Result, kind: str) -> str:
    right = judged(result).get(kind)
    return "-" if right is None else "right" if right else "**off**"


def _gib(*sizes: float | None) -> str:
    return " / ".join("-" if size is None else f"{size / GIB:.2f}" for size in sizes)


def _memory(result: Result) -> tuple[str, ...]:
    said, measured = result["said"], result["measured"]
    beside = sum(said[part] for part in ("activations", "graphs", "reserve"))
    left = None
    if "kv" in measured and "weights" in measured:
        # What came off vLLM's share before the cache got the rest.
        share = said["kv_bytes"] + said["weights"] + beside
        left = share - measured["kv"] - measured["weights"]
    tokens = measured.get("kv_tokens")
    return (
        result["name"],
        _gib(said["weights"], measured.get("weights")),
        _gib(beside, left),
        _gib(said["peak"], measured.get("peak")),
        f"{said['kv_tokens']:,}",
        "-" if tokens is None else f"{tokens:,}",
        "-" if tokens is None else f"{said['kv_tokens'] / tokens:.2f}",
        _yes(result, "kv"),
    )


def _rate(result: Result) -> tuple[str, ...]:
    said, measured = result["said"], result["measured"]
    return (
        result["name"],
        f"{said['sequences']:,.0f}",
        f"{measured['sequences']:,.0f}",
        f"{said['tokens_s']:,.0f}",
        f"{measured['tokens_s']:,.0f}",
        f"{said['tokens_s'] / measured['tokens_s']:.2f}",
        _yes(result, "rate"),
        said["limit"],
    )


def _limit(result: Result) -> tuple[str, ...]:
    said, measured = result["said"], result["measured"]
    option = next(
        (f"{name} {value:,}" for name, value in result["options"].items() if name in _AT_LIMIT), "-"
    )
    return (
        result["name"],
        result["plan"],
        option,
        "fits" if said["fits"] else "does not fit",
        _why(measured),
        _gib(measured.get("peak")),
        _yes(result, "plan"),
    )


_AT_LIMIT = ("kv_cache_memory_bytes", "gpu_memory_utilization")


def _why(measured: Mapping[str, Any]) -> str:
    """What became of a case, in a few words."""
    if "left_out" in measured:
        return f"left out: {measured['left_out']}"
    if "ran_out" in measured:
        return f"ran out, after {measured.get('rows', 0)} rows: {measured['ran_out'][:90]}"
    if "failed" in measured:
        return f"failed: {measured['failed'][:200]}"
    if measured.get("rows"):
        return f"answered {measured['rows']:,} rows"
    return "nothing was measured"
