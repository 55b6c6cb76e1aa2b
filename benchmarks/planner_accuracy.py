"""Tokens a second as `launcher.plan.cost` predicts them, over those that were measured.

The measured ones are in `planner_runs.json`, each with its source: own runs of vLLM, NVIDIA's
tables of TensorRT-LLM and MLPerf's. Those marked ``fit`` were looked at when the constants of
`launcher/plan/constants.py` were chosen; the others were not.

    python benchmarks/planner_accuracy.py [--all] [--group TEXT]

The size of the KV cache is an estimate of this script where the source does not tell it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.planner_predict import read_models  # noqa: E402
from launcher.models.catalogue import BUILTIN  # noqa: E402
from launcher.models.quantisation import Quantisation  # noqa: E402
from launcher.models.shapes import ModelShape, shape_from_config  # noqa: E402
from launcher.plan.collectives import Links  # noqa: E402
from launcher.plan.constants import Gpu, find_gpu  # noqa: E402
from launcher.plan.cost import Cost, Serving, Workload, cost  # noqa: E402
from launcher.plan.machine import Machine  # noqa: E402
from launcher.plan.types import Cut  # noqa: E402
from launcher.plan.work import matrices, stored_bytes  # noqa: E402

RUNS = Path(__file__).with_name("planner_runs.json")
MIB = 2**20
# What is left for the cache: of the memory less the weights and this for all else.
OTHER_BYTES = 6 * 2**30
CACHE_SHARE = {"vllm": 0.92, "tensorrt-llm": 0.95}
TOKENS = {"vllm": 16384, "tensorrt-llm": 8192}
BATCH = 4096
FORMATS = {
    "FP8": Quantisation(method="modelopt", algorithm="FP8", bits=8),
    "NVFP4": Quantisation(method="modelopt", algorithm="NVFP4", bits=4, group_size=16),
}
# Of NVIDIA's newer tables; of the older ones nothing.
FIT = {"1000/1000", "8192/1024", "1024/8192"}
NEAR, FEW_WAVES = 1.3, 8
CUT = re.compile(r"(dep|tp|ep|pp)(\d+)")


@dataclass(frozen=True, slots=True)
class Case:
    """One measured run and what is predicted of it."""

    group: str
    model: str
    gpu: str
    cut: str
    lengths: str
    fit: bool
    measured: float
    found: Cost

    @property
    def name(self) -> str:
        return f"{self.model} {self.gpu} {self.cut} {self.lengths}"

    @property
    def ratio(self) -> float:
        return self.found.tokens_s / self.measured

    @property
    def in_range(self) -> bool:
        least, most = self.found.tokens_s_range
        return least <= self.measured <= most


def read_cases() -> Iterator[Case]:
    data = json.loads(RUNS.read_bytes())
    data["shapes"] |= read_models()
    for run in (*data["runs"], *_rows(data["tables"])):
        yield _case(run, data)


def _rows(tables: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for table in tables:
        for column, rates in table["columns"].items():
            gpu, quant, cut = column.split()
            for lengths, rate in zip(table["lengths"], rates, strict=True):
                if rate is not None:
                    prompt, new = map(int, lengths.split("/"))
                    yield {key: table[key] for key in ("group", "model", "per_gpu")} | {
                        "gpu": gpu,
                        "quant": quant,
                        "cut": cut,
                        "engine": "tensorrt-llm",
                        "prompt": prompt,
                        "new": new,
                        "tokens_s": rate,
                        "fit": "1.2" in table["group"] and lengths in FIT,
                        "requests": lengths,
                    }


def _case(run: dict[str, Any], data: dict[str, Any]) -> Case:
    name = run["model"]
    shape = BUILTIN.get(name) or shape_from_config(name, data["shapes"][name])
    if quant := FORMATS.get(run.get("quant", "")):
        # DeepSeek's own FP8 has blocks.
        keep = run["quant"] == "FP8" and shape.quantisation is not None
        shape = shape if keep else dataclasses.replace(shape, quantisation=quant)
    capacity = data["capacity_mib"][run["gpu"]] * MIB
    gpu = find_gpu(run["gpu"], capacity)
    if gpu is None:
        raise SystemExit(f"{run['gpu']} is not known")
    cut, attention_dp = _cut(run["cut"])
    rows = run.get("rows") or data["requests"].get(run.get("requests"))
    workload = Workload(
        prompt_tokens=run["prompt"], new_tokens=run["new"], spread=run.get("spread", 0.0)
    )
    kv_bytes = 1.0 if _fp8_cache(shape, gpu, run) else 2.0
    engine = run["engine"]
    serving = Serving(
        engine=engine,
        kv_tokens=_kv_tokens(shape, cut, attention_dp, workload, capacity, kv_bytes, engine),
        kv_element_bytes=kv_bytes,
        max_batch_size=run.get("max_batch_size", BATCH),
        max_num_tokens=TOKENS[engine],
        attention_dp=attention_dp,
    )
    links = Links(
        gpu_bytes_s=gpu.nvlink_bytes_s or gpu.pcie_bytes_s,
        nvlink=gpu.nvlink_bytes_s is not None,
        node_bytes_s=None,
        per_node=8,
    )
    machine = Machine(gpu=gpu, links=links)
    found = cost(shape, cut, machine, workload, serving)
    if rows is not None and rows / found.sequences < FEW_WAVES:
        # Rows of one length end together, the last wave with fewer of them.
        least = int(rows / math.ceil(rows / found.sequences))
        some = dataclasses.replace(workload, rows=least)
        found = cost(shape, cut, machine, some, serving)
    scale = cut.ranks if run.get("per_gpu") else 1
    return Case(
        group=run["group"] + ", cards" * gpu.card,
        model=run["model"],
        gpu=run["gpu"],
        cut=run["cut"],
        lengths=f"{run['prompt']:.0f}/{run['new']:.0f}",
        fit=bool(run.get("fit")),
        measured=run["tokens_s"] * scale,
        found=found,
    )


def _fp8_cache(shape: ModelShape, gpu: Gpu, run: dict[str, Any]) -> bool:
    """ModelOpt's checkpoints ask for it; gpt-oss had it on Blackwell alone."""
    if run["engine"] == "vllm":
        return False
    return "fp4" in gpu.flops or ("gpt-oss" not in shape.name and shape.quantisation is not None)


