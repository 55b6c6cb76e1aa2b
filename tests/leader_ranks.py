"""One rank of TensorRT-LLM in a process of its own, with a runner that a test gives.

python leader_ranks.py RUN RANK WORLD RUNNER.py, with - as RANK where a launcher gives it. With
``ON_INFINIBAND`` in the environment its plan has GPUs and such a network; ``STOP_S`` are the
seconds that a world has for its end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from run_making import make_plan

from launcher.plan.layout import NodeShape, lay_out
from launcher.plan.types import Cut, Launcher, Network, NodeGpus, Step
from launcher.rundir import RunDir
from launcher.runner import leader
from launcher.runner.identity import find_rank
from launcher.runner.leader import Rank, run_rank
from launcher.runner.network import NcclLog

__all__ = ["main"]


def main() -> int:
    run, number, world, runner = sys.argv[1:]
    if "STOP_S" in os.environ:
        leader.STOP_S = leader.HURRY_S = leader.LOOK_S = float(os.environ["STOP_S"])
    tasks = int(world)
    launcher: Launcher = "mpirun" if "OMPI_COMM_WORLD_RANK" in os.environ else "srun"
    own: dict[str, Any] = {}
    if "ON_INFINIBAND" in os.environ:
        own["layout"] = lay_out(Cut(pp=tasks), 1, NodeShape(slots=1, slots_all=1, has_gpus=True))
        own["gpus"], own["network"] = NodeGpus(count=1), Network(type="infiniband")
    plan = make_plan(
        engine="tensorrt-llm",
        launcher=launcher,
        step=Step(kind="leader" if tasks > 1 else "single", nodes=1, tasks_per_node=tasks),
        engine_options={"max_seq_len": 100},
        **own,
    )
    its_number = find_rank(launcher).rank if number == "-" else int(number)
    environ = dict(os.environ)
    note = RunDir(Path(run)).network_path("7", 0, 0, its_number)
    nccl = NcclLog(plan, environ, note, first=its_number == 0)
    rank = Rank(
        run=RunDir(Path(run)),
        args=argparse.Namespace(plan="0001", replica=0, job="7", restart=0),
        plan=plan,
        number=its_number,
        environ=environ,
        runner=(sys.executable, runner),
        nccl=nccl,
    )
    with contextlib.closing(nccl):
        return run_rank(rank)


if __name__ == "__main__":
    sys.exit(main())
