"""How long the search for a cut takes in process, and another tool's for the same question.

Each search is of all cuts of one model over nodes of eight H100; the first one of a process counts
the model's layers, the others do not. aiconfigurator is asked through its own Python interface, in
a process of its own, for the same model, GPUs and lengths, with no limits of latency.

    python benchmarks/planner_speed.py [--runs N] [--peer-python PYTHON]

where PYTHON has aiconfigurator: ``python -m venv PEER; PEER/bin/pip install aiconfigurator``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launcher.models.catalogue import BUILTIN  # noqa: E402
from launcher.plan.candidates import Question  # noqa: E402
from launcher.plan.cost import Workload  # noqa: E402
from launcher.plan.layout import NodeShape  # noqa: E402
from launcher.plan.search import Search, search  # noqa: E402
from launcher.spec.leaves import Bytes  # noqa: E402
from launcher.spec.site import Fabric, Gpus  # noqa: E402

__all__ = ["CASES", "Case", "ask", "first_and_median_s"]

SLOTS, PROMPT, NEW = 8, 500, 256


@dataclass(frozen=True, slots=True)
class Case:
    """A model over so many nodes; ``peer`` is its name elsewhere."""

    model: str
    nodes: int
    peer: str


CASES = (
    Case("llama-3.1-405b", 16, "meta-llama/Meta-Llama-3.1-405B"),
    Case("llama-3.1-70b", 16, "meta-llama/Meta-Llama-3.1-70B"),
    Case("deepseek-v3", 16, "deepseek-ai/DeepSeek-V3"),
)
# One answer a line; what it prints and logs itself is not wanted.
_PEER = """
import contextlib, io, json, logging, sys, time
logging.disable(logging.CRITICAL)
begin = time.perf_counter()
from aiconfigurator.cli.api import cli_default
loaded = time.perf_counter() - begin
out = sys.stdout
for model, gpus in json.loads(sys.argv[1]):
    for _ in range(2):
        begin, found = time.perf_counter(), "found"
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                cli_default(model, gpus, "h100_sxm", isl=ISL, osl=OSL, ttft=1e6, tpot=1e6)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
        taken = time.perf_counter() - begin
    print(json.dumps([model, loaded, taken, found]), file=out, flush=True)
"""


def ask(case: Case) -> Question:
    gpus = Gpus(
        model="h100",
        per_node=SLOTS,
        memory=Bytes(80 * 10**9),
        link="nvlink4",
        topology="all-to-all",
    )
    return Question(
        shape=BUILTIN[case.model],
        engine="tensorrt-llm",
        gpus=gpus,
        fabric=Fabric(type="infiniband", rate=400, nics=SLOTS),
        node=NodeShape(slots=SLOTS, slots_all=SLOTS, has_gpus=True),
        most_nodes=case.nodes,
        workload=Workload(prompt_tokens=PROMPT, new_tokens=NEW, most_new_tokens=2 * NEW),
        longest=2 * PROMPT,
    )


def first_and_median_s(case: Case, runs: int) -> tuple[Search, float, float]:
    """The answer, seconds of the first search for it and of the median of ``runs`` more."""
    question, taken = ask(case), []
    begin = time.perf_counter()
    found = search(question)
    first_s = time.perf_counter() - begin
    for _ in range(runs):
        begin = time.perf_counter()
        search(question)
        taken.append(time.perf_counter() - begin)
    return found, first_s, statistics.median(taken)


def _peer(python: str) -> Iterator[list[Any]]:
    code = _PEER.replace("ISL", str(PROMPT)).replace("OSL", str(NEW))
    wanted = json.dumps([[case.peer, case.nodes * SLOTS] for case in CASES])
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code, wanted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{python} cannot run aiconfigurator: {done.stderr[-500:]}")
    yield from map(json.loads, done.stdout.splitlines())


def main() -> None:
    """Print the figures of this machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50, help="searches after the first one")
    parser.add_argument("--peer-python", help="a Python that has aiconfigurator")
    options = parser.parse_args()
    print("model, nodes of 8 H100: first search, median of the others, cuts tried, chosen")
    for case in CASES:
        found, first_s, median_s = first_and_median_s(case, options.runs)
        tried = len(found.kept) + len(found.rejected)
        cut = found.chosen.cut if found.chosen else None
        print(
            f"  {case.model:16} {case.nodes:3}  {first_s * 1e3:7.1f} ms {median_s * 1e3:7.1f} ms "
            f"{tried:4}  {cut}"
        )
    if options.peer_python:
        print("\naiconfigurator, its second call of two in one process, and what came of it")
        for model, _, taken_s, answer in (answers := list(_peer(options.peer_python))):
            print(f"  {model:34} {taken_s * 1e3:9.0f} ms  {answer}")
        print(f"  its import takes {answers[0][1] * 1e3:.0f} ms beside that")


if __name__ == "__main__":
    main()
