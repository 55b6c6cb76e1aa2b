"""One rank of TensorRT-LLM in a process of its own, with a runner that a test gives.

python leader_ranks.py RUN RANK WORLD RUNNER.py, with - as RANK where a launcher gives it
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from run_making import make_plan

from launcher.plan.types import Launcher, Step
from launcher.rundir import RunDir
from launcher.runner.identity import find_rank
from launcher.runner.leader import Rank, run_rank

__all__ = ["main"]


def main() -> int:
    run, number, world, runner = sys.argv[1:]
    tasks = int(world)
    launcher: Launcher = "mpirun" if "OMPI_COMM_WORLD_RANK" in os.environ else "srun"
    rank = Rank(
        run=RunDir(Path(run)),
        args=argparse.Namespace(plan="0001", replica=0, job="7", restart=0),
        plan=make_plan(
            engine="tensorrt-llm",
            launcher=launcher,
            step=Step(kind="leader" if tasks > 1 else "single", nodes=1, tasks_per_node=tasks),
            engine_options={"max_seq_len": 100},
        ),
        number=find_rank(launcher).rank if number == "-" else int(number),
        environ=dict(os.environ),
        runner=(sys.executable, runner),
    )
    return run_rank(rank)


if __name__ == "__main__":
    sys.exit(main())