def _cut(text: str) -> tuple[Cut, bool]:
    sizes = {kind: int(number) for kind, number in CUT.findall(text)}
    tp = sizes.get("dep") or sizes.get("ep") or sizes.get("tp", 1)
    ep = sizes.get("dep") or sizes.get("ep") or 1
    return Cut(tp=tp, pp=sizes.get("pp", 1), ep=ep), "dep" in sizes


def _kv_tokens(
    shape: ModelShape,
    cut: Cut,
    attention_dp: bool,  # noqa: FBT001 - one call
    workload: Workload,
    capacity: float,
    kv_bytes: float,
    engine: str,
) -> float:
    """Tokens that the cache of a rank holds, windows or not: they free nothing unless asked to."""
    model = matrices(shape)
    split = 1 if attention_dp else cut.tp
    weights = (
        model.attention / split * stored_bytes(shape, "attention")
        + model.mlp / split * stored_bytes(shape, "mlp")
        + model.expert * model.experts / cut.tp * stored_bytes(shape, "experts")
        + 2 * model.head / split * stored_bytes(shape, "head")
    ) / cut.pp
    free = (capacity - weights - OTHER_BYTES) * CACHE_SHARE[engine]
    held = workload.prompt_tokens + workload.new_tokens
    parts = cut.tp if shape.latent_attention is None else 1
    parts = 1 if attention_dp else min(parts, shape.kv_heads)
    each = shape.kv_elements_per_token * held * kv_bytes / parts / cut.pp
    return free / each * held


def summary(cases: Sequence[Case]) -> str:
    ratios = [case.ratio for case in cases]
    worst = max(cases, key=lambda case: abs(math.log(case.ratio)))
    within = sum(1 / NEAR <= ratio <= NEAR for ratio in ratios) / len(ratios)
    in_range = sum(case.in_range for case in cases) / len(cases)
    return (
        f"{len(cases)} | {statistics.median(ratios):.2f} | {within:.0%} | {in_range:.0%} | "
        f"{worst.ratio:.2f}: {worst.name}"
    )


def table(cases: Sequence[Case]) -> Iterator[str]:
    """Lines of Markdown, one for each group and for whether constants were chosen on it."""
    yield "| group | constants | runs | median | within 30 % | in the range | worst |"
    yield "|---|---|---|---|---|---|---|"
    for group in dict.fromkeys(case.group for case in cases):
        for fit in (True, False):
            part = [case for case in cases if case.group == group and case.fit == fit]
            if part:
                yield f"| {group} | {'chosen' if fit else 'tested'} | {summary(part)} |"


def _measured_gpu(case: Case) -> float:
    return case.measured / case.found.gpus


def _found_gpu(case: Case) -> float:
    return case.found.tokens_s_gpu


def choices(cases: Sequence[Case]) -> str:
    """How well the fastest cut of a GPU is found where several were measured."""
    alike: dict[tuple[str, ...], dict[str, list[Case]]] = {}
    for case in cases:
        cuts = alike.setdefault((case.group, case.model, case.gpu, case.lengths), {})
        cuts.setdefault(case.cut, []).append(case)
    lost = []
    for cuts in alike.values():
        if len(cuts) > 1:
            # A cut may have been measured several times.
            measured = {cut: statistics.median(map(_measured_gpu, cuts[cut])) for cut in cuts}
            chosen = max(cuts, key=lambda cut: statistics.median(map(_found_gpu, cuts[cut])))
            lost.append(1 - measured[chosen] / max(measured.values()))
    if not lost:
        return "No choices between cuts."
    right = sum(part == 0 for part in lost)
    return (
        f"The fastest of several cuts was found in {right} of {len(lost)} cases; "
        f"lost by the choice: {statistics.mean(lost):.1%} on average, {max(lost):.0%} at worst."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="print each run")
    parser.add_argument("--group", default="", help="only groups with this text in their name")
    args = parser.parse_args()
    cases = [case for case in read_cases() if args.group in case.group]
    if args.all:
        for case in cases:
            found = case.found
            print(
                f"{'fit ' if case.fit else 'test'} {case.name:45} {case.measured:9.0f} "
                f"{found.tokens_s:9.0f} {case.ratio:5.2f}  {found.sequences:6.0f} by "
                f"{found.batch_limit}, {found.step_s * 1e3:.1f} ms: "
                + ", ".join(f"{k} {v * 1e3:.1f}" for k, v in found.parts.items() if v > 0)
            )
    print(*table(cases), choices(cases), sep="\n")


if __name__ == "__main__":
    main()
