"""Small runs and plans for tests: real files, no scheduler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.data.inputs import freeze, total_bytes
from launcher.plan.grid import make_grid
from launcher.plan.types import (
    Allocation,
    Cut,
    Layout,
    ModelRef,
    Placement,
    Plan,
    PromptSpec,
    RunIdentity,
    Sampling,
    Step,
    UnitGrid,
    WorkRuntime,
)
from launcher.rundir import RunDir

__all__ = ["json_lines", "make_identity", "make_plan", "make_run"]


def json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """``rows`` as one JSON object a line."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def make_identity(
    folder: Path, data: bytes, *, grid: UnitGrid | None = None, prompt: str = "{{ text }}"
) -> RunIdentity:
    """A run over one file with ``data``, answered by the prompt's own words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.jsonl").write_bytes(data)
    inputs = freeze(["in.jsonl"], base=folder)
    return RunIdentity(
        name="test",
        model=ModelRef(name="echo"),
        inputs=inputs,
        prompt=PromptSpec(prompt=prompt, chat=False),
        sampling=Sampling(max_tokens=64),
        grid=grid or make_grid(total_bytes(inputs)),
        keep="none",
    )


def make_plan(**changes: Any) -> Plan:
    """One replica of one rank on this machine; ``changes`` replace fields."""
    layout = Layout(
        replicas=1,
        cut=Cut(),
        allocation=Allocation(
            count=1, nodes=1, gpus_per_node=0, replicas=1, whole_node=False, cpus_per_rank=None
        ),
        placements=(
            Placement(replica=0, rank=0, node=0, gpu=None, local_rank=0, tp_rank=0, pp_rank=0),
        ),
    )
    fields: dict[str, Any] = {
        "name": "test",
        "site": "local",
        "scheduler": "local",
        "engine": "echo",
        "model": "echo",
        "model_path": None,
        "layout": layout,
        "step": Step(kind="single", nodes=1, tasks_per_node=1),
        "launcher": "none",
        "mpi": None,
        "forced_binding": False,
        "runtime": WorkRuntime(python="python3"),
        "directives": (),
        "restart": "none",
        "warn_before_s": 300,
        "attempts": 20,
        "max_bad_fraction": 0.01,
    }
    return Plan(**(fields | changes))


def make_run(
    folder: Path, identity: RunIdentity | None = None, *, plans: Mapping[str, Plan] | None = None
) -> RunDir:
    """A run directory as a submission leaves it, less what only a job needs."""
    run = RunDir(folder)
    run.create()
    for number, plan in (plans or {"0001": make_plan()}).items():
        run.plan_path(number).write_text(json.dumps(plan.to_json()))
    if identity is not None:
        run.identity_path.write_text(json.dumps(identity.to_json()))
    return run
