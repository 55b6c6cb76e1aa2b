"""Whether nodes are fit: a job that does nothing but a preflight, what it found, and this machine.

The job is a run like others, of one row that nobody answers with a model: so its ranks are started
as those of real runs are.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher.errors import HpcLlmError, PlanError, Problem
from launcher.plan.types import Plan
from launcher.preflight.facts import NodeFacts, look
from launcher.preflight.speeds import Link, expected
from launcher.preflight.verdict import LOCKED_BYTES, shared_bytes
from launcher.prepare import Prepared, prepare
from launcher.rundir import RunDir
from launcher.sites import LoadedSite

__all__ = ["Report", "Row", "examine", "look_here", "prepare_visit"]

_TIME_S = 600
_ENGINES = ("tensorrt-llm", "vllm", "transformers")
_SLOW_SYNC_S = 1.0
_CLOCK_S = 5.0
_WELL = ("ok", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that was looked at.

    Attributes
    ----------
    verdict
        ``ok``, ``unknown``, or the code of a problem.
    seen
        What it is like, or what is wrong with it.
    """

    node: str
    part: str
    verdict: str
    seen: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a doctor says.

    Attributes
    ----------
    problems
        What is wrong with something; of these too a job goes on with those that are warnings.
    judged
        False of nodes that have told nothing.
    """

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()
    judged: bool = True

    def to_json(self) -> dict[str, Any]:
        return {"judged": self.judged, "rows": [dataclasses.asdict(row) for row in self.rows]}


def prepare_visit(
    site: LoadedSite,
    folder: Path,
    *,
    partition: str | None,
    nodes: int,
    account: str | None,
    settings: Sequence[str] = (),
) -> Prepared:
    """A run below ``folder`` that looks at ``nodes`` whole nodes, with one rank on each GPU.

    It runs in what the site says of its engines, the first that has anything, for that has torch.

    Raises
    ------
    SpecError, PlanError
        As of any job; then nothing is left in ``folder``.
    """
    spec = site.spec
    name = partition or (next(iter(spec.partitions)) if len(spec.partitions) == 1 else None)
    place = spec.partitions.get(name) if name else None
    slots = (place.gpus.per_node if place.gpus else place.slots) if place else 1
    least_s = place.limits.min_time or 0 if place else 0
    runtime = next((spec.engines[e] for e in _ENGINES if e in spec.engines), None)
    asked = {"partition": name, "account": account, "time": f"{max(_TIME_S, least_s)}s"}
    job = {
        "name": "doctor",
        "engine": "echo",
        "model": "none",
        "input": {"path": "rows.jsonl", "prompt": "{{ text }}"},
        "parallelism": {"tp": slots, "pp": nodes},
        "output": {"path": "run"},
        "resources": {k: v for k, v in asked.items() if v is not None},
        "limits": {"attempts": 1},
        "runtime": _given(runtime) if runtime else {},
    }
    _write(folder, job)
    try:
        prepared = prepare(folder / "job.yaml", site=site.source.path, settings=settings)
    except HpcLlmError:
        shutil.rmtree(folder)
        raise
    plan = prepared.resolution.plan
    visit = dataclasses.replace(plan, restart="none", links=plan.layout.cut.ranks > 1)
    resolution = dataclasses.replace(prepared.resolution, plan=visit)
    return dataclasses.replace(prepared, resolution=resolution)


def _write(folder: Path, job: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text('{"text": "well"}\n')
        (folder / "job.yaml").write_text(json.dumps(job, indent=1))
    except OSError as exc:
        raise PlanError(_unwritable(exc, folder)) from exc


def _unwritable(exc: OSError, folder: Path) -> Problem:
    message = f"cannot write {exc.filename or folder}: {exc.strerror}"
    hint = "choose a directory where you may write, with --directory"
    return Problem("rundir.unwritable", message, hint=hint)


def _given(runtime: msgspec.Struct) -> dict[str, Any]:
    return {k: v for k, v in msgspec.structs.asdict(runtime).items() if v}


def examine(run: RunDir) -> Report:
    """What the last preflight of ``run`` found, node by node."""
    plan = run.newest_plan()
    nodes, links = _told(run, run.preflight_path), _told(run, run.links_path)
    rows = [row for told in nodes for rank in told["ranks"] for row in _node_rows(rank)]
    rows += [
        _link_row(plan, Link.from_json(link), told["nodes"])
        for told in links
        for link in told["links"]
    ]
    found = [finding for told in (*nodes, *links) for finding in told["findings"]]
    for finding in found:
        rows = _with(rows, finding)
    return Report(
        rows=tuple(rows),
        problems=tuple(_problem(finding) for finding in found if finding["hosts"]),
        warnings=tuple(_problem(finding) for finding in found if not finding["hosts"]),
        judged=bool(nodes),
    )


def _told(run: RunDir, path: Callable[[str, int, int], Path]) -> list[dict[str, Any]]:
    """By the replicas of the last start."""
    if not (starts := run.registrations()):
        return []
    job, restart = starts[-1]["job"], starts[-1]["restart"]
    replicas = range(run.newest_plan().layout.replicas)
    there = [at for n in replicas if (at := path(job, restart, n)).exists()]
    return [json.loads(at.read_bytes()) for at in there]


def _problem(data: Mapping[str, Any]) -> Problem:
    severity: Literal["error", "warning"] = "warning" if data["severity"] == "warning" else "error"
    return Problem(data["code"], data["message"], hint=data["hint"], severity=severity)


def _node_rows(rank: Mapping[str, Any]) -> Iterator[Row]:
    if (node := rank["node"]) is None:
        return
    host = rank["host"]
    locked = "any amount" if node["memlock_bytes"] is None else f"{node['memlock_bytes']} bytes"
    versions = ", ".join(f"{name} {found}" for name, found in node["versions"].items())
    free = f"{(node['shm_bytes'] or 0) / 1e9:.1f} GB of shared memory free"
    yield Row(
        node=host, part="node", verdict="ok", seen=f"{free}, {locked} can be locked; {versions}"
    )
    for number, uuid in enumerate(node["gpus"] or ()):
        seen = f"{node['gpu_names'][number]} {uuid}"
        yield Row(node=host, part=f"GPU {number}", verdict="ok", seen=seen)
    for port in node["ports"]:
        state = (port["state"], port["physical"], port["link_layer"])
        rate = f"{port['rate_gbps']:g} Gbit/s" if port["rate_gbps"] is not None else None
        seen = ", ".join(filter(None, (*state, rate)))
        yield Row(node=host, part=f"{port['adapter']}:{port['number']}", verdict="ok", seen=seen)


def _link_row(plan: Plan, link: Link, hosts: Sequence[str]) -> Row:
    each = plan.layout.cut.ranks // plan.step.nodes
    rate = expected(plan, link.kind, link.ranks)
    most = "" if link.finished else "less than "
    seen = f"{link.kind}: {most}{link.bytes_per_s / 1e9:.3g} GB/s"
    seen += f" of {rate / 1e9:.3g}" if rate else ", and the site declares nothing"
    seen += f", {link.latency_s * 1e6:.0f} µs" if link.latency_s is not None else ""
    return Row(
        node=" ".join(dict.fromkeys(hosts[rank // each] for rank in link.ranks)),
        part=f"link {link.ranks[0]}-{link.ranks[-1]}",
        verdict="ok" if rate else "unknown",
        seen=seen,
    )


def _with(rows: Sequence[Row], finding: Mapping[str, Any]) -> list[Row]:
    """The rows, with the finding in those that it is about, or after them."""
    told: dict[str, Any] = {
        "verdict": finding["code"],
        "seen": finding["message"],
        "remedy": finding["hint"],
    }
    about = [
        row
        for row in rows
        if row.part == finding["part"]
        and row.verdict in _WELL
        and not set(row.node.split()).isdisjoint(finding["hosts"])
    ]
    seen = {host for row in about for host in row.node.split()}
    new = [Row(node=h, part=finding["part"], **told) for h in finding["hosts"] if h not in seen]
    return [dataclasses.replace(row, **told) if row in about else row for row in rows] + new


# --- this machine


def look_here(folder: Path, environ: Mapping[str, str] = os.environ) -> Report:
    """Look at this machine and at the file system of ``folder``; no scheduler is needed."""
    node = look(None, environ, gpus=True)
    host = platform.node()
    rows, problems = [], []
    for part, verdict, seen in [*_software(node), *_memory(node), *_disk(folder)]:
        problem = verdict if isinstance(verdict, Problem) else None
        if problem is not None:
            problems.append(problem)
        code = problem.code if problem else str(verdict)
        text, remedy = (problem.message, problem.hint) if problem else (seen, None)
        rows.append(Row(node=host, part=part, verdict=code, seen=text, remedy=remedy))
    errors = tuple(p for p in problems if p.severity == "error")
    warnings = tuple(p for p in problems if p.severity == "warning")
    return Report(rows=tuple(rows), problems=errors, warnings=warnings)


# A part, its verdict and what was seen.
_Seen = tuple[str, str | Problem, str]


def _software(node: NodeFacts) -> Iterator[_Seen]:
    yield "python", "ok", f"{platform.python_version()}, {sys.executable}"
    for engine, package in (("tensorrt-llm", "tensorrt_llm"), ("vllm", "vllm")):
        found = node.versions.get(package)
        yield engine, "ok" if found else "unknown", found or "not installed in this Python"
    found, torch = node.versions.get("transformers"), node.versions.get("torch")
    both = f"{found}, torch {torch}" if found and torch else "not installed in this Python"
    yield "transformers", "ok" if found and torch else "unknown", both
    if node.gpu_error is not None:
        hint = "reboot the machine or tell whoever runs it; `nvidia-smi` has to list all GPUs"
        message = f"nvidia-smi failed: {node.gpu_error}"
        yield "GPUs", Problem("preflight.gpus", message, hint=hint), ""
    elif not node.gpus:
        yield "GPUs", "unknown", "nvidia-smi is not there, or lists none"
    for number, uuid in enumerate(node.gpus or ()):
        yield f"GPU {number}", "ok", f"{node.gpu_names[number]} {uuid}"
    for port in node.ports:
        rate = f", {port.rate_gbps:g} Gbit/s" if port.rate_gbps is not None else ""
        yield port.name, "ok" if port.state == "Active" else "unknown", f"{port.state}{rate}"


def _memory(node: NodeFacts) -> Iterator[_Seen]:
    free, ranks = node.shm_bytes or 0, len(node.gpus or ())
    verdict: str | Problem = "ok"
    if ranks > 1 and free < shared_bytes(ranks):
        message = f"{free} bytes of shared memory are free, and {ranks} GPUs need "
        hint = "give the container --shm-size=1g or more"
        code = "preflight.shared-memory"
        verdict = Problem(code, f"{message}{shared_bytes(ranks)}", hint=hint)
    yield "shared memory", verdict, f"{free / 1e9:.1f} GB free"
    locked, verdict = node.memlock_bytes, "ok"
    if node.rdma and locked is not None and locked < LOCKED_BYTES:
        message = f"{locked} bytes may be locked (ulimit -l), and InfiniBand needs {LOCKED_BYTES}"
        hint = "run `ulimit -l unlimited` before sbatch, which hands limits on, or ask the site"
        verdict = Problem("preflight.locked-memory", message, hint=hint)
    yield "locked memory", verdict, "any amount" if locked is None else f"{locked} bytes"


def _disk(folder: Path) -> Iterator[_Seen]:
    """What a run directory in ``folder`` needs of its file system, which are no locks."""
    try:
        with tempfile.TemporaryDirectory(prefix=".hpc-llm-doctor-", dir=folder) as scratch:
            yield from _tried(Path(scratch), folder)
    except OSError as exc:
        yield "file system", _unwritable(exc, folder), ""


def _tried(scratch: Path, folder: Path) -> Iterator[_Seen]:
    times_s = []
    for number in range(5):
        with (scratch / str(number)).open("wb") as file:
            file.write(bytes(4096))
            file.flush()
            began_s = time.perf_counter()
            os.fsync(file.fileno())
            times_s.append(time.perf_counter() - began_s)
    ahead_s = (scratch / "4").stat().st_mtime - time.time()
    sync_s = statistics.median(times_s)
    seen = f"{folder}: an fsync takes {sync_s * 1e3:.1f} ms"
    slow = f"{seen}, which each finished unit waits for"
    hint = "choose a directory on a parallel file system, with --directory"
    warned = Problem("rundir.slow-disk", slow, hint=hint, severity="warning")
    yield "file system", warned if sync_s > _SLOW_SYNC_S else "ok", seen
    try:
        (scratch / "link").hardlink_to(scratch / "0")
        yield "hard links", "ok", "work"
    except OSError as exc:
        yield "hard links", "unknown", f"{exc.strerror}: a rename takes their place"
    seen = f"{abs(ahead_s):.1f} s between this machine and the file system"
    hint = "have NTP set right: states of a run are told from times of files"
    warned = Problem("rundir.clock", seen, hint=hint, severity="warning")
    yield "clock", warned if abs(ahead_s) > _CLOCK_S else "ok", seen
